"""Closed forms of one monostatic OFDM station with a uniform linear array (paper 2, equations 9, 12, 14 to 18).

Samples `y = alpha e^{j phi} exp(j 2 pi m T_s f_D) exp(-j 2 pi k df tau) exp(j pi n sin theta) + noise`, with
m = 0..M-1, k = 0..K-1, n centred, theta from broadside. gamma = alpha^2 / noise_var is the SNR per sample. What follows
holds for one echo; `sensing.bounds.cooperative` computes the same for any array, in three dimensions and for any number
of links, and the tests hold the two against each other.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import DomainError
from sensing.units import SPEED_OF_LIGHT

PARAMETERS = ("alpha", "phi", "doppler_hz", "delay_s", "theta")


class Waveform(NamedTuple):
    """Samples of one echo."""

    num_symbols: int  # M
    num_subcarriers: int  # K
    num_antennas: int  # N_R
    symbol_s: float  # T_s [s]
    spacing_hz: float  # df [Hz]

    @property
    def samples(self) -> int:
        """All samples, M K N_R."""
        return self.num_symbols * self.num_subcarriers * self.num_antennas

    def validate(self) -> "Waveform":
        """Raise DomainError unless all are positive, the counts whole; returns the waveform itself."""
        for name, value in zip(self._fields, self, strict=True):
            whole = name.startswith("num_")
            if not 0 < value < math.inf or (whole and not isinstance(value, int)):
                raise DomainError(f"{name} must be a positive {'whole ' if whole else ''}number, got {value!r}")
        return self


class ParameterBounds(NamedTuple):
    """Least variances, the other four parameters unknown (equation 12)."""

    alpha: Tensor  # [*]
    phi: Tensor  # [*] at the first symbol and subcarrier [rad^2]
    doppler_hz: Tensor  # [*] [Hz^2]
    delay_s: Tensor  # [*] [s^2]
    theta: Tensor  # [*] [rad^2]


class PositionBounds(NamedTuple):
    """Least variances of the target's position in the station's frame, x along the boresight (equations 17 and 18)."""

    x: Tensor  # [*] [m^2]
    y: Tensor  # [*] [m^2]
    xy: Tensor  # [*] covariance [m^2]
    peb_m: Tensor  # [*] sqrt(x + y) [m]


def fisher_matrix(snr: Tensor, noise_var: Tensor, theta: Tensor, waveform: Waveform) -> Tensor:
    """Fisher information of (alpha, phi, f_D, tau, theta) (equation 9).

    Args:
        snr: [*] gamma.
        noise_var: [*] power of the complex noise per sample.
        theta: [*] direction from broadside [rad].
        waveform: the samples.

    Returns:
        [* 5 5].

    Raises:
        DomainError: a size is not positive.
    """
    m, k, n, symbol_s, spacing_hz = waveform.validate()
    time, frequency = 2.0 * math.pi * symbol_s, 2.0 * math.pi * spacing_hz
    sum_m, sum_k = m * (m - 1) / 2, k * (k - 1) / 2
    squares_m, squares_k = m * (m - 1) * (2 * m - 1) / 6, k * (k - 1) * (2 * k - 1) / 6
    snr, noise_var, theta = torch.broadcast_tensors(snr.double(), noise_var.double(), theta.double())
    entry = {
        (1, 1): m * k * n,
        (1, 2): k * n * time * sum_m,
        (1, 3): -m * n * frequency * sum_k,
        (2, 2): k * n * time**2 * squares_m,
        (2, 3): -n * time * frequency * sum_m * sum_k,
        (3, 3): m * n * frequency**2 * squares_k,
    }
    matrix = snr.new_zeros(*snr.shape, 5, 5)
    matrix[..., 0, 0] = 2.0 * waveform.samples / noise_var
    for (row, column), value in entry.items():
        matrix[..., row, column] = matrix[..., column, row] = 2.0 * snr * value
    matrix[..., 4, 4] = 2.0 * snr * m * k * (math.pi * theta.cos()).square() * (n * (n**2 - 1) / 12)
    return matrix


def parameter_bounds(snr: Tensor, noise_var: Tensor, theta: Tensor, waveform: Waveform) -> ParameterBounds:
    """Cramer-Rao bounds (equation 12), inf where unobservable; arguments as in `fisher_matrix`."""
    m, k, n, symbol_s, spacing_hz = waveform.validate()
    energy = snr.double() * waveform.samples
    span = 1 + 3 * (m - 1) / (m + 1) + 3 * (k - 1) / (k + 1)
    broadside = (math.pi * theta.double().cos()).square()
    return ParameterBounds(
        alpha=noise_var.double() / (2 * waveform.samples) + 0.0 * energy,
        phi=span / (2.0 * energy),
        doppler_hz=6.0 / (energy * (2.0 * math.pi * symbol_s) ** 2 * (m**2 - 1)),
        delay_s=6.0 / (energy * (2.0 * math.pi * spacing_hz) ** 2 * (k**2 - 1)),
        theta=6.0 / (energy * broadside * (n**2 - 1)),
    )


def position_bounds(snr: Tensor, range_m: Tensor, theta: Tensor, waveform: Waveform) -> PositionBounds:
    """Position bound of one monostatic station (equations 17 and 18).

    With A = (c / 2)^2 var(tau) and B = r^2 var(theta): CRLB(x) = A cos^2 + B sin^2, CRLB(y) = A sin^2 + B cos^2,
    PEB^2 = A + B.

    Args:
        snr: [*] gamma.
        range_m: [*] distance from station to target [m].
        theta: [*] direction from broadside [rad].
        waveform: the samples.

    Returns:
        The bounds, [*]; inf where one of A and B is.

    Raises:
        DomainError: a size is not positive.
    """
    least = parameter_bounds(snr, torch.ones((), dtype=torch.float64), theta, waveform)
    along = (SPEED_OF_LIGHT / 2.0) ** 2 * least.delay_s
    across = range_m.double().square() * least.theta
    cos, sin = theta.double().cos(), theta.double().sin()
    return PositionBounds(
        x=along * cos.square() + across * sin.square(),
        y=along * sin.square() + across * cos.square(),
        xy=(along - across) * sin * cos,
        peb_m=(along + across).sqrt(),
    )
