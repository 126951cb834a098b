"""Pilot grid of an OFDM symbol and the delay response over it.

A path of length r (metres, clock offset included) has the response `exp(-j 2 pi f r / c)` at pilot frequency f.
"""

import math

import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.units import SPEED_OF_LIGHT
from sensing.waves import plane_waves


def pilot_frequencies(num_subcarriers: int = 1024, spacing_hz: float = 120e3, pilot_step: int = 16) -> Tensor:
    """Centred frequencies of every `pilot_step`-th subcarrier.

    Args:
        num_subcarriers: subcarriers of the symbol.
        spacing_hz: subcarrier spacing [Hz].
        pilot_step: one pilot every so many subcarriers.

    Returns:
        [sc] offsets from the carrier [Hz], zero mean.
    """
    if num_subcarriers < 1 or not 1 <= pilot_step <= num_subcarriers or not spacing_hz > 0:
        raise ConfigError(
            "ofdm needs num_subcarriers >= 1, 1 <= pilot_step <= num_subcarriers and spacing_hz > 0, "
            f"got {num_subcarriers}, {pilot_step}, {spacing_hz}"
        )
    index = torch.arange(0, num_subcarriers, pilot_step, dtype=torch.float64)
    return (index - index.mean()) * spacing_hz


def response(range_m: Tensor, pilot_freq: Tensor) -> Tensor:
    """Delay response `exp(-j 2 pi f r / c)`.

    Args:
        range_m: [* path] path length [m].
        pilot_freq: [sc] [Hz].

    Returns:
        [* sc path] complex, unit modulus.
    """
    return plane_waves(pilot_freq[:, None], (-2.0 * math.pi / SPEED_OF_LIGHT) * range_m[..., None])


def profile_covariance(decay_m: Tensor | float, pilot_freq: Tensor) -> Tensor:
    """Covariance of unit power over pilots of an exponential delay profile that starts at zero.

    `1 / (1 + j 2 pi (f_k - f_l) r_d / c)`, the Fourier transform of `exp(-r / r_d) / r_d`.

    Args:
        decay_m: [*] r_d [m].
        pilot_freq: [sc] [Hz].

    Returns:
        [* sc sc] complex, Hermitian, positive semidefinite.
    """
    angle = (2.0 * math.pi / SPEED_OF_LIGHT) * (pilot_freq[:, None] - pilot_freq)
    phase = torch.as_tensor(decay_m, dtype=pilot_freq.dtype, device=pilot_freq.device)[..., None, None] * angle
    return 1.0 / torch.complex(torch.ones_like(phase), phase)
