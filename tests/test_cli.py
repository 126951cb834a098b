"""The two commands as a user runs them: in a subprocess, from a folder of their own."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COLUMNS = ["estimator", "snr_db", "metric", "statistic", "value", "num_scenes", "seed"]


def run(script: str, *arguments: str, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python train.py ...` or `python evaluate.py ...`, with an exit code that must come."""
    inherited = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_lists_groups_and_examples(script, tmp_path):
    shown = run(script, "--help", cwd=tmp_path).stdout
    assert "scene: hall, hall_hard, urban" in shown
    assert f"python {script}" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_does_not_import_torch(command, tmp_path):
    """What takes seconds to import is imported inside the task."""
    code = f"import sys, sensing.cli.{command}; print([m for m in ('torch', 'lightning', 'scipy') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_unknown_key_names_itself(script, tmp_path):
    said = run(script, "sede=3", cwd=tmp_path, code=1).stderr
    assert "Could not override 'sede'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval.num_scenes=-3"], "ConfigError: eval.num_scenes must be a whole number >= 1, got -3"),
        (["estimators=[best]"], "got unknown ['best']"),
        (["data=file", "data.path=absent.h5"], "ConfigError: data.path must be an existing file, got 'absent.h5'"),
        (["scene.sampler.num_shared=-1", "estimators=[nomp_ls]"], "(in scene.sampler)"),
    ],
)
def test_bad_value_ends_with_one_line_and_leaves_no_results(arguments, message, tmp_path):
    done = run("evaluate.py", *arguments, "hydra.run.dir=out", cwd=tmp_path, code=1)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.csv"))


def test_traceback_on_request(tmp_path):
    done = run("evaluate.py", "eval.num_scenes=-3", "hydra.run.dir=out", cwd=tmp_path, code=1, HYDRA_FULL_ERROR="1")
    assert "Traceback" in done.stderr


def test_truncated_file_is_a_file_format_error(tmp_path):
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    arguments = ["data=file", "data.path=broken.h5", "estimators=[nomp_ls]", "hydra.run.dir=out"]
    done = run("evaluate.py", *arguments, cwd=tmp_path, code=1)
    assert "FileFormatError: broken.h5: must be a complete, readable HDF5 file" in done.stderr


SMALL = ["array.num_y=4", "array.num_z=4", "ofdm.num_subcarriers=512", "trainer.enable_progress_bar=false"]


def test_train_then_evaluate_the_checkpoint_it_names(tmp_path):
    """One epoch; the printed command runs as it stands and writes a complete report."""
    trained = run(
        "train.py",
        *SMALL,
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "trainer.limit_val_batches=1",
        "data.batch_size=4",
        "data.test_scenes=4",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert "untrained" in trained.stdout
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    command = re.search(r"evaluate it: python evaluate\.py (.*)", trained.stdout)
    assert command
    run(
        "evaluate.py",
        *command[1].split(),
        "eval.num_scenes=2",
        "eval.snr_db=[10]",
        "hydra.run.dir=report",
        cwd=tmp_path,
    )
    with (tmp_path / "report/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS, "low", "high", "sigma_over_bandwidth"]
    assert {row["estimator"] for row in rows} >= {
        "classical",
        "unfolded",
        "ideal_sync",
        "nomp_ls",
        "genie_lmmse",
        "peb",
    }
    assert {row["metric"] for row in rows} >= {
        *("ue_error_m", "ue_error_over_peb", "scatterer_error_m", "clock_offset_error_s"),
        *("channel_nmse_db", "gospa_m", "converged_fraction", "time_s"),
    }
    report = (tmp_path / "report/report.html").read_text()
    assert "checkpoints/best.ckpt" in report
    assert "trained elsewhere" not in report
    assert (tmp_path / "report/per_scene.npz").is_file()

    # a used folder is refused, unless the run is resumed
    again = run("train.py", *SMALL, "hydra.run.dir=run", cwd=tmp_path, code=1)
    assert "hydra.run.dir must be a new folder (or resume with ckpt_path=)" in again.stderr


def test_fast_dev_run_saves_nothing(tmp_path):
    done = run(
        "train.py",
        *SMALL,
        "trainer.fast_dev_run=true",
        "data.batch_size=4",
        "data.test_scenes=4",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert "no checkpoint was saved" in done.stdout
    assert not list(tmp_path.rglob("*.ckpt"))


def test_nothing_to_learn_is_refused(tmp_path):
    done = run("train.py", *SMALL, "estimator=classical", "hydra.run.dir=run", cwd=tmp_path, code=1)
    assert "ConfigError: estimator must have something to learn" in done.stderr


def test_broken_checkpoint_is_refused(tmp_path):
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    done = run("evaluate.py", "checkpoint=broken.ckpt", "hydra.run.dir=report", cwd=tmp_path, code=1)
    assert "CheckpointError" in done.stderr
    assert not list((tmp_path / "report").glob("*.csv"))
