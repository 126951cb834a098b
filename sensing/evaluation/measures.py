"""Every number that an evaluation states, with its confidence interval: the one source of tables, figures and report.

A metric is a quantity of `sensing.evaluation.scores` or derived from several:

- `ue_error_over_peb`: the error over the bound of its own scene; `ue_error_over_peb_converged` the rms over scenes with
  an error below three bounds, `converged_fraction` their share.
- `ue_rmse_over_rms_peb`, `scatterer_median_over_median_bound` (and `scatterer_specific_...`), `nmse_gap_to_genie_db`:
  ratios of a statistic of two quantities over the same scenes; their intervals are paired. Statistic `ratio`.
- `nees_user`, `nees_common`: normalised squared error per degree of freedom; `band_low` and `band_high` are the 95 %
  band of its mean if the covariance is right, from the chi-square law. `covered_90_fraction`: share of scenes with the
  user in the claimed ellipsoid; `shared_covered_90_fraction` of located scatterers, with a bootstrap interval over
  scenes, since those of a scene share the user's error.
- `fallback_fraction`: share of scenes that the classical iterations redid, because the learned layers had made them
  worse; `near_fraction`: share that the learned layers never saw, because their start explained the observation.
- `..._unflagged...`: the same over scenes that the estimator trusts.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from sensing.evaluation.result import SweepResult
from sensing.evaluation.scores import KINDS, LEVELS
from sensing.evaluation.statistics import Floats, Value, bootstrapped, describe, proportion

ERRORS = ("ue_error_m", *KINDS.values(), "clock_offset_error_s", "gospa_m")
THRESHOLDS_M = {"below_1m": 1.0, "below_3m": 3.0}
GENIE = "genie_lmmse"

Measures = dict[tuple[str, int, str, str], Value]
"""(estimator or bound, row of the SNR, metric, statistic) to value, in the order of the table."""


class Row(NamedTuple):
    """One line of results.csv."""

    estimator: str
    snr_db: float | None
    metric: str
    statistic: str
    value: Value
    sigma_over_bandwidth: float


def rows(results: list[SweepResult]) -> Iterator[Row]:
    """All rows of results.csv, by deviation of the clock offsets, estimator and SNR; bounds last."""
    for result in results:
        for (name, at, metric, stat), value in measure(result).items():
            yield Row(name, result.snr_db[at], metric, stat, value, result.sigma_over_bandwidth)


@functools.lru_cache(maxsize=16)
def measure(result: SweepResult) -> Measures:
    """All numbers of a sweep."""
    found: Measures = {}
    for name in result.names:
        for at in range(len(result.snr_db)):
            found |= {(name, at, *key): value for key, value in _of_estimator(result, name, at)}
    for name, bound in result.bounds.items():
        for at in range(len(result.snr_db)):
            for metric, values in bound.items():
                if (name, metric) == ("peb_sync", "clock_offset_error_s"):
                    continue  # the offsets are known
                found |= {(name, at, metric, stat): value for stat, value in describe(values[at]).items()}
    return found


Found = Iterator[tuple[tuple[str, str], Value]]


def _of_estimator(result: SweepResult, name: str, at: int) -> Found:
    scores = {quantity: values[at] for quantity, values in result.scores[name].items()}
    given = result.reference.get(name) == "peb_sync"  # the offsets: returning them tells nothing
    for metric in (*ERRORS, "channel_nmse_db"):
        if metric in scores and not (given and metric == "clock_offset_error_s"):
            yield from _described(metric, scores[metric])
    ratio, converged, flagged = result.over_bound(name), result.converged(name), result.flagged(name)
    if ratio is not None and converged is not None:
        yield from _described("ue_error_over_peb", ratio[at])
        yield ("ue_error_over_peb_converged", "rms"), describe(ratio[at][converged[at]])["rms"]
    yield from _described("time_s", scores["time_s"])
    everything = np.ones(len(result.scenes), bool)
    yield from _of_scenes(result, name, at, everything, "")
    if "fallback" in scores:
        yield ("fallback_fraction", "mean"), proportion(scores["fallback"] > 0)
    if "near" in scores:
        yield ("near_fraction", "mean"), proportion(scores["near"] > 0)
    if flagged is not None:
        yield ("flagged_fraction", "mean"), proportion(flagged[at])
        if "ue_error_m" in scores:
            yield from _described("ue_error_unflagged_m", scores["ue_error_m"][~flagged[at]])
            yield from _of_scenes(result, name, at, ~flagged[at], "_unflagged")
    yield from _ratios(result, name, at)


def _described(metric: str, values: Floats) -> Found:
    for stat, value in describe(values, metric == "channel_nmse_db").items():
        yield (metric, stat), value


def _of_scenes(result: SweepResult, name: str, at: int, kept: NDArray[np.bool_], suffix: str) -> Found:
    """Shares and squared errors over some scenes; a scene without position or covariance is a failure, not left out."""
    scores = {quantity: values[at][kept] for quantity, values in result.scores[name].items()}
    converged = result.converged(name)
    if converged is not None:
        yield (f"converged{suffix}_fraction", "mean"), proportion(converged[at][kept])
    if "ue_error_m" in scores:
        for metric, limit in THRESHOLDS_M.items():
            yield (f"{metric}{suffix}_fraction", "mean"), proportion(scores["ue_error_m"] < limit)
    for metric, dof in (("nees_user", 3), ("nees_common", 3 + result.num_stations)):
        if metric not in scores or (metric == "nees_common" and result.reference.get(name) == "peb_sync"):
            continue
        yield from _described(metric + suffix, scores[metric])
        count = int(np.isfinite(scores[metric]).sum()) * dof
        for side, quantile in (("band_low", 0.025), ("band_high", 0.975)):
            edge = float(chi2.ppf(quantile, count)) / count if count else np.nan
            yield (metric + suffix, side), Value(edge, np.nan, np.nan, count // dof)
    for level in LEVELS:
        if "nees_user" in scores:
            hits = scores["nees_user"] < chi2.ppf(level / 100, 3) / 3
            yield (f"covered_{level}{suffix}_fraction", "mean"), proportion(hits)
        for kind in KINDS:
            if f"{kind}_located" in scores:
                parts = scores[f"{kind}_inside_{level}"], scores[f"{kind}_located"]
                (value,) = bootstrapped(_share, *parts)
                yield (f"{kind}_covered_{level}{suffix}_fraction", "mean"), value


def _ratios(result: SweepResult, name: str, at: int) -> Found:
    scores, bound = result.scores[name], result.bounds.get(result.reference.get(name, "peb"), {})
    if "ue_error_m" in scores and "ue_error_m" in bound:
        (value,) = bootstrapped(_rms_ratio, scores["ue_error_m"][at], bound["ue_error_m"][at])
        yield ("ue_rmse_over_rms_peb", "ratio"), value
    for metric in KINDS.values():
        if metric in scores and metric in bound:
            (value,) = bootstrapped(_median_ratio, scores[metric][at], bound[metric][at])
            yield (metric.removesuffix("_error_m") + "_median_over_median_bound", "ratio"), value
    if name != GENIE and "channel_nmse_db" in scores and GENIE in result.scores:
        (value,) = bootstrapped(_gap_db, scores["channel_nmse_db"][at], result.scores[GENIE]["channel_nmse_db"][at])
        yield ("nmse_gap_to_genie_db", "ratio"), value


def _rms_ratio(error: Floats, bound: Floats) -> Floats:
    return np.sqrt(np.mean(error**2, -1) / np.mean(bound**2, -1))[None]


def _median_ratio(error: Floats, bound: Floats) -> Floats:
    return (np.median(error, -1) / np.median(bound, -1))[None]


def _gap_db(nmse_db: Floats, floor_db: Floats) -> Floats:
    mean, floor = (np.mean(np.power(10.0, x / 10.0), -1) for x in (nmse_db, floor_db))
    return 10.0 * np.log10(mean / floor)[None]


def _share(inside: Floats, located: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return (np.sum(inside, -1) / np.sum(located, -1))[None]
