"""Physical constants and decibels."""

import torch
from torch import Tensor

SPEED_OF_LIGHT = 299_792_458.0
"""Speed of light in vacuum [m/s]."""


def to_db(power: Tensor) -> Tensor:
    """Power ratio to decibels, `10 log10(power)`."""
    return 10.0 * torch.log10(power)


def from_db(decibel: Tensor | float) -> Tensor:
    """Decibels to power ratio, `10^(decibel / 10)`."""
    return 10.0 ** (torch.as_tensor(decibel, dtype=torch.float64) / 10.0)
