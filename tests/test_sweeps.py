"""Sweeps: records of jobs, what is not run again, the table, the figure and the line at the end."""

import csv
import statistics

import pytest
import torch
from omegaconf import OmegaConf

from sensing.errors import ConfigError, NumericalError
from sensing.sweeps.figure import draw_jobs
from sensing.sweeps.jobs import read_jobs, write_jobs
from sensing.sweeps.record import DONE, FAILED, RUNNING, Record, read_record, recorded, write_record
from sensing.sweeps.summary import Setting, print_jobs, settings, spread, write_settings


class Task:
    """Stands for training: counts its calls and remembers where it resumed from."""

    def __init__(self, result):
        self.result, self.calls, self.resumed = result, 0, []

    def __call__(self, config):
        self.calls += 1
        self.resumed.append(config.ckpt_path)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def save_checkpoint(folder, name="last.ckpt"):
    """What torch.save writes is an archive."""
    path = folder / "checkpoints" / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": {}}, path)
    return path


def configuration(**more):
    return OmegaConf.create({"ckpt_path": None, "objective": "val/loss", **more})


def test_done_is_not_run_again_and_returns_its_number(tmp_path):
    task = Task(0.25)
    values = [recorded(task, configuration(), tmp_path, ["seed=1", "lr=0.1"]) for _ in range(2)]
    assert values == [0.25, 0.25]
    assert task.calls == 1
    record = read_record(tmp_path)
    assert (record.status, record.value, record.objective) == (DONE, 0.25, "val/loss")


def test_failure_is_kept_with_its_reason_and_runs_again_from_its_checkpoint(tmp_path):
    with pytest.raises(NumericalError):
        recorded(Task(NumericalError("loss must be finite,\ngot nan")), configuration(), tmp_path, ["lr=9"])
    record = read_record(tmp_path)
    assert (record.status, record.reason, record.value) == (FAILED, "NumericalError: loss must be finite,", None)
    again = Task(1.0)
    recorded(again, configuration(), tmp_path, ["lr=9"])
    assert again.resumed == [None]
    write_record(tmp_path, record)
    last = save_checkpoint(tmp_path)
    recorded(again, configuration(), tmp_path, ["lr=9"])
    assert again.resumed == [None, str(last)]
    assert read_record(tmp_path).status == DONE


def test_interrupted_job_continues_and_a_checkpoint_that_is_given_wins(tmp_path):
    save_checkpoint(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        recorded(Task(KeyboardInterrupt()), configuration(), tmp_path, ["lr=1"])
    assert read_record(tmp_path).status == RUNNING
    task = Task(1.0)
    recorded(task, configuration(ckpt_path="mine.ckpt"), tmp_path, ["lr=1"])
    assert task.resumed == ["mine.ckpt"]


def test_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    """Killed in the middle of saving: the job continues from the best one, or from the start."""
    last, best = save_checkpoint(tmp_path), save_checkpoint(tmp_path, "best.ckpt")
    task, whole = Task(1.0), best.read_bytes()
    for kept, wanted in ((whole, str(best)), (whole[:100], None)):
        write_record(tmp_path, Record(["lr=1"], RUNNING))
        last.write_bytes(whole[:-40])
        best.write_bytes(kept)
        recorded(task, configuration(), tmp_path, ["lr=1"])
        assert task.resumed[-1] == wanted
        assert not last.exists()
    assert not best.exists()


def test_new_job_never_resumes(tmp_path):
    """A checkpoint without a record is a used folder, which train.py refuses; it is not taken for one's own."""
    save_checkpoint(tmp_path)
    task = Task(1.0)
    recorded(task, configuration(), tmp_path, ["lr=1"])
    assert task.resumed == [None]


def test_folder_of_another_job_is_refused_unless_that_failed(tmp_path):
    recorded(Task(1.0), configuration(), tmp_path, ["seed=1", "lr=0.1"])
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir must be new .* with a job of lr=0\.1 instead of lr=0\.2"):
        recorded(Task(1.0), configuration(), tmp_path, ["seed=1", "lr=0.2"])
    for number in (0, 1):  # what the failed ones had saved is kept apart
        save_checkpoint(tmp_path)
        write_record(tmp_path, Record(["lr=0.1"], FAILED, "no"))
        task = Task(2.0)
        assert recorded(task, configuration(), tmp_path, ["lr=0.2"]) == 2.0
        assert task.resumed == [None]
        assert (tmp_path / f"checkpoints_failed_{number}/last.ckpt").is_file()
        assert not (tmp_path / "checkpoints").exists()


def test_unreadable_record_counts_as_none(tmp_path):
    (tmp_path / "job.json").write_text('{"overrides": [')
    assert read_record(tmp_path) is None
    assert recorded(Task(3.0), configuration(), tmp_path, []) == 3.0


VALUES = {("0.01", "0"): 2.0, ("0.01", "1"): 3.0, ("0.02", "0"): 1.0, ("0.02", "1"): 5.0}


@pytest.fixture
def sweep(tmp_path):
    """Two step sizes, two seeds; a third step size whose jobs failed and were interrupted."""
    for number, ((lr, seed), value) in enumerate(VALUES.items()):
        overrides = ["scene=hall", f"+optimizer.lr={lr}", f"seed={seed}"]
        write_record(tmp_path / str(number), Record(overrides, DONE, "", 1.0, value, "val/loss"))
        rows = [f"error_over_peb_rms,before,{9 + value}", f"error_over_peb_rms,trained,{10 * value}"]
        (tmp_path / str(number) / "training.csv").write_text("\n".join(["metric,statistic,value", *rows]) + "\n")
    lost = ["scene=hall", "+optimizer.lr=0.5"]
    write_record(tmp_path / "4", Record([*lost, "seed=0"], FAILED, "NumericalError: layer 3", 2.0, None, "val/loss"))
    write_record(tmp_path / "10", Record([*lost, "seed=1"], RUNNING, objective="val/loss"))
    return tmp_path


def test_jobs_are_in_numerical_order_with_what_varied(sweep):
    jobs = read_jobs(sweep)
    assert [job.name for job in jobs] == ["0", "1", "2", "3", "4", "10"]
    assert [tuple(job.varied.values()) for job in jobs[:4]] == list(VALUES)
    assert list(jobs[0].varied) == ["optimizer.lr", "seed"]


def test_settings_are_means_over_seeds_with_the_lowest_first(sweep):
    found = settings(read_jobs(sweep))
    assert [each.varied[0][1] for each in found] == ["0.01", "0.02"]
    values = found[Setting((("optimizer.lr", "0.02"),), ("", "", ""))]
    assert values["val/loss", "objective"] == [1.0, 5.0]
    assert values["error_over_peb_rms", "trained"] == [10.0, 50.0]
    mean, deviation = statistics.mean([1.0, 5.0]), statistics.stdev([1.0, 5.0])
    assert spread(values["val/loss", "objective"]) == f"{mean:.4g} +- {deviation:.2g}"
    assert spread([1.5]) == "1.5"
    write_settings(sweep / "mean.csv", found)
    with (sweep / "mean.csv").open(newline="") as file:
        rows = {(row["optimizer.lr"], row["statistic"]): row for row in csv.DictReader(file)}
    row = rows["0.02", "objective"]
    assert (float(row["mean"]), float(row["standard_deviation"]), row["jobs"]) == (mean, deviation, "2")


def test_table_holds_every_number_and_every_reason(sweep):
    jobs = read_jobs(sweep)
    write_jobs(sweep / "sweep.csv", jobs)
    with (sweep / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 + 2
    kept = {(row["optimizer.lr"], row["seed"]): float(row["value"]) for row in rows if row["statistic"] == "trained"}
    assert kept == {key: 10 * value for key, value in VALUES.items()}
    assert {row["job"]: (row["status"], row["reason"]) for row in rows if not row["metric"]} == {
        "4": ("failed", "NumericalError: layer 3"),
        "10": ("running", ""),
    }


def test_summary_names_failures_the_best_job_and_how_to_go_on(sweep, capsys):
    jobs = read_jobs(sweep)
    print_jobs(jobs, settings(jobs), sweep)
    shown = capsys.readouterr().out
    assert "failed: job 4 (optimizer.lr=0.5 seed=0): NumericalError: layer 3" in shown
    assert "4 of 6 jobs done, 1 failed, 1 interrupted; lowest val/loss 1 in job 2 (optimizer.lr=0.02 seed=0)" in shown
    assert f"hydra.sweep.dir={sweep} continues it" in shown


def test_figure_is_drawn_for_objectives_and_for_evaluations(sweep, tmp_path_factory):
    assert draw_jobs(sweep / "sweep.png", read_jobs(sweep))
    assert (sweep / "sweep.png").read_bytes().startswith(b"\x89PNG")
    folder = tmp_path_factory.mktemp("evaluations")
    for number, scene in enumerate(("hall", "urban")):
        write_record(folder / str(number), Record([f"scene={scene}"], DONE))
        assert not draw_jobs(folder / "sweep.png", read_jobs(folder))
    for number in range(2):
        rows = [
            f"{name},{snr},ue_error_m,median,{number + snr}" for name in ("classical", "unfolded") for snr in (0, 9)
        ]
        text = "\n".join(["estimator,snr_db,metric,statistic,value", *rows]) + "\n"
        (folder / str(number) / "results.csv").write_text(text)
    assert draw_jobs(folder / "sweep.png", read_jobs(folder))


@pytest.mark.parametrize("values", [("1", "nan", "3"), ("1", "10", "inf"), ("-1", "0", "1e400")])
def test_figure_is_drawn_for_values_that_have_no_place_on_an_axis(tmp_path, values):
    for number, value in enumerate(values):
        record = Record([f"optimizer.lr={value}"], DONE, value=float(number), objective="val/loss")
        write_record(tmp_path / str(number), record)
    assert draw_jobs(tmp_path / "sweep.png", read_jobs(tmp_path))
