"""The learner: checkpoints, steps, skipped steps, and a resumed run."""

from pathlib import Path

import lightning
import pytest
import torch

from sensing.data.scenes import SceneDataModule
from sensing.errors import CheckpointError, ConfigError, NumericalError
from sensing.learning import Learner, ParameterLog, SceneFigure

SETTINGS = {
    "estimator": {"unrolled": {"num_iterations": 2, "tied": False}, "fusion": {"hidden": 3}, "name": "unfolded"},
    "loss": {"channel_weight": 0.3},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.02, "final_lr_fraction": 0.1},
}


def learner(**changes):
    torch.manual_seed(0)
    return Learner(**(SETTINGS | changes))


def data_of(setup, **settings):
    plain = {"batch_size": 2, "scenes_per_epoch": 4, "val_scenes": 2, "test_scenes": 2, "detected_every": 2}
    return SceneDataModule(setup.simulator, **(plain | {"amplitude": [0.5, 3.0]} | settings))


def trainer_of(folder, epochs, **settings):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return lightning.Trainer(max_epochs=epochs, default_root_dir=folder, num_sanity_val_steps=0, **(quiet | settings))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Two epochs of two batches of two scenes."""
    folder = tmp_path_factory.mktemp("trained")
    model = learner()
    trainer = trainer_of(folder, 2, gradient_clip_val=1.0)
    trainer.fit(model, data_of(tiny))
    path = folder / "model.ckpt"
    trainer.save_checkpoint(path)
    return model, path, trainer


def task_of(setup, data=None, split="train"):
    data = data or data_of(setup)
    return data.task(next(iter(data.train_dataloader())), split)


def test_checkpoint_gives_identical_outputs(tiny, trained):
    model, path, _ = trained
    loaded = Learner.load(path)
    assert not loaded.training
    assert dict(loaded.hparams) == dict(model.hparams)
    example = tiny.simulator.examples("test", range(2), snr_db=15.0)
    with torch.no_grad():
        a, b = (each.estimator(example.observation, tiny.deployment) for each in (model, loaded))
        untrained = learner().estimator(example.observation, tiny.deployment)
    assert all((x is y is None) or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a.channel, untrained.channel)


def test_checkpoint_is_small_and_plain(trained):
    content = torch.load(trained[1], weights_only=True)
    assert content["hyper_parameters"]["estimator"] == SETTINGS["estimator"]
    assert trained[1].stat().st_size < 1e6


def test_foreign_and_broken_checkpoints(trained, tmp_path):
    content = torch.load(trained[1], weights_only=True)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "short.ckpt").write_bytes(Path(trained[1]).read_bytes()[:2000])
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    other = {k: v for k, v in content["state_dict"].items() if "layers.1" not in k}
    torch.save(content | {"state_dict": other}, tmp_path / "fewer.ckpt")
    strange = content["hyper_parameters"] | {"estimator": {"nonsense": 1}}
    torch.save(content | {"hyper_parameters": strange}, tmp_path / "strange.ckpt")
    first = next(name for name in content["state_dict"] if name != "scenes_seen")  # a count cannot be NaN
    spoilt = content["state_dict"] | {first: torch.full_like(content["state_dict"][first], float("nan"))}
    torch.save(content | {"state_dict": spoilt}, tmp_path / "spoilt.ckpt")
    with pytest.raises(CheckpointError, match=r"fewer\.ckpt: RuntimeError: .*Missing key.*layers\.1"):
        Learner.load(tmp_path / "fewer.ckpt")
    with pytest.raises(CheckpointError, match=f"finite parameters, got non-finite {first}"):
        Learner.load(tmp_path / "spoilt.ckpt")
    for name in ("text", "empty", "short", "bare", "fewer", "strange", "absent", "spoilt"):
        with pytest.raises(CheckpointError, match=rf"checkpoint must .*{name}\.ckpt"):
            Learner.load(tmp_path / f"{name}.ckpt")


def test_one_step_changes_every_layer_and_leaves_all_finite(tiny):
    model = learner()
    trainer = trainer_of(None, 1, limit_train_batches=2, limit_val_batches=0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.fit(model, data_of(tiny))
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert all(torch.isfinite(value).all() for value in model.parameters())
    for part in ("unrolled.layers.0", "unrolled.layers.1", "localizer.fusion.outer"):
        assert any(part in name for name in moved), part


def test_training_fits_one_batch(tiny):
    """Steps on the same scenes lower their loss."""
    model, task = learner(), task_of(tiny)
    model.log = model.log_dict = lambda *_, **__: None
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        loss = model.training_step(task, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_batch_from_the_front_end_trains_the_fusion_weights(tiny):
    model, data = learner(), data_of(tiny, detected_every=1)
    model.log = model.log_dict = lambda *_, **__: None
    task = task_of(tiny, data)
    assert task.start is None
    model.training_step(task, 0).backward()
    fusion = model.estimator.localizer.fusion
    assert fusion.outer.bias.grad.abs().max() > 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


class PoisonedGradient(lightning.Callback):
    """Second step of the run has a gradient that is not finite."""

    def __init__(self):
        self.kept = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = [p.detach().clone() for p in pl_module.parameters()]
        one = dict(pl_module.named_parameters())["estimator.unrolled.layers.0.corrections.lm"]
        self.handle = one.register_hook(lambda grad: grad * float("nan")) if batch_idx == 1 else None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.handle is not None:
            self.handle.remove()
            self.kept = all(map(torch.equal, self.before, (p.detach() for p in pl_module.parameters())))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_without_finite_gradient_is_left_out_and_counted(tiny, clip):
    model, poison = learner(), PoisonedGradient()
    trainer = trainer_of(
        None,
        1,
        limit_train_batches=3,
        limit_val_batches=0,
        callbacks=[poison],
        gradient_clip_val=clip,
    )
    trainer.fit(model, data_of(tiny, scenes_per_epoch=6, detected_every=0))
    assert poison.kept is True
    assert model.skipped_steps == 1
    assert float(trainer.callback_metrics["train/skipped_steps"]) == 1.0
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_a_loss_that_is_not_finite_names_the_scenes(tiny):
    model, task = learner(), task_of(tiny)
    model.log = model.log_dict = lambda *_, **__: None
    broken = task._replace(peb=torch.zeros(2, dtype=torch.float64))
    with torch.no_grad(), pytest.raises(NumericalError, match=r"'location'.*scenes \[0, 1\]"):
        model.training_step(broken, 0)


def test_divergence_names_layer_quantity_and_checkpoint(tiny):
    """A gain that overflows in layer 1; the guard of the layers keeps geometry and objective finite."""
    model, task = learner(), task_of(tiny)
    model.log = model.log_dict = lambda *_, **__: None
    refined, _ = model.run(task, history=True)
    refined.history[1].expectation.mean.detach()[0, 0, 0] = float("nan")
    model.run = lambda *_, **__: (refined, task.start)
    with pytest.raises(NumericalError, match=r"gain of layer 1; last good checkpoint: none was written"):
        model.training_step(task, 0)


class AllPoisoned(lightning.Callback):
    """No step has a finite gradient."""

    def on_train_start(self, trainer, pl_module):
        one = dict(pl_module.named_parameters())["estimator.unrolled.layers.0.corrections.lm"]
        one.register_hook(lambda grad: grad * float("nan"))


def test_many_steps_without_finite_gradient_end_the_training(tiny, tmp_path):
    trainer = trainer_of(tmp_path, 9, callbacks=[AllPoisoned()], enable_checkpointing=True, limit_val_batches=0)
    message = r"10 steps in a row.*layers\.0\.corrections\.lm; last good checkpoint: .+\.ckpt"
    with pytest.raises(NumericalError, match=message):
        trainer.fit(learner(), data_of(tiny, scenes_per_epoch=4, batch_size=1, detected_every=0))


def test_curriculum_hardens_with_the_number_of_the_scene(tiny):
    """Whatever was drawn before: a resumed training sees the same."""
    data = data_of(tiny, curriculum=100, snr_db=[0.0, 20.0], scenes_per_epoch=200, detected_every=0)
    plain = data_of(tiny, snr_db=[0.0, 20.0], scenes_per_epoch=200, detected_every=0)
    hard, easy = data.datasets["train"], plain.datasets["train"]
    assert float(hard[0].snr_db) == 20.0
    for number in (50, 100, 150):
        share = min(1.0, number / 100)
        assert float(hard[number].snr_db) == pytest.approx(20.0 - share * (20.0 - float(easy[number].snr_db)))
    first, later = (torch.utils.data.default_collate([hard[n]]) for n in (0, 150))
    true = first.scene.ue_position
    assert (data.task(first, "train").start.ue_position - true).norm() < (
        plain.task(first, "train").start.ue_position - true
    ).norm()  # 0.5 instead of up to 3 standard deviations
    a, b = (each.task(later, "train").start.ue_position for each in (data, plain))
    assert torch.equal(a, b)
    assert data.datasets["val"].hardness(0) == 1.0


def test_scenes_seen_are_counted_in_the_checkpoint(trained):
    assert int(Learner.load(trained[1]).scenes_seen) == 8


def test_resume_equals_the_unbroken_run_bit_for_bit(tiny, trained, tmp_path):
    whole, _, _ = trained

    class Interrupted(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    # stopped after the first of two epochs: the step size follows the schedule of the whole run
    first = trainer_of(tmp_path, 2, gradient_clip_val=1.0, callbacks=[Interrupted()])
    first.fit(learner(), data_of(tiny))
    assert first.current_epoch == 1
    first.save_checkpoint(tmp_path / "half.ckpt")
    model = learner()
    trainer_of(tmp_path, 2, gradient_clip_val=1.0).fit(model, data_of(tiny), ckpt_path=tmp_path / "half.ckpt")
    for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_validation_metrics_over_all_scenes(tiny):
    model, data = learner(), data_of(tiny, batch_size=2, val_scenes=3)
    trainer = trainer_of(None, 1)
    pairs = trainer.validate(model, data, verbose=False)[0]
    one = trainer_of(None, 1).validate(learner(), data_of(tiny, batch_size=3, val_scenes=3), verbose=False)[0]
    assert pairs.keys() == one.keys()
    for name in ("val/error_over_peb_rms", "val/error_over_peb_median", "val/error_m_rms", "val/nmse_db", "val/loss"):
        assert pairs[name] == pytest.approx(one[name], rel=1e-6), name
    assert 0 <= pairs["val/converged"] <= 1


def test_parameters_and_a_scene_are_logged(tiny, tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    trainer = trainer_of(
        tmp_path, 1, logger=logger, callbacks=[ParameterLog(), SceneFigure(every=1)], log_every_n_steps=1
    )
    trainer.fit(learner(), data_of(tiny))
    events = EventAccumulator(logger.log_dir).Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "val/loss", "val/error_over_peb_median"} <= set(scalars)
    assert {f"parameters/step_ue/layer_{t}" for t in range(2)} <= set(scalars)
    assert events.Tags()["images"] == ["scene"]


def test_optimizer_must_exist():
    with pytest.raises(ConfigError, match=r"optimizer\._target_"):
        learner(optimizer={"_target_": "torch.optim.Nonsense"}).configure_optimizers()
