"""Link budget of an echo: multibeam precoder and radar equation (paper 2, equations 2, 3 and 13)."""

import math

import torch
from torch import Tensor

from sensing import arrays
from sensing.geometry import direction_and_range
from sensing.radar.network import RadarNetwork


def echo_snr(target: Tensor, network: RadarNetwork) -> Tensor:
    """SNR of an echo per receiving element, subcarrier and symbol, the sensing beam pointing at the target.

    `gamma = (EIRP / K) |illumination|^2 G_R lambda^2 rcs / ((4 pi)^3 r_tx^2 r_rx^2 N_0 df)`, which is equation 2.6 for
    a monostatic link, where `|illumination|^2` is `rho` or, with a communication beam, that of both beams.

    Args:
        target: [* xyz] [m].
        network: the stations.

    Returns:
        gamma [* link]; inf on top of a station.
    """
    sender, receiver = network.links.unbind(-1)
    _, leg = direction_and_range(target[..., None, :], network.deployment.bs_position)  # [* bs]
    return link_budget(target, network) / (leg[..., sender].square() * leg[..., receiver].square())


def link_budget(target: Tensor, network: RadarNetwork) -> Tensor:
    """The SNR above without its spreading loss, `gamma r_tx^2 r_rx^2` [m^4]; as `beam_power` [* link] or [link]."""
    sender = network.links[:, 0]
    density = network.eirp_w * beam_power(target, network) / len(network.deployment.pilot_freq)
    constant = network.receive_gain * network.deployment.wavelength.square() * network.rcs_m2 / (4.0 * math.pi) ** 3
    return constant * density[..., sender] / network.noise_var


def beam_power(target: Tensor, network: RadarNetwork) -> Tensor:
    """Power that reaches the target over that of all power in one beam at it, [* bs] or, where equal for all, [bs].

    The precoder `w = sqrt(rho) conj(a_s) + sqrt(1 - rho) conj(a_c)` (times sqrt(P G) / N) gives
    `|a_s^T w|^2 / N^2 = |sqrt(rho) + sqrt(1 - rho) a_s^T conj(a_c) / N|^2`; the second term is what the communication
    beam leaks towards the target. Without a communication point it is left out, the limit of many antennas.
    """
    rho = network.sensing_fraction
    if network.communication_point is None:
        return rho
    deployment = network.deployment
    antenna = deployment.antenna_global
    seen, _ = direction_and_range(target[..., None, :], deployment.bs_position)  # [* bs xyz]
    served, _ = direction_and_range(network.communication_point, deployment.bs_position)  # [bs xyz]
    at_target = arrays.response(seen[..., None, :], antenna, deployment.wavelength)[..., 0]  # [* bs ant]
    at_user = arrays.response(served[..., None, :], antenna, deployment.wavelength)[..., 0]
    leak = (at_target * at_user.conj()).mean(-1)
    return (torch.sqrt(rho) + torch.sqrt(1.0 - rho) * leak).abs().square()
