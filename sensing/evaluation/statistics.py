"""Statistics over scenes with the number of scenes behind them and, for tables and figures, how sure they are.

Every statistic is over the finite values and comes with their number: an estimator that fails on a scene (NaN error) is
not hidden by this, since the number beside the value is lower and the scene counts as not converged.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sensing.metrics import bootstrap_interval, summarize, wilson_interval

Floats = NDArray[np.float64]
STATISTICS = ("median", "rms", "p90", "mean")
_RESAMPLES = 400


class Value(NamedTuple):
    """A statistic over `num_scenes` scenes with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    num_scenes: int


def statistic(values: Floats, name: str, decibel: bool = False) -> tuple[float, int]:
    """One statistic over the finite values.

    Args:
        values: [scene].
        name: median, rms, p90 or mean.
        decibel: the values are in dB; their mean and rms are those of the linear powers, given in dB again.

    Returns:
        The value (NaN where no value is finite) and the number of finite values.
    """
    linear = decibel and name in ("mean", "rms")
    found = summarize(torch.from_numpy(_power(values) if linear else values))
    return _decibel(found[name]) if linear else found[name], int(found["count"])


def with_interval(values: Floats, name: str, decibel: bool = False) -> Value:
    """A statistic with its percentile bootstrap interval; the draws are the same for all estimators."""
    value, count = statistic(values, name, decibel)
    if count < 2:
        return Value(value, math.nan, math.nan, count)
    linear = decibel and name in ("mean", "rms")
    tensor = torch.from_numpy(_power(values) if linear else values)
    low, high = bootstrap_interval(tensor, name, torch.Generator().manual_seed(0), resamples=_RESAMPLES)
    return Value(value, *((_decibel(low), _decibel(high)) if linear else (low, high)), count)


def proportion(hits: NDArray[np.bool_]) -> Value:
    """A share of scenes with its Wilson interval."""
    count = int(hits.size)
    share = float(np.mean(hits)) if count else math.nan
    return Value(share, *wilson_interval(int(np.sum(hits)), count), count)


def _power(decibel: Floats) -> Floats:
    return np.power(10.0, decibel / 10.0)


def _decibel(power: float) -> float:
    return 10.0 * math.log10(power) if power > 0 else (-math.inf if power == 0 else math.nan)
