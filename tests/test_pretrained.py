"""Shipped weights: written, read and refused; and every file that ships."""

import json
import re
import struct

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from sensing import learning, options, pretrained, runs
from sensing.about import trained_elsewhere
from sensing.cli import conf_dir
from sensing.errors import CheckpointError, ConfigError
from sensing.learning import FusionLearner, Learner
from sensing.pretrained import FOLDER, checkpoint_path, shipped
from sensing.pretrained.files import read_weights
from tests.test_coverage import composed
from tests.test_runs import config

SETTINGS = {"estimator": {"hidden": 3, "layers": 1}, "loss": {}, "optimizer": {"lr": 0.1}}
TRAIN = [
    *("experiment=fusion_train", "trainer.max_epochs=1", "data.batches_per_epoch=2", "data.batch_size=8"),
    *("data.val_batches=1", "data.test_batches=1", "estimator.hidden=4", "estimator.layers=1"),
]


@pytest.fixture
def learner():
    torch.manual_seed(0)
    made = FusionLearner(**SETTINGS)
    for value in made.parameters():
        torch.nn.init.normal_(value)
    return made


@pytest.fixture
def file(learner, tmp_path):
    path = tmp_path / "net.safetensors"
    learner.export(path, command="python train.py", seed=3, note="a test")
    return path


def header(path):
    """Text of a file's header, read by the definition of the format."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size])["__metadata__"]


def test_what_was_exported_comes_back_bit_for_bit(learner, file):
    loaded = FusionLearner.load(file)
    assert not loaded.training
    assert dict(loaded.hparams) == dict(learner.hparams)
    state = loaded.state_dict()
    assert state.keys() == learner.state_dict().keys()
    assert all(torch.equal(value, state[name]) and value.dtype == state[name].dtype for name, value in
               learner.state_dict().items())  # fmt: skip
    said = {key: json.loads(value) for key, value in header(file).items()}
    assert said["learner"] == "FusionLearner"
    assert said["hyperparameters"]["estimator"] == SETTINGS["estimator"]
    assert (said["command"], said["seed"], said["note"]) == ("python train.py", 3, "a test")
    assert said["versions"].keys() == {"sensing", "torch", "python"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_broken_files_are_refused(learner, file, tmp_path):
    data = file.read_bytes()
    broken = {"empty": b"", "text": b"no weights at all", "short": data[: len(data) // 2], "header": data[:5]}
    broken["flipped"] = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    for name, content in broken.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"checkpoint must .*{name}\.safetensors"):
            FusionLearner.load(path)
    bare, text = tmp_path / "bare.safetensors", header(file)
    for metadata in (None, {"learner": "FusionLearner"}, {"learner": "not JSON"}):
        save_file(load_file(file), bare, metadata)
        with pytest.raises(CheckpointError, match=r"weights that train\.py exported, got .*bare"):
            FusionLearner.load(bare)
    for strange in ({"estimator": {"hidden": 5, "layers": 1}}, {"estimator": {"nonsense": 1}}):
        changed = json.dumps({**SETTINGS, **strange, "trained_on": None})
        save_file(load_file(file), bare, text | {"hyperparameters": changed})
        with pytest.raises(CheckpointError, match="this version's architecture"):
            FusionLearner.load(bare)
    with pytest.raises(CheckpointError, match=r"checkpoint must be of Learner, got one of FusionLearner"):
        Learner.load(file)
    with torch.no_grad():
        next(learner.parameters()).fill_(torch.nan)
    kept = file.read_bytes()
    with pytest.raises(CheckpointError, match=r"real and finite, got fusion\.sites\.0\.inner\.weight"):
        learner.export(file)
    assert file.read_bytes() == kept
    with pytest.raises(CheckpointError, match=r"NAME\.safetensors, got net\.pt"):
        learner.export("net.pt")


def test_names_stand_for_shipped_files(learner, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    for name in ("hall", "fusion"):
        learner.export(tmp_path / f"{name}.safetensors")
    assert shipped() == ["fusion", "hall"]
    assert checkpoint_path("hall") == tmp_path / "hall.safetensors"
    assert torch.equal(next(FusionLearner.load("fusion").parameters()), next(learner.parameters()))
    assert options.checkpoint({"checkpoint": "hall"}, "checkpoint") == tmp_path / "hall.safetensors"
    assert options.checkpoint({"checkpoint": None}, "checkpoint") is None
    assert "does not record" in trained_elsewhere("hall", {})
    for wrong in ("hal", "hall.ckpt", str(tmp_path), ""):
        expected = rf"checkpoint must be an existing file or one of the shipped \['fusion', 'hall'\], got '{wrong}'"
        with pytest.raises(CheckpointError, match=expected):
            FusionLearner.load(wrong)
    with pytest.raises(ConfigError, match=r"task\.x must be the path of a checkpoint or one of the shipped"):
        options.checkpoint({"task": {"x": 3}}, "task.x")


def test_training_exports_its_best_weights_and_evaluation_reads_them(tmp_path, capsys):
    path = tmp_path / "here/net.safetensors"
    quiet = ["callbacks.progress=null", "trainer.enable_progress_bar=false", "logger=none"]
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        made = [f"output_dir={tmp_path / 'run'}", f"export={path}", "note=small"]
        settings = compose("train", [*TRAIN, *quiet, *made])
    runs.train(settings)
    best = FusionLearner.load(tmp_path / "run/checkpoints/best.ckpt")
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in read_weights(path).state.items())
    said = read_weights(path).about
    assert said["note"] == "small"
    assert said["config"]["estimator"]["hidden"] == 4
    assert str(tmp_path) not in json.dumps(said)
    assert f"exported: {path}" in capsys.readouterr().out
    task = ["task=fusion", "task.num_drops=4", "task.num_samples=50", "task.methods=[equal,learned]"]
    small = ["drops.domain.spacing_m=6", "task.modalities=[hybrid]", f"task.checkpoints.learned={path}"]
    runs.evaluate(composed(*task, *small, folder=tmp_path / "out"))
    assert "learned" in (tmp_path / "out/fusion.csv").read_text()


def test_export_needs_its_suffix(tmp_path):
    with pytest.raises(ConfigError, match=r"export must be a file NAME\.safetensors or null, got 'net\.pt'"):
        runs.train(config(tmp_path, "export=net.pt"))


@pytest.mark.parametrize("name", shipped())
def test_shipped_weights_say_what_made_them(name):
    weights = read_weights(FOLDER / f"{name}.safetensors")
    kind = getattr(learning, weights.learner)
    assert kind.load(name) is not None
    assert weights.about["command"].startswith("python train.py")
    assert weights.about["seed"] == weights.about["config"]["seed"]
    assert weights.about["note"]
    assert weights.about["versions"].keys() == {"sensing", "torch", "python"}
    assert all(value.is_floating_point() for value in weights.state.values())
    assert not re.search(r'[" =]/\w', json.dumps([weights.about, weights.hyperparameters]))  # no folder of a machine


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.safetensors")) < 2e6
