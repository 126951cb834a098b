"""Statistics over scenes with the number of scenes behind them and how sure they are.

Every statistic is over the finite values and comes with their number: an estimator that fails on a scene (NaN error) is
not hidden by this, since the number beside the value is lower and the scene counts as not converged. Intervals are
percentile bootstrap intervals over scenes, shares have Wilson's. Resampled scenes are the same for all quantities with
as many scenes, so that a ratio of two errors is paired.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sensing.metrics import wilson_interval

Floats = NDArray[np.float64]
STATISTICS = ("median", "rms", "p90", "mean")
_RESAMPLES = 400


class Value(NamedTuple):
    """A statistic over `num_scenes` scenes with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    num_scenes: int


def describe(values: Floats, decibel: bool = False) -> dict[str, Value]:
    """The four statistics of one quantity.

    Args:
        values: [scene].
        decibel: the values are in dB; their mean and rms are those of the linear powers, given in dB again.

    Returns:
        Statistic to value.
    """

    def four(x: Floats) -> Floats:
        linear = np.power(10.0, x / 10.0) if decibel else x
        median, p90 = np.quantile(x, [0.5, 0.9], axis=-1)
        rms, mean = np.sqrt(np.mean(linear**2, -1)), np.mean(linear, -1)
        return np.stack([median, _decibel(rms) if decibel else rms, p90, _decibel(mean) if decibel else mean])

    return dict(zip(STATISTICS, bootstrapped(four, values), strict=True))


def bootstrapped(function: Callable[..., Floats], *samples: Floats) -> list[Value]:
    """A function of paired samples with its interval.

    Args:
        function: of as many arrays [* scene] as there are samples, to [value *].
        samples: [scene] each; scenes in which one of them is not finite are left out.

    Returns:
        The values; NaN where no scene is left.
    """
    finite = np.isfinite(np.stack(samples)).all(0)
    kept = [sample[finite] for sample in samples]
    count = int(finite.sum())
    if count == 0:
        return [Value(math.nan, math.nan, math.nan, 0)] * len(function(*(np.ones(1) for _ in samples)))
    draws = _draws(count)
    low, high = np.quantile(function(*(sample[draws] for sample in kept)), [0.025, 0.975], axis=-1)
    if count == 1:
        low = high = np.full_like(low, np.nan)
    return [
        Value(float(value), float(least), float(most), count)
        for value, least, most in zip(function(*kept), low, high, strict=True)
    ]


def proportion(hits: NDArray[np.bool_]) -> Value:
    """A share of scenes with its Wilson interval."""
    count = int(hits.size)
    share = float(np.mean(hits)) if count else math.nan
    return Value(share, *wilson_interval(int(np.sum(hits)), count), count)


@functools.lru_cache(maxsize=64)
def _draws(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))


def _decibel(power: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(power)
