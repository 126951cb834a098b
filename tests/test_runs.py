"""Training as `runs.train` does it: resumed equals unbroken, foreign and broken checkpoints are refused."""

import math
import shlex
from types import SimpleNamespace

import lightning
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from sensing import options, runs
from sensing.about import SCENE_KEYS
from sensing.cli import conf_dir
from sensing.errors import CheckpointError, ConfigError, NumericalError
from sensing.learning import Learner
from sensing.runs.commands import evaluate_command
from sensing.runs.training import build_trainer
from sensing.runs.weights import trained_for

SMALL = [
    *("array.num_y=3", "array.num_z=2", "ofdm.num_subcarriers=256", "estimator.unrolled.num_iterations=2"),
    *(
        "data.batch_size=2",
        "data.scenes_per_epoch=4",
        "data.val_scenes=2",
        "data.test_scenes=2",
        "data.detected_every=2",
    ),
    *("callbacks.progress=null", "trainer.enable_progress_bar=false", "logger=none"),
]


def config(folder, *overrides, command="train"):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose(command, [*(SMALL if command == "train" else ()), f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def saved_checkpoint(tmp_path_factory):
    """The last checkpoint of a short training."""
    folder = tmp_path_factory.mktemp("training")
    runs.train(config(folder, "trainer.max_epochs=1", "data.detected_every=0"))
    return folder / "checkpoints/last.ckpt"


def test_resumed_training_equals_the_unbroken_one(tmp_path, capsys):
    constant = "optimizer.final_lr_fraction=1"  # a run that is extended has had the schedule of the shorter one
    objective = runs.train(config(tmp_path / "whole", "trainer.max_epochs=2", constant))
    assert isinstance(objective, float)
    assert math.isfinite(objective)
    shown = capsys.readouterr().out
    assert "untrained" in shown
    assert "evaluate it: python evaluate.py" in shown
    runs.train(config(tmp_path / "first", "trainer.max_epochs=1", constant))
    last = tmp_path / "first/checkpoints/last.ckpt"
    runs.train(config(tmp_path / "second", "trainer.max_epochs=2", constant, f"ckpt_path={last}"))
    states = [
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "second")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    recorded = torch.load(last, weights_only=True)["hyper_parameters"]["trained_on"]
    assert recorded["scene"]["name"] == "hall_hard"
    assert recorded["ofdm"]["num_subcarriers"] == 256
    assert recorded["data"]["batch_size"] == 2
    start = torch.load(last, weights_only=True)["state_dict"]
    assert any(not torch.equal(value, start[name]) for name, value in states[0].items())


def test_training_resumed_within_an_epoch_equals_the_unbroken_one(tmp_path, monkeypatch):
    """Saved after two of four batches: the third follows, not the first one again."""
    given = ["trainer.max_epochs=1", "trainer.val_check_interval=2", "trainer.accumulate_grad_batches=1"]
    given += ["data.scenes_per_epoch=8", "optimizer.final_lr_fraction=1", "data.detected_every=0"]

    class Stop(Exception):
        pass

    class Breaks(lightning.Callback):
        def on_train_batch_start(self, trainer, learner, batch, batch_idx):
            if batch_idx == 2:
                raise Stop

    def built(settings):
        trainer = build_trainer(settings)
        trainer.callbacks.append(Breaks())
        return trainer

    runs.train(config(tmp_path / "whole", *given))
    with monkeypatch.context() as patch:
        patch.setattr("sensing.runs.training.build_trainer", built)
        with pytest.raises(Stop):
            runs.train(config(tmp_path / "first", *given))
    last = tmp_path / "first/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    runs.train(config(tmp_path / "second", *given, f"ckpt_path={last}"))
    states = [
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "second")
    ]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_parameters_that_are_not_finite_are_not_the_best_ones(tmp_path, monkeypatch):
    """They become so after the last training loss: nothing is saved, and nothing returned."""
    step = torch.optim.Adam.step

    def spoilt(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        with torch.no_grad():
            for parameter in self.param_groups[-1]["params"]:
                parameter.fill_(math.nan)
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", spoilt)
    one = ["trainer.max_epochs=1", "trainer.accumulate_grad_batches=2", "data.detected_every=0"]
    with pytest.raises(NumericalError, match="val/loss must be finite, got nan") as caught:
        runs.train(config(tmp_path, *one))
    assert "last good checkpoint: none was written" in str(caught.value)
    assert not list(tmp_path.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda saved: {"weights": saved["state_dict"]}, "KeyError"),
        (lambda saved: {"state_dict": saved["state_dict"]}, "holds no pytorch-lightning_version, loops"),
    ],
)
def test_checkpoint_that_cannot_be_resumed_is_refused(tmp_path, saved_checkpoint, spoil, reason):
    path = tmp_path / "spoilt.ckpt"
    torch.save(spoil(torch.load(saved_checkpoint, weights_only=True)), path)
    with pytest.raises(CheckpointError, match=rf"ckpt_path must be a checkpoint of train\.py, got .*{reason}"):
        runs.train(config(tmp_path, f"ckpt_path={path}"))


def test_a_training_is_resumed_with_its_own_optimizer(tmp_path, saved_checkpoint):
    with pytest.raises(
        CheckpointError, match=r"ckpt_path must be of a training with torch.optim.SGD, got one with .*Adam"
    ):
        runs.train(config(tmp_path, "optimizer=sgd", f"ckpt_path={saved_checkpoint}"))
    with pytest.raises(ConfigError, match="must not both be given"):
        runs.train(config(tmp_path, "init_from=hall_hard", f"ckpt_path={saved_checkpoint}"))


def test_weights_of_another_kind_are_refused_even_where_all_shapes_agree(tmp_path, saved_checkpoint):
    saved = torch.load(saved_checkpoint, weights_only=True)
    torch.save(saved | {"learner": "CalibrationLearner"}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="checkpoint must be of Learner, got one of CalibrationLearner"):
        Learner.load(tmp_path / "other.ckpt")
    assert saved["learner"] == "Learner"


def test_an_export_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="export must be a file in a folder that can be written"):
        runs.train(config(tmp_path, f"export={tmp_path / 'file' / 'w.safetensors'}"))


def test_training_that_diverges_says_where_and_names_its_last_good_checkpoint(tmp_path):
    """An epoch that goes well, then steps that are far too long."""
    one = ["optimizer=sgd", "trainer.gradient_clip_val=null", "trainer.accumulate_grad_batches=1"]
    runs.train(config(tmp_path / "first", *one, "trainer.max_epochs=1", "optimizer.lr=1e-6"))
    saved = torch.load(tmp_path / "first/checkpoints/last.ckpt", weights_only=True)
    for group in saved["optimizer_states"][0]["param_groups"]:
        group["lr"] = 1e300
    schedule = saved["lr_schedulers"][0]
    schedule["base_lrs"] = [1e300 for _ in schedule["base_lrs"]]
    torch.save(saved, tmp_path / "first/wild.ckpt")
    given = ["optimizer.final_lr_fraction=1", "trainer.max_epochs=4", f"ckpt_path={tmp_path / 'first/wild.ckpt'}"]
    with pytest.raises(NumericalError, match=r"loss must be finite, .* of layer \d") as caught:
        runs.train(config(tmp_path / "second", *one, *given))
    good = str(caught.value).rsplit("last good checkpoint: ", 1)[1]
    assert good.endswith("first/checkpoints/best.ckpt")
    assert Learner.load(good) is not None  # refuses what is not finite


def learner(num_iterations):
    plain = runs.plain(config("unused", f"estimator.unrolled.num_iterations={num_iterations}"))
    return Learner(plain["estimator"], plain["loss"], plain["optimizer"])


def test_checkpoint_of_another_architecture_is_refused(tmp_path):
    path = str(tmp_path / "two.ckpt")
    there, state = dict(learner(2).hparams), learner(2).state_dict()
    others = {"pytorch-lightning_version": "2", "loops": {}, "optimizer_states": [], "hyper_parameters": there}
    torch.save({"state_dict": state} | others, path)
    runs.check_resume(path, learner(2))
    with pytest.raises(
        CheckpointError, match=r"ckpt_path must belong to the configured estimator: .* is \[.*got absent"
    ):
        runs.check_resume(path, learner(3))


def trained(num_iterations, path):
    """A checkpoint whose parameters are no longer neutral."""
    made = learner(num_iterations)
    for number, parameter in enumerate(made.parameters()):
        parameter.data.fill_(0.01 * (number + 1))
    torch.save(
        {
            "state_dict": made.state_dict(),
            "hyper_parameters": dict(made.hparams),
            "pytorch-lightning_version": lightning.__version__,
        },
        path,
    )
    return made.state_dict()


def test_fine_tuning_starts_with_the_weights_and_new_parameters_are_neutral(tmp_path):
    path = tmp_path / "two.ckpt"
    state = trained(2, path)
    deeper, untouched = learner(3), learner(3).state_dict()
    neutral = runs.start_from(path, deeper)
    assert neutral
    assert all("layers.2." in name for name in neutral)
    for name, value in deeper.state_dict().items():
        assert torch.equal(value, untouched[name] if name in neutral else state[name]), name
    with pytest.raises(CheckpointError, match=r"init_from must belong to the configured estimator: .*absent there"):
        runs.start_from(path, learner(1))


def test_fine_tuning_says_where_array_and_pilots_differ(tmp_path):
    """The checkpoint knows 6 antennas and 16 pilots 1.92 MHz apart; others are named, the same are not."""
    path = tmp_path / "two.ckpt"
    torch.save({"hyper_parameters": {"trained_on": runs.plain(config(tmp_path))}}, path)
    changed = ("array.num_y=5", "ofdm.num_subcarriers=128")
    same, other = (runs.build_deployment(config(tmp_path, *given)) for given in ((), changed))
    assert trained_for(path, same) == ""
    assert trained_for(path, other) == (
        "10 antennas instead of 6, 8 pilots instead of 16, 13.44 MHz between the outer pilots instead of 28.8"
    )


def test_fine_tuned_training_starts_at_the_weights(tmp_path, capsys):
    """Without a step, what train.py ends with are the weights that it was given."""
    path = tmp_path / "two.ckpt"
    state = trained(2, path)
    given = ["trainer.max_epochs=1", "optimizer.lr=1e-300", f"init_from={path}", "data.num_train_scenes=1"]
    runs.train(config(tmp_path / "run", *given))
    found = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    learned = [name for name, _ in learner(2).named_parameters()]
    assert all(torch.equal(found["state_dict"][name], state[name]) for name in learned)
    assert found["hyper_parameters"]["trained_on"]["init_from"] == "two.ckpt"
    assert "before against trained" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 truncated"])
def test_broken_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ckpt_path must be a checkpoint of train\.py"):
        runs.check_resume(str(path), learner(1))
    with pytest.raises(CheckpointError, match=r"checkpoint must be .*got .*broken\.ckpt"):
        runs.start_from(path, learner(1))
    with pytest.raises(CheckpointError, match="checkpoint must be"):
        runs.build_estimators(config(tmp_path, f"checkpoint={path}", command="evaluate"))


def test_untrained_unfolded_estimator_is_labelled_so(tmp_path):
    both = "estimators=[classical,unfolded]"
    names = list(runs.build_estimators(config(tmp_path, both, "checkpoint=null", command="evaluate")))
    assert names == ["classical", "unfolded_untrained"]


def test_weights_of_the_scene_are_the_default(tmp_path):
    """A scene without shipped weights, and a file, have none; a name gives the same as the default."""
    both = "estimators=[classical,unfolded]"
    for scene in ("hall_hard", "hall"):
        weights = options.unfolded_weights(runs.plain(config(tmp_path, f"scene={scene}", command="evaluate")))
        assert weights == scene
        built = runs.build_estimators(config(tmp_path, f"scene={scene}", both, command="evaluate"))
        named = runs.build_estimators(
            config(tmp_path, f"scene={scene}", both, f"checkpoint={scene}", command="evaluate")
        )
        assert list(built) == list(named) == ["classical", "unfolded"]
        ours, theirs = (dict(each["unfolded"].named_parameters()) for each in (built, named))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert any((parameter != 0).any() for parameter in built["unfolded"].unrolled.layers.parameters())
    for other in (["scene=urban"], ["data=file", "data.path=x.h5"], ["checkpoint=null"]):
        assert options.unfolded_weights(runs.plain(config(tmp_path, *other, command="evaluate"))) is None
    assert list(runs.build_estimators(config(tmp_path, "scene=urban", both, command="evaluate")))[1].endswith(
        "untrained"
    )


@pytest.mark.parametrize(
    ("program", "wanted"), [("train.py", "python evaluate.py"), ("sensing-train", "sensing-evaluate")]
)
def test_command_printed_is_one_that_the_user_has(tmp_path, monkeypatch, program, wanted):
    monkeypatch.setattr("sys.argv", [f"/somewhere/{program}"])
    assert evaluate_command("best.ckpt", config(tmp_path)).startswith(f"{wanted} checkpoint=")


@pytest.mark.parametrize(("correct", "method"), [("true", "learned"), ("false", "learned_weights")])
def test_command_printed_evaluates_fusion_on_the_drops_of_the_training(tmp_path, correct, method):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        given = ["experiment=fusion_train", f"estimator.correct_bias={correct}", "drops.random_scale=true"]
        trained = compose("train", [*given, f"output_dir={tmp_path}"])
        arguments = shlex.split(evaluate_command("best.ckpt", trained))[2:]
        evaluated = compose("evaluate", [*arguments, f"output_dir={tmp_path}"])
    assert evaluated.drops == trained.drops
    assert method in evaluated.task.methods
    assert evaluated.task.checkpoints[method].endswith("best.ckpt")


def test_command_printed_evaluates_on_the_scenes_of_the_training(tmp_path, monkeypatch):
    """The overrides that it repeats give the scenes that train.py had."""
    given = ["scene=urban", "array=ula", "array.num=5", "scene.sampler.num_shared=7", "noise=estimated", "seed=4"]
    choices = {"scene": "urban"}
    job = SimpleNamespace(runtime=SimpleNamespace(choices=choices), overrides=SimpleNamespace(task=given))
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: job))
    arguments = shlex.split(evaluate_command("best.ckpt", config(tmp_path)))[2:-1]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        trained, evaluated = (
            runs.plain(compose(command, [*overrides, f"output_dir={tmp_path}"]))
            for command, overrides in (("train", given), ("evaluate", arguments))
        )
    for key in (*SCENE_KEYS, "noise", "detector"):
        assert evaluated[key] == trained[key], key


def test_null_entries_and_switches_leave_out_callbacks(tmp_path):
    trainer = runs.build_trainer(config(tmp_path, "callbacks.figure=null", "trainer.enable_checkpointing=false"))
    kinds = {type(each).__name__ for each in trainer.callbacks}
    assert "ParameterLog" in kinds
    assert not kinds & {"SceneFigure", "ModelCheckpoint", "RichProgressBar"}


@pytest.mark.parametrize("override", ["optimizer.betas=[0.9]", "+optimizer.momentum=0.9"])
def test_optimizer_that_refuses_its_arguments_is_named_before_any_work(tmp_path, override):
    with pytest.raises(ConfigError, match=r"optimizer must fit torch\.optim\.Adam, got "):
        runs.train(config(tmp_path, override))


def test_nothing_to_learn_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"estimator must have something to learn .*, got classical"):
        runs.train(config(tmp_path, "estimator=classical"))
