"""Fine-tuning on observation files: what is learned from, what is not looked at, and files that will not do."""

import cmath
import math
from pathlib import Path

import h5py
import lightning
import pytest
import torch

from sensing.about import trained_elsewhere
from sensing.containers import map_tensors
from sensing.data import export_scenes, read_observations
from sensing.data.file_scenes import FileDataModule
from sensing.errors import ConfigError, FileFormatError, MissingTruthError
from sensing.learning import FileLearner, Learner
from sensing.preflight import check_training
from sensing.units import SPEED_OF_LIGHT

SETTINGS = {
    "estimator": {
        "detector": {"max_paths": 8, "final_steps": 4},
        "localizer": {"modes": 1, "alignments": 1, "passes": 1, "max_repairs": 0},
        "unrolled": {"num_iterations": 1, "tied": False},
        "joint_false_alarm": 0.0,
    },
    "loss": {},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.02},
}


@pytest.fixture(scope="module")
def path(tiny, tmp_path_factory):
    """Eight scenes with truth."""
    path = tmp_path_factory.mktemp("files") / "scenes.h5"
    export_scenes(tiny.simulator, path, "test", range(8), snr_db=15.0)
    return path


def without_truth(path, folder):
    """A copy without `truth/`."""
    other = folder / "unlabelled.h5"
    with h5py.File(path) as source, h5py.File(other, "w") as target:
        target.attrs.update(source.attrs)
        for name in source:
            if name != "truth":
                source.copy(name, target)
    return other


def learner():
    torch.manual_seed(0)
    return FileLearner(**SETTINGS)


def test_scenes_are_shared_out(path):
    data = FileDataModule(path, half="even", val_share=0.25)
    assert data.scenes == {"train": [0, 2, 4], "val": [6], "test": [1, 3, 5, 7]}
    data = FileDataModule(path, num_scenes=5, num_labels=2, val_share=0.2)
    assert data.scenes == {"train": [0, 1, 2, 3], "val": [4], "test": [5, 6, 7]}
    assert data.labelled.tolist() == [True, True, *[False] * 6]
    assert not FileDataModule(path, labels="ignored").labelled.any()
    assert FileDataModule(path).scenes["test"] == FileDataModule(path).scenes["val"]  # nothing else is left


def test_every_pilot_is_held_out_in_its_turn(path):
    data = FileDataModule(path, hold_out=4, batch_size=2)
    masks = torch.stack([data.task(torch.tensor([0, 1]), turn).held_out for turn in range(8)])
    assert torch.equal(masks[:4].sum(0), torch.ones(masks.shape[1], dtype=torch.long))
    assert torch.equal(masks[:4], masks[4:])
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    batches = [batch.tolist() for batch in loader]
    assert [pair for batch in batches for pair in batch] == [[scene, 3] for scene in data.scenes["train"]]


def test_held_out_pilots_are_judged_and_not_looked_at(path):
    """The score is the misfit of a channel summed path by path, and what is held out has no part in that channel."""
    model, data = learner(), FileDataModule(path, labels="ignored")
    task = data.task(torch.tensor([0, 1]))
    with torch.no_grad():
        observation, paths = model.front_end(task)
        start = model.estimator.localizer(paths, task.deployment).geometry
        kept = task.deployment._replace(pilot_freq=task.deployment.pilot_freq[~task.held_out])
        refined = model.estimator.unrolled(observation._replace(y=observation.y[..., ~task.held_out]), kept, start)
        judged = model.terms(task)
        scored = task.example.observation.y.clone()
        scored[..., task.held_out] *= 3.0
        louder = task.example._replace(observation=task.example.observation._replace(y=scored))
        other = model.terms(task._replace(example=louder))["held_out_log"]
    final, deployment, misfit = refined.final, task.deployment, model.held_out_log
    geometry, mean = final.geometry, final.expectation.mean
    antennas = deployment.antenna_global
    for scene in range(2):
        total, tripled, entries = 0.0, 0.0, 0
        for q in range(len(deployment.bs_position)):
            b = deployment.bs_position[q]
            waves = []
            for s in geometry.node_position[scene]:
                leg = (s - b).norm()
                length = leg + (s - geometry.ue_position[scene]).norm() + geometry.offset_m[scene, q]
                waves.append((length, (s - b) / leg))
            waves += list(zip(geometry.free_range_m[scene, q], geometry.free_direction[scene, q], strict=True))
            for k in task.held_out.nonzero().squeeze(-1).tolist():
                f = float(deployment.pilot_freq[k])
                for m in range(0, len(antennas[q]), 5):
                    h = 0j
                    for (length, toward), g in zip(waves, mean[scene, q].tolist(), strict=True):
                        steering = 2 * math.pi / float(deployment.wavelength) * float(toward @ antennas[q, m])
                        h += g * cmath.exp(1j * (steering - 2 * math.pi * f * float(length) / SPEED_OF_LIGHT))
                    y, noise = complex(observation.y[scene, q, m, k]), float(observation.noise_var[scene, q])
                    total += abs(y - h) ** 2 / noise
                    tripled += abs(3 * y - h) ** 2 / noise
                    entries += 1
        few = [slice(None), slice(None), slice(0, None, 5)]  # the antennas of the loop
        part = observation._replace(y=observation.y[tuple(few)][..., task.held_out])
        thin = deployment._replace(
            antenna_local=deployment.antenna_local[::5], pilot_freq=deployment.pilot_freq[task.held_out]
        )
        assert math.isclose(float(misfit(refined, part, thin)[scene]), math.log(total / entries), rel_tol=1e-6)
        loud = float(misfit(refined, part._replace(y=3 * part.y), thin)[scene])
        assert math.isclose(loud, math.log(tripled / entries), rel_tol=1e-6)
    assert (other > judged["held_out_log"] + 1.0).all()
    assert "location" not in judged


def test_the_user_without_a_station_is_compared_with_that_of_all(path):
    """Left out in turn; the rest finds what an estimator finds that never heard of the station."""
    model, data = learner(), FileDataModule(path, labels="ignored", hold_out_stations=True)
    stations = len(data.file.deployment.bs_position)
    scenes = torch.tensor([0, 1])
    assert [data.task(scenes, turn).left_out for turn in range(stations + 1)] == [*range(stations), 0]
    assert FileDataModule(path).task(scenes).left_out is None
    with pytest.raises(ConfigError, match="hold_out_stations must be true or false"):
        FileDataModule(path, hold_out_stations="yes")
    task = data.task(scenes, turn=1)
    others = [q for q in range(stations) if q != 1]
    observation, deployment = task.example.observation, task.deployment
    with torch.no_grad():
        terms = model.terms(task)
        few = observation._replace(y=observation.y[:, others], noise_var=observation.noise_var[:, others])
        fewer = deployment._replace(
            bs_position=deployment.bs_position[others], bs_rotation=deployment.bs_rotation[others]
        )
        alone = model.estimator(few, fewer).ue_position
        seen, paths = model.front_end(task)
        start = model.estimator.localizer(paths, deployment).geometry
        thin = deployment._replace(pilot_freq=deployment.pilot_freq[~task.held_out])
        refined = model.estimator.unrolled(seen._replace(y=seen.y[..., ~task.held_out]), thin, start)
    distance = (alone - refined.final.geometry.ue_position).norm(dim=-1) / task.scale_m
    expected = ((1 + distance**2).sqrt() - 1).mean()
    assert float(distance.min()) > 0
    assert math.isclose(float(terms["stations"]), float(expected), rel_tol=1e-6)
    assert math.isclose(float(terms["total"]), float(expected + terms["held_out"]), rel_tol=1e-6)


def test_gradient_of_the_held_out_pilots(path):
    """Against a difference quotient, for the scale of the noise that the first layer assumes."""
    model, data = learner(), FileDataModule(path, labels="ignored")
    task = data.task(torch.tensor([0, 1]))
    name, parameter = next((n, p) for n, p in model.named_parameters() if n.endswith("noise_scale") and p.requires_grad)
    model.terms(task)["total"].backward()
    assert parameter.grad is not None, name
    at = int(parameter.grad.abs().reshape(-1).argmax())
    slope = float(parameter.grad.reshape(-1)[at])
    values = []
    with torch.no_grad():
        for step in (1e-4, -1e-4):
            parameter.reshape(-1)[at] += step
            values.append(float(model.terms(task)["total"]))
            parameter.reshape(-1)[at] -= step
    assert math.isclose(slope, (values[0] - values[1]) / 2e-4, rel_tol=1e-2, abs_tol=1e-6), name


def test_ignored_labels_are_not_learned_from(path):
    model, index = learner(), torch.tensor([0, 1])
    data = FileDataModule(path, num_labels=1)
    task = data.task(index)
    scene = task.example.scene

    def moved(row):
        ue = scene.ue_position.clone()
        ue[row] += 5.0
        return model.terms(task._replace(example=task.example._replace(scene=scene._replace(ue_position=ue))))["total"]

    with torch.no_grad():
        own = model.terms(task)["total"]
        assert torch.equal(moved(1), own)  # of scene 1 nobody may know
        assert abs(float(moved(0) - own)) > 0.1


def test_a_file_without_truth_is_learned_from(path, tmp_path):
    """One epoch by held-out pilots alone; the checkpoint is that of a Learner, as `evaluate.py` loads it."""
    unlabelled = without_truth(path, tmp_path)
    model = FileLearner(**SETTINGS, trained_on={"data": {"path": str(unlabelled), "half": None}})
    data = FileDataModule(unlabelled, num_scenes=4, batch_size=2, val_share=0.25)
    before = [p.clone() for p in model.parameters()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=1, num_sanity_val_steps=0, enable_model_summary=False, **quiet)
    trainer.fit(model, data)
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    found = trainer.callback_metrics
    assert torch.isfinite(found["val/loss"])
    assert found["val/error_m_median"].isnan()  # nobody knows
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    model.export(tmp_path / "tuned.safetensors", seed=0)
    observation = read_observations(path).observation
    first = map_tensors(observation, lambda field: field[:1])
    with torch.no_grad():
        own = model.eval().estimator(first, data.file.deployment).ue_position
        for name in ("tuned.ckpt", "tuned.safetensors"):
            assert torch.equal(Learner.load(tmp_path / name).estimator(first, data.file.deployment).ue_position, own)
    assert FileLearner.load(tmp_path / "tuned.safetensors").hparams["loss"] == {}
    assert trained_elsewhere(str(tmp_path / "tuned.safetensors"), {}) == "on the file unlabelled.h5"


def test_files_and_values_that_will_not_do(path, tmp_path, tiny):
    with pytest.raises(MissingTruthError, match="labels=needed"):
        FileDataModule(without_truth(path, tmp_path), labels="needed")
    export_scenes(tiny.simulator, tmp_path / "one.h5", "test", [0], snr_db=15.0)
    with pytest.raises(ConfigError, match=r"two scenes.*got 1"):
        FileDataModule(tmp_path / "one.h5")
    with pytest.raises(FileFormatError):
        FileDataModule(tmp_path / "absent.h5")
    with h5py.File(path) as source, h5py.File(tmp_path / "empty.h5", "w") as target:
        target.attrs.update(source.attrs)
        for name in ("bs", "ofdm", "prior", "noise_var"):
            source.copy(name, target)
        target["y"] = source["y"][:0]
    with pytest.raises(FileFormatError, match="empty"):
        FileDataModule(tmp_path / "empty.h5")
    for settings in (
        {"half": "third"},
        {"labels": "some"},
        {"num_scenes": 1},
        {"num_labels": -1},
        {"val_share": 1.0},
        {"hold_out": 1},
        {"hold_out": 1000},
        {"batch_size": 0},
        {"scale_m": 0.0},
    ):
        with pytest.raises(ConfigError, match=rf"{next(iter(settings))}"):
            FileDataModule(path, **settings)


def config_of(path, **changes):
    """What of the configuration the checks of a file's training read."""
    data = {"path": None if path is None else str(path), "half": None, "hold_out": 4, "batch_size": 8}
    plain = {
        "learner": "sensing.learning.FileLearner",
        "objective": "val/loss",
        "trainer": {"max_epochs": 1, "precision": "32-true"},
        "estimator": {"_target_": "sensing.estimator.build_estimator", "name": "unfolded"},
        "optimizer": {"lr": 0.01},
        "noise": "known",
        "seed": 0,
        "ckpt_path": None,
        "init_from": None,
        "export": None,
        "torch_threads": 1,
        "output_dir": str(Path("nowhere")),
    }
    return plain | {"data": data} | changes


def test_the_command_says_what_is_missing(path):
    check_training(config_of(path))
    with pytest.raises(ConfigError, match=r"data\.path must be the path of a file"):
        check_training(config_of(None))
    with pytest.raises(ConfigError, match="experiment=fine_tune"):
        check_training(config_of(path, learner="sensing.learning.Learner"))
    wrong = {"_target_": "sensing.estimator.build_estimator", "name": "classical"}
    with pytest.raises(ConfigError, match="something to learn"):
        check_training(config_of(path, estimator=wrong))


def test_a_share_that_leaves_nothing_to_train_on(path, caplog):
    with pytest.raises(ConfigError, match=r"data\.val_share must leave a scene to train on, got 0\.9 of 4 scenes"):
        FileDataModule(path, num_scenes=4, val_share=0.9)
    with pytest.raises(ConfigError, match=r"hold_out must be whole numbers, got .* 2\.5"):
        FileDataModule(path, hold_out=2.5)
    FileDataModule(path, half="even")
    assert "no scene is left" not in caplog.text
    FileDataModule(path)
    assert "no scene is left for the test" in caplog.text
