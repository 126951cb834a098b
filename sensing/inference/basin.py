"""Where a start lies in the basin of the optimum: what it leaves unexplained of the observation.

Beside the optimum the columns of a start capture nearly all of the signal; in a wrong lobe of the delay they do not.
The share of the signal left at station b, beyond four standard deviations of the noise's mean power, is

    s_b = (fit_b - 1 - 4 / sqrt(N)) noise_b / max(received_b - noise_b, 4 noise_b / sqrt(N)),

with N = antennas x pilots entries and the fit of `state.fit_of`. A lobe is as wide at any SNR, and so is what the share
says, but for the allowance. The worst station decides.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.inference.state import Problem

DEVIATIONS = 4.0
"""Allowance for noise, in standard deviations of its mean power over a station's entries."""


def unexplained(problem: Problem, fit: Tensor) -> Tensor:
    """Share of the signal that a geometry of this fit [* bs] leaves at its worst station, [*]; <= 0: noise at most."""
    entries = problem.y.shape[-2] * problem.y.shape[-1]
    allowance = DEVIATIONS / math.sqrt(entries)
    received = problem.energy.sum(-1) / entries / problem.noise_var
    return ((fit - 1.0 - allowance) / (received - 1.0).clamp(min=allowance)).amax(-1)


def check_shares(shares: Sequence[float]) -> tuple[float, float]:
    """Two shares between which `distance` grows; raises ConfigError unless they do."""
    if len(shares) != 2 or not 0.0 < shares[0] < shares[1] < math.inf:
        raise ConfigError(f"far must be two growing shares above zero, got {list(shares)}")
    return float(shares[0]), float(shares[1])


def distance(share: Tensor, low: float, high: float) -> Tensor:
    """How far off a start is: 0 up to the share `low`, 1 from `high` on, in logarithms between; as `share`, [*]."""
    place = torch.log(share.clamp(min=low) / low) / math.log(high / low)
    return torch.where(torch.isfinite(place), place, torch.ones_like(place)).clamp(max=1.0)
