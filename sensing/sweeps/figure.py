"""The figure of a sweep: what its jobs found against each override that varied."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from sensing.data.atomic import atomic_path
from sensing.evaluation.style import BOUNDS, legend_below, log_scale, marks, panels
from sensing.sweeps.jobs import Job
from sensing.sweeps.record import DONE, FAILED
from sensing.sweeps.summary import REPETITION

MOST_PANELS = 6
LONGEST = 24
"""Characters of a name at its axis; longer ones are cut, and all are turned where they have no room side by side."""
SNR_DB = 10.0
"""Of the evaluations the figure shows the SNR that is nearest to this."""
Series = dict[str, dict[int, float]]
"""Value by name and position of the job."""


def draw_jobs(path: Path, jobs: Sequence[Job]) -> bool:
    """Write the figure; returns False where no job has a number to show.

    A panel for each override that varied, but the seed; a long sweep with an objective has one more, of its progress.
    """
    label, series = _objective(jobs) or _errors(jobs)
    if not series:
        return False
    varied = list(jobs[0].varied)
    keys = [key for key in varied if key != REPETITION][:MOST_PANELS] or varied or ["job"]
    progress = len(jobs) > 8 and any(job.record.value is not None for job in jobs)
    figure, axes = panels(len(keys) + progress, columns=min(len(keys) + progress, 3))
    if progress:
        _progress(axes[0], jobs, label)
    for panel, key in zip(axes[progress:], keys, strict=True):
        _against(panel, key, jobs, series)
        panel.set(xlabel=key, ylabel=label)
    legend_below(figure, axes)
    with atomic_path(path) as part:
        figure.savefig(part, format="png")
    return True


def _objective(jobs: Sequence[Job]) -> tuple[str, Series] | None:
    """What the sweep minimises."""
    found = {n: job.record.value for n, job in enumerate(jobs) if job.record.value is not None}
    finite = {n: value for n, value in found.items() if np.isfinite(value)}
    return (jobs[next(iter(finite))].record.objective, {"job": finite}) if finite else None


def _errors(jobs: Sequence[Job]) -> tuple[str, Series]:
    """Median user error of each estimator of an evaluation, else the NMSE."""
    for label, metric, statistic in (
        ("median user error [m]", "ue_error_m", "median"),
        ("channel NMSE [dB]", "channel_nmse_db", "mean"),
    ):
        rows = [
            (n, row)
            for n, job in enumerate(jobs)
            for row in job.results
            if job.record.status == DONE and (row.get("metric"), row.get("statistic")) == (metric, statistic)
        ]
        if rows:
            snrs = {row["snr_db"] for _, row in rows if row.get("snr_db")}
            shown = min(snrs, key=lambda snr: abs(float(snr) - SNR_DB), default="")
            series: Series = {}
            for n, row in rows:
                if row.get("snr_db", "") == shown:
                    series.setdefault(row["estimator"], {})[n] = float(row["value"])
            return f"{label} at {shown} dB" if shown else label, series
    return "", {}


def _progress(axes: Axes, jobs: Sequence[Job], label: str) -> None:
    """The objective job by job, with the lowest so far."""
    values = np.array([np.nan if job.record.value is None else job.record.value for job in jobs])
    axes.plot(values, "o", color="#0072B2", markersize=4.5, label="job")
    axes.step(range(len(jobs)), np.fmin.accumulate(values), where="post", color="#D55E00", label="lowest so far")
    _mark_failed(axes, jobs, list(range(len(jobs))))
    axes.set(xlabel="job", ylabel=label)


def _against(axes: Axes, key: str, jobs: Sequence[Job], series: Series) -> None:
    """All series against one override: numbers where all its values are, names in their order otherwise."""
    texts = [job.varied.get(key, job.name) for job in jobs]
    numbers = _as_numbers(texts)
    names = list(dict.fromkeys(texts))
    x = [names.index(text) for text in texts] if numbers is None else numbers
    for name, values in series.items():
        color, marker, label = _look(name, list(series))
        at = [x[n] for n in values]
        places = sorted(set(at))
        axes.plot(at, list(values.values()), marker, color=color, markersize=4.5, label=label)
        if numbers is not None and (1 < len(places) < len(at) or len(series) > 1):
            means = [np.mean([value for n, value in values.items() if x[n] == each]) for each in places]
            axes.plot(places, means, color=color, linewidth=1.2, label="mean" if len(series) == 1 else None)
    _mark_failed(axes, jobs, x)
    if numbers is None:
        shown = [each if len(each) <= LONGEST else f"{each[: LONGEST - 1]}…" for each in names]
        if len(set(shown)) < len(names):  # long ones that begin alike: their first job, which sweep.csv explains
            shown = [f"job {jobs[texts.index(each)].name}" for each in names]
        axes.set_xticks(range(len(names)), shown)
        if sum(map(len, shown)) > LONGEST:
            axes.tick_params("x", rotation=30)
            for tick in axes.get_xticklabels():
                tick.set_horizontalalignment("right")
    elif min(x) > 0 and max(x) >= 10 * min(x):
        log_scale(axes, "x")
    elif len(names) <= 5 and max(map(len, names)) <= 5:
        axes.set_xticks(sorted(set(x)))


def _look(name: str, names: Sequence[str]) -> tuple[str, str, str]:
    """Colour, marker and label of a series."""
    if name in BOUNDS:
        return BOUNDS[name][0], "_", BOUNDS[name][2]
    return *(marks(name, names) if len(names) > 1 else ("#0072B2", "o")), name


def _as_numbers(texts: Sequence[str]) -> list[float] | None:
    """None where a value is no number, or has no place on an axis."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _mark_failed(axes: Axes, jobs: Sequence[Job], x: Sequence[float]) -> None:
    """A cross at the lower edge for each job that failed."""
    at = [x[n] for n, job in enumerate(jobs) if job.record.status == FAILED]
    if at:
        axes.plot(at, [0.02] * len(at), "x", color="#B22222", transform=axes.get_xaxis_transform(), label="failed")
