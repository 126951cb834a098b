"""What a sweep prints at its end: a table over the repetitions of each setting, jobs that failed, and one line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from sensing.sweeps.jobs import Job
from sensing.sweeps.record import DONE, FAILED

REPETITION = "seed"
MOST_ROWS = 60
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
    estimator: str
    snr_db: str


def settings(jobs: Sequence[Job]) -> dict[Setting, dict[str, list[float]]]:
    """Numbers by setting and headline, one of each job that repeats the setting; the lowest objective comes first."""
    found: dict[Setting, dict[str, list[float]]] = {}
    for job in jobs:
        varied = tuple(item for item in job.varied.items() if item[0] != REPETITION)
        for estimator, snr, head, value in _numbers(job):
            found.setdefault(Setting(varied, estimator, snr), {}).setdefault(head, []).append(value)
    name = next((job.record.objective for job in jobs if job.record.value is not None), "")
    return dict(sorted(found.items(), key=lambda item: float(np.mean(item[1].get(name, [0.0])))))


def _numbers(job: Job) -> Iterator[tuple[str, str, str, float]]:
    """Estimator, SNR, headline and value of what a finished job has found."""
    if job.record.status != DONE:
        return
    if job.record.value is not None:
        yield "", "", job.record.objective, job.record.value
    names = {key: head for head, key in HEADLINES.items()}
    for row in job.results:
        head = names.get((row.get("metric", ""), row.get("statistic", "")))
        if head is not None:
            yield row.get("estimator", ""), row.get("snr_db", ""), head, float(row["value"])


def print_jobs(jobs: Sequence[Job], folder: Path) -> None:
    """Print the table, the failures with their reasons, and the line that sums up."""
    console, found = Console(), settings(jobs)
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
        print(f"the same command with hydra.sweep.dir={folder} continues it: what is done is not run again")


def _best(done: Sequence[Job]) -> str:
    values = [(job.record.value, job) for job in done if job.record.value is not None]
    finite = [(value, job) for value, job in values if np.isfinite(value)]
    if not finite:
        return ""
    value, job = min(finite, key=lambda each: each[0])
    return f"; lowest {job.record.objective} {value:.6g} in job {job.name} ({_name(job)})"


def _name(job: Job) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in job.varied.items()) or "no override"


def _table(found: dict[Setting, dict[str, list[float]]]) -> Table:
    """Mean over the repetitions, with their standard deviation."""
    keys = [key for key, _ in next(iter(found)).varied]
    extra = [name for name in ("estimator", "snr_db") if any(getattr(each, name) for each in found)]
    heads = list(dict.fromkeys(head for values in found.values() for head in values))
    repeated = max(len(each) for values in found.values() for each in values.values())
    table = Table(title="mean and standard deviation over seeds" if repeated > 1 else None, title_justify="left")
    for name in (*keys, *extra, "jobs", *heads):
        table.add_column(name, justify="right", overflow="fold")
    for setting, values in list(found.items())[:MOST_ROWS]:
        labels = [*(_short(value) for _, value in setting.varied), *(getattr(setting, name) for name in extra)]
        count = max(map(len, values.values()))
        table.add_row(*labels, str(count), *(spread(values.get(head, [])) for head in heads))
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
