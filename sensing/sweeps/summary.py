"""What a sweep prints at its end: a table over the repetitions of each setting, jobs that failed, and one line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sensing.evaluation.csv_file import write_csv
from sensing.sweeps.jobs import Job
from sensing.sweeps.record import DONE, FAILED

REPETITION = "seed"
MOST_ROWS = 60
LABELS = ("estimator", "snr_db", "sigma_over_bandwidth")
HEADLINES = {  # of results.csv and of training.csv
    "median user error [m]": ("ue_error_m", "median"),
    "rms error over PEB": ("ue_error_over_peb", "rms"),
    "converged": ("converged_fraction", "mean"),
    "NMSE [dB]": ("channel_nmse_db", "mean"),
    "error over PEB, before": ("error_over_peb_rms", "before"),
    "error over PEB, trained": ("error_over_peb_rms", "trained"),
    "90 % error, before [m]": ("error_m_90", "before"),
    "90 % error, trained [m]": ("error_m_90", "trained"),
}


class Setting(NamedTuple):
    """Everything that tells one row of the table from another; the repetitions are its values."""

    varied: tuple[tuple[str, str], ...]
    labels: tuple[str, ...]  # of LABELS; empty texts where a table has no such column


Measure = tuple[str, str]
"""Metric and statistic."""
Settings = dict[Setting, dict[Measure, list[float]]]


def settings(jobs: Sequence[Job]) -> Settings:
    """Numbers by setting and measure, one of each job that repeats the setting; the lowest objective comes first."""
    found: Settings = {}
    for job in jobs:
        varied = tuple(item for item in job.varied.items() if item[0] != REPETITION)
        for labels, measure, value in _numbers(job):
            found.setdefault(Setting(varied, labels), {}).setdefault(measure, []).append(value)
    objective = next((_objective(job) for job in jobs if job.record.value is not None), ("", ""))

    def place(values: dict[Measure, list[float]]) -> float:
        mean = float(np.mean(values.get(objective, [0.0])))
        return mean if np.isfinite(mean) else np.inf  # last, not anywhere

    return dict(sorted(found.items(), key=lambda item: place(item[1])))


def _objective(job: Job) -> Measure:
    return job.record.objective, "objective"


def _numbers(job: Job) -> Iterator[tuple[tuple[str, ...], Measure, float]]:
    """Labels, measure and value of what a finished job has found."""
    if job.record.status != DONE:
        return
    if job.record.value is not None:
        yield ("",) * len(LABELS), _objective(job), job.record.value
    for row in job.results:
        if {"metric", "statistic", "value"} <= row.keys():
            measure = row["metric"], row["statistic"]
            yield tuple(row.get(label, "") for label in LABELS), measure, float(row["value"])


def write_settings(path: Path, found: Settings) -> None:
    """Write mean, standard deviation and number of the jobs that repeat each setting, for every measure."""
    heads = [*(key for key, _ in next(iter(found)).varied), *LABELS, "metric", "statistic"]
    rows = [
        [
            *(value for _, value in setting.varied),
            *(*setting.labels, *measure, np.mean(numbers)),
            *(np.std(numbers, ddof=1) if len(numbers) > 1 else None, len(numbers)),
        ]
        for setting, values in found.items()
        for measure, numbers in values.items()
    ]
    write_csv(path, [*heads, "mean", "standard_deviation", "jobs"], rows)


def print_jobs(jobs: Sequence[Job], found: Settings, folder: Path) -> None:
    """Print the table of settings, the failures with their reasons, and the line that sums up."""
    console = Console()
    console = console if console.is_terminal else Console(width=max(console.width, 120))
    if found:
        console.print(_table(found))
    if len(found) > MOST_ROWS:
        print(f"... and {len(found) - MOST_ROWS} more in sweep.csv")
    failed = [job for job in jobs if job.record.status == FAILED]
    for job in failed:
        print(f"failed: job {job.name} ({_name(job)}): {job.record.reason}")
    done = [job for job in jobs if job.record.status == DONE]
    unfinished = len(jobs) - len(done) - len(failed)
    counts = f"{len(done)} of {len(jobs)} jobs done, {len(failed)} failed, {unfinished} interrupted"
    print(f"sweep: {counts}{_best(done)}: {folder / 'sweep.csv'}")
    if len(done) < len(jobs):
        more = " and a larger hydra.sweeper.n_trials" if (folder / "study.db").exists() else ""  # failed trials count
        print(f"the same command with hydra.sweep.dir={folder}{more} continues it: what is done is not run again")


def _best(done: Sequence[Job]) -> str:
    values = [(job.record.value, job) for job in done if job.record.value is not None]
    finite = [(value, job) for value, job in values if np.isfinite(value)]
    if not finite:
        return ""
    value, job = min(finite, key=lambda each: each[0])
    return f"; lowest {job.record.objective} {value:.6g} in job {job.name} ({_name(job)})"


def _name(job: Job) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in job.varied.items()) or "no override"


def _table(found: Settings) -> Table:
    """Mean over the repetitions, with their standard deviation."""
    keys = [key for key, _ in next(iter(found)).varied]
    shown = [at for at in range(len(LABELS)) if len({each.labels[at] for each in found}) > 1]
    measures = dict.fromkeys(measure for values in found.values() for measure in values)
    names = {key: head for head, key in HEADLINES.items()}
    heads = {each: names.get(each, each[0]) for each in measures if each in names or each[1] == "objective"}
    repeated = max(len(each) for values in found.values() for each in values.values())
    table = Table(title="mean and standard deviation over seeds" if repeated > 1 else None, title_justify="left")
    for name in (*keys, *(LABELS[at] for at in shown), "jobs", *heads.values()):
        table.add_column(escape(name), justify="right", overflow="fold")
    for setting, values in list(found.items())[:MOST_ROWS]:
        labels = [*(escape(_short(value)) for _, value in setting.varied), *(setting.labels[at] for at in shown)]
        count = max(map(len, values.values()))
        table.add_row(*labels, str(count), *(spread(values.get(measure, [])) for measure in heads))
    return table


def _short(text: str) -> str:
    """A number to four digits, anything else as it is."""
    try:
        return f"{float(text):.4g}" if len(text) > 6 else text
    except ValueError:
        return text


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation of one repetition where there are several."""
    if not values:
        return ""
    mean = f"{np.mean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} +- {np.std(values, ddof=1):.2g}"
