"""From a moving target to the samples of its echoes: the uplink's forward model with a Doppler shift (eq. 7, 8)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.channel import channel_response
from sensing.containers import Paths
from sensing.geometry import direction_and_range
from sensing.radar.network import RadarNetwork
from sensing.radar.power import echo_snr
from sensing.units import SPEED_OF_LIGHT
from sensing.waves import plane_waves


class Target(NamedTuple):
    """A point target."""

    position: Tensor  # [* xyz] [m]
    velocity: Tensor  # [* xyz] [m/s]
    phase: Tensor  # [* link] of the echo at the carrier: free, it carries no position information [rad]


class EchoParameters(NamedTuple):
    """What a link can estimate of one echo."""

    range_m: Tensor  # [* link] way from transmitter to target to receiver [m]
    doppler_hz: Tensor  # [* link] positive for an approaching target
    direction: Tensor  # [* link xyz] unit vector from the receiver to the target
    gain: Tensor  # [* link] complex amplitude [sqrt(W)]


def echo_parameters(target: Target, network: RadarNetwork) -> EchoParameters:
    """Delay, Doppler, direction and gain of the echoes.

    `range = r_tx + r_rx` (2 r in a monostatic link), `doppler = -(f_c / c) v . (u_tx + u_rx)` with the unit vectors u
    from the stations to the target (2 v f_c / c for a target that approaches with v), `|gain|^2 = gamma sigma^2`.

    Args:
        target: [*] targets.
        network: the stations.

    Returns:
        The parameters, [* link].
    """
    out, out_leg = direction_and_range(target.position[..., None, :], network.transmitter_position)
    back, back_leg = direction_and_range(target.position[..., None, :], network.receivers.bs_position)
    closing = -((out + back) * target.velocity[..., None, :]).sum(-1)
    amplitude = (echo_snr(target.position, network) * network.noise_var).sqrt()
    return EchoParameters(
        range_m=out_leg + back_leg,
        doppler_hz=closing * network.deployment.carrier_hz / SPEED_OF_LIGHT,
        direction=back,
        gain=torch.polar(amplitude, target.phase.expand_as(amplitude)),
    )


def echo_response(echo: EchoParameters, network: RadarNetwork) -> Tensor:
    """Noise-free samples after division by the symbols.

    `y[n, m, k] = gain exp(j 2 pi t_m f_D) exp(-j 2 pi f_k range / c) a_n(direction)` with times and frequencies
    counted from the middle of the burst and of the band, which only turns the phase of the gain.

    Args:
        echo: [* link] parameters.
        network: the stations.

    Returns:
        [* link ant sym sc] complex.
    """
    mask = torch.ones_like(echo.range_m, dtype=torch.bool)[..., None]
    path = Paths(echo.range_m[..., None] / SPEED_OF_LIGHT, echo.direction[..., None, :], echo.gain[..., None], mask)
    still = channel_response(path, network.receivers)  # [* link ant sc]
    return still[..., None, :] * doppler_response(echo.doppler_hz, network.symbol_time)[..., None, :, None]


def doppler_response(doppler_hz: Tensor, symbol_time: Tensor) -> Tensor:
    """Slow-time response `exp(+j 2 pi f_D t)`: [*] to [* sym]."""
    return plane_waves(symbol_time[:, None], 2.0 * math.pi * doppler_hz[..., None, None])[..., 0]
