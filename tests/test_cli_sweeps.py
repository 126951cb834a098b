"""Sweeps as a user runs them: every launcher and sweeper ends with a table and a figure, and can be continued."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.test_cli import run

ARRAY = ["array.num_y=3", "array.num_z=2", "ofdm.num_subcarriers=256"]
EVALUATE = [*ARRAY, "estimators=[nomp_ls]", "eval.snr_db=[10]", "eval.progress=false"]
TRAIN = [
    *(*ARRAY, "estimator.unrolled.num_iterations=1", "data.val_scenes=2", "data.test_scenes=2", "data.batch_size=2"),
    *("data.scenes_per_epoch=4", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none"),
]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_failing_job_stops_no_sweep_and_what_is_done_is_not_run_again(tmp_path):
    """Basic launcher: the job after the bad one runs, the exit code is 1, the value can be mended and the rest kept."""
    arguments = ["-m", *EVALUATE, "hydra.sweep.dir=sweep"]
    done = run("evaluate.py", *arguments, "eval.num_scenes=-1,1", cwd=tmp_path, code=1)
    assert "eval.num_scenes must be" in done.stderr
    assert "failed: job 0 (eval.num_scenes=-1): ConfigError: eval.num_scenes must be" in done.stdout
    assert "sweep: 1 of 2 jobs done, 1 failed, 0 interrupted: sweep/sweep.csv" in done.stdout
    assert (tmp_path / "sweep/sweep.png").read_bytes().startswith(b"\x89PNG")
    report = tmp_path / "sweep/1/report.html"
    rows = table(tmp_path / "sweep")
    assert rows[0]["reason"].startswith("ConfigError: eval.num_scenes")
    assert {row["eval.num_scenes"] for row in rows if row["metric"] == "channel_nmse_db"} == {"1"}
    before = report.stat().st_mtime_ns
    mended = run("evaluate.py", *arguments, "eval.num_scenes=2,1", cwd=tmp_path)
    assert "sweep: 2 of 2 jobs done" in mended.stdout
    assert report.stat().st_mtime_ns == before
    assert {row["eval.num_scenes"] for row in table(tmp_path / "sweep")} == {"1", "2"}


def test_jobs_of_a_sweep_do_not_write_over_each_others_weights(tmp_path):
    done = run("train.py", "-m", *TRAIN, "seed=0,1", "export=w.safetensors", "hydra.sweep.dir=s", cwd=tmp_path, code=1)
    assert "export must differ from job to job of a sweep" in done.stderr
    assert not (tmp_path / "w.safetensors").exists()
    run("train.py", "-m", *TRAIN, "seed=0,1", "export=w${seed}.safetensors", "hydra.sweep.dir=t", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["w0.safetensors", "w1.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin", "more"),
    [
        ("joblib", "hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=10"]),
    ],
)
def test_other_launchers_end_with_the_same_table(tmp_path, launcher, plugin, more):
    pytest.importorskip(plugin, reason=f"the launcher {launcher} is not installed")
    arguments = ["-m", *EVALUATE, f"hydra/launcher={launcher}", *more, "hydra.sweep.dir=sweep", "eval.num_scenes=1"]
    done = run("evaluate.py", *arguments, "seed=0,-1,1", cwd=tmp_path, code=1)
    assert "failed: job 1 (seed=-1): ConfigError: seed must be a whole number >= 0, got -1" in done.stdout
    assert "sweep: 2 of 3 jobs done" in done.stdout
    assert {row["seed"] for row in table(tmp_path / "sweep") if row["status"] == "done"} == {"0", "1"}


@pytest.mark.slow
def test_search_is_continued_and_its_failures_are_reported(tmp_path):
    optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    space = ["hydra/sweeper=optuna_study", "hydra.sweep.dir=sweep", "optimizer.lr=choice(-1,0.01)"]
    first = run("train.py", "-m", *TRAIN, *space, "hydra.sweeper.n_trials=2", cwd=tmp_path)
    again = run("train.py", "-m", *TRAIN, *space, "hydra.sweeper.n_trials=3", cwd=tmp_path)
    folder = tmp_path / "sweep"
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/study.db")
    assert {trial.state.name for trial in study.trials} == {"FAIL", "COMPLETE"}
    assert "of 2 jobs done" in first.stdout
    assert "of 3 jobs done" in again.stdout
    for trial in study.trials:
        record = json.loads((folder / str(trial.number) / "job.json").read_text())
        assert f"optimizer.lr={trial.params['optimizer.lr']}" in record["overrides"]
        assert record["value"] == trial.value
        if trial.state.name == "FAIL":
            assert "optimizer.lr must be a number > 0" in trial.user_attrs["reason"]
    done = {row["job"] for row in table(folder) if row["status"] == "done"}
    assert done == {str(trial.number) for trial in study.trials if trial.state.name == "COMPLETE"}


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path):
    """Gloo averages the gradients of two halves of each batch; what travels is real."""
    steps = ["data.scenes_per_epoch=16", "data.detected_every=2", "trainer.accumulate_grad_batches=1", "seed=3"]
    common = [*TRAIN, *steps, "estimator.unrolled.num_iterations=2", "optimizer.lr=0.01"]
    run("train.py", *common, "data.batch_size=4", "hydra.run.dir=one", cwd=tmp_path)
    pair = ["trainer=ddp", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
    run("train.py", *common, *pair, "data.batch_size=2", "hydra.run.dir=two", cwd=tmp_path)
    one, two = (torch.load(tmp_path / f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 4
    assert not any(value.is_complex() for value in one["state_dict"].values())
    moved = 0
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-7, atol=1e-9, msg=name)
        moved += int((value.abs() > 1e-3).any())
    assert moved > 5  # the corrections started at zero
    measures = [(tmp_path / run / "training.csv").read_text().splitlines()[1:] for run in ("one", "two")]
    for first, second in zip(*measures, strict=True):
        assert float(first.split(",")[2]) == pytest.approx(float(second.split(",")[2]), rel=1e-6)
