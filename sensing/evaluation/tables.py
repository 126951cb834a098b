"""The numbers of an evaluation as files: results.csv and per_scene.npz.

results.csv has one row per estimator, SNR, metric and statistic. `num_scenes` is the number of scenes behind the value,
those with a finite error; `seed` and, where it is not known, `snr_db` are empty for a file. Bounds are rows of the
estimators `peb` and `peb_sync` (offsets known), with the statistics of the per-scene bound. Mean
and rms of the NMSE are those of the linear NMSE, given in dB.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sensing.data.atomic import atomic_path
from sensing.evaluation.result import SweepResult
from sensing.evaluation.statistics import STATISTICS, Floats, statistic

COLUMNS = ("estimator", "snr_db", "metric", "statistic", "value", "num_scenes", "seed")
ERRORS = ("ue_error_m", "scatterer_error_m", "clock_offset_error_s", "gospa_m")
THRESHOLDS_M = {"below_1m_fraction": 1.0, "below_3m_fraction": 3.0}


class Row(NamedTuple):
    """One line of results.csv."""

    estimator: str
    snr_db: float | None
    metric: str
    statistic: str
    value: float
    num_scenes: int


def rows(result: SweepResult) -> Iterator[Row]:
    """All rows of results.csv, by estimator and SNR; bounds last."""
    for name in result.names:
        for at, snr in enumerate(result.snr_db):
            for metric, values in _distributions(result, name, at):
                for stat in STATISTICS:
                    yield Row(name, snr, metric, stat, *statistic(values, stat, metric == "channel_nmse_db"))
            for metric, hits in _shares(result, name, at):
                yield Row(name, snr, metric, "mean", *statistic(hits, "mean"))
            yield from _converged_rows(result, name, at)
    for name, bound in result.bounds.items():
        for at, snr in enumerate(result.snr_db):
            for metric, values in bound.items():
                for stat in STATISTICS:
                    yield Row(name, snr, metric, stat, *statistic(values[at], stat))


def _distributions(result: SweepResult, name: str, at: int) -> Iterator[tuple[str, Floats]]:
    scores, ratio, flagged = result.scores[name], result.over_bound(name), result.flagged(name)
    for metric in (*ERRORS, "channel_nmse_db"):
        if metric in scores:
            yield metric, scores[metric][at]
    if ratio is not None:
        yield "ue_error_over_peb", ratio[at]
    yield "time_s", scores["time_s"][at]
    if flagged is not None and "ue_error_m" in scores:
        yield "ue_error_unflagged_m", scores["ue_error_m"][at][~flagged[at]]


def _shares(result: SweepResult, name: str, at: int) -> Iterator[tuple[str, Floats]]:
    scores, converged, flagged = result.scores[name], result.converged(name), result.flagged(name)
    if converged is not None:
        yield "converged_fraction", converged[at].astype(float)
    if "ue_error_m" in scores:
        for metric, limit in THRESHOLDS_M.items():
            yield metric, (scores["ue_error_m"][at] < limit).astype(float)
    if "covered" in scores:
        yield "covered_95_fraction", scores["covered"][at]
    if flagged is not None:
        yield "flagged_fraction", flagged[at].astype(float)


def _converged_rows(result: SweepResult, name: str, at: int) -> Iterator[Row]:
    ratio, converged = result.over_bound(name), result.converged(name)
    if ratio is not None and converged is not None:
        kept = ratio[at][converged[at]]
        yield Row(name, result.snr_db[at], "ue_error_over_peb_converged", "rms", *statistic(kept, "rms"))


def write_results(result: SweepResult, path: str | Path) -> Path:
    """Write results.csv; it appears whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    seed = "" if result.seed is None else str(result.seed)
    for row in rows(result):
        snr = "" if row.snr_db is None else f"{row.snr_db:g}"
        writer.writerow([row.estimator, snr, row.metric, row.statistic, f"{row.value:.10g}", row.num_scenes, seed])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue())
    return Path(path)


def write_per_scene(result: SweepResult, path: str | Path) -> Path:
    """Write per_scene.npz: `snr_db` [snr], `scene` [scene]; per estimator and bound `name/quantity` [snr, scene]."""
    arrays: dict[str, np.ndarray] = {
        "snr_db": np.array([np.nan if snr is None else snr for snr in result.snr_db]),
        "scene": np.array(result.scenes),
    }
    for name, quantities in (result.scores | result.bounds).items():
        arrays |= {f"{name}/{quantity}": values for quantity, values in quantities.items()}
    for name in result.names:
        derived = {"ue_error_over_peb": result.over_bound(name), "converged": result.converged(name)}
        arrays |= {f"{name}/{quantity}": values for quantity, values in derived.items() if values is not None}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return Path(path)
