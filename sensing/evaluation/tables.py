"""The numbers of an evaluation as files: results.csv and per_scene.npz.

results.csv has one row per deviation of the clock offsets, estimator, SNR, metric and statistic. `num_scenes` is the
number of scenes behind the value, those with a finite error; `low` and `high` bound its 95 % confidence interval, empty
where there is none; `seed` and, where it is not known, `snr_db` are empty for a file. Bounds are rows of the estimators
`peb` and `peb_sync` (offsets known), with the statistics of the per-scene bound. Mean and rms of the NMSE are those of
the linear NMSE, given in dB. What the metrics are: `sensing.evaluation.measures`.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensing.data.atomic import atomic_path
from sensing.evaluation.measures import rows
from sensing.evaluation.result import SweepResult

COLUMNS = (
    *("estimator", "snr_db", "metric", "statistic", "value", "num_scenes", "seed"),
    *("low", "high", "sigma_over_bandwidth"),
)


def write_results(results: Sequence[SweepResult], path: str | Path) -> Path:
    """Write results.csv; it appears whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    seed = "" if results[0].seed is None else str(results[0].seed)
    for row in rows(list(results)):
        snr = "" if row.snr_db is None else f"{row.snr_db:g}"
        value = row.value
        interval = ["" if math.isnan(edge) else f"{edge:.6g}" for edge in (value.low, value.high)]
        sigma = f"{row.sigma_over_bandwidth:.6g}"
        number = f"{value.value:.10g}"
        writer.writerow(
            [row.estimator, snr, row.metric, row.statistic, number, value.num_scenes, seed, *interval, sigma]
        )
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue())
    return Path(path)


def write_per_scene(results: Sequence[SweepResult], path: str | Path) -> Path:
    """Write per_scene.npz: `snr_db` [snr], `scene` [scene], `sigma_over_bandwidth` [sigma], and the scores.

    These, `estimator/quantity`, are [snr, scene], and [sigma, snr, scene] for several deviations of the clock offsets.
    """
    arrays: dict[str, np.ndarray] = {
        "snr_db": np.array([np.nan if snr is None else snr for snr in results[0].snr_db]),
        "scene": np.array(results[0].scenes),
        "sigma_over_bandwidth": np.array([result.sigma_over_bandwidth for result in results]),
    }
    parts = [_arrays(result) for result in results]
    for key in parts[0]:
        arrays[key] = np.stack([part[key] for part in parts]) if len(parts) > 1 else parts[0][key]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return Path(path)


def _arrays(result: SweepResult) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, quantities in (result.scores | result.bounds).items():
        arrays |= {f"{name}/{quantity}": values for quantity, values in quantities.items()}
    for name in result.names:
        derived = {"ue_error_over_peb": result.over_bound(name), "converged": result.converged(name)}
        arrays |= {f"{name}/{quantity}": values for quantity, values in derived.items() if values is not None}
    return arrays
