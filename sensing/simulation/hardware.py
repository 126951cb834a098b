"""Errors of the hardware: drawn once for every station of a seed, the same in all scenes and splits.

Noise-free reception through elements with errors: with the plane waves h [ant sc] at the places where the elements are,

    received = diag(g) (I + K) h,  g_m = 10^(gain_db n_m / 20) exp(j phase n'_m),
    K_mn = coupling exp(j psi) (lambda / 2 d_mn) exp(-j 2 pi (d_mn / lambda - 1/2)),  n, n' standard normal,

with psi uniform for each station and d_mn the distance of two elements: reciprocal, K = K^T, and falling as a
spherical wave does. Every kind of error has random numbers of its own, so that one does not change the others, and its
size scales them.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from sensing.containers import Deployment
from sensing.errors import ConfigError
from sensing.simulation.impairments import Impairments
from sensing.simulation.sampler import hardware_generator
from sensing.units import from_db

KINDS = ("gain", "phase", "element", "coupling", "position", "rotation", "noise")


class Hardware(NamedTuple):
    """Stations as they are, not as they are believed to be."""

    deployment: Deployment  # true poses; antenna_local is [bs ant xyz] where elements are out of place
    element_gain: Tensor | None  # [bs ant] complex; None: one
    coupling: Tensor | None  # [bs ant ant] complex, I + K; None: the identity
    noise_factor: Tensor | None  # [bs] true noise variance over the nominal one; None: one

    def received(self, channel: Tensor) -> Tensor:
        """What plane waves [* bs ant sc] become behind the elements."""
        if self.coupling is not None:
            channel = self.coupling.to(channel) @ channel
        return channel if self.element_gain is None else self.element_gain.to(channel)[..., None] * channel


def draw_hardware(sizes: Impairments, deployment: Deployment, seed: int) -> Hardware:
    """Hardware of a seed.

    Args:
        sizes: at severity 1 (`Impairments.scaled`).
        deployment: the nominal stations.
        seed: of the experiment.

    Raises:
        ConfigError: two elements in one place, which couple infinitely.
    """
    stations, elements = len(deployment.bs_position), len(deployment.antenna_local)

    def normal(kind: str, *shape: int) -> Tensor:
        rngs = [hardware_generator(seed, station, KINDS.index(kind)) for station in range(stations)]
        return torch.from_numpy(np.stack([rng.standard_normal(shape) for rng in rngs])).to(deployment.bs_position)

    true = deployment
    if sizes.station_m:
        true = true._replace(bs_position=true.bs_position + sizes.station_m * normal("position", 3))
    if sizes.station_deg:
        turn = Rotation.from_rotvec(sizes.station_deg * normal("rotation", 3).cpu().numpy(), degrees=True).as_matrix()
        true = true._replace(bs_rotation=true.bs_rotation @ torch.from_numpy(turn).to(true.bs_rotation))
    if sizes.element_wavelengths:
        shift = sizes.element_wavelengths * deployment.wavelength * normal("element", elements, 3)
        true = true._replace(antenna_local=true.antenna_local + shift)
    gain = None
    if sizes.gain_db or sizes.phase_deg:
        phase = math.radians(sizes.phase_deg) * normal("phase", elements)
        gain = torch.polar(from_db(sizes.gain_db * normal("gain", elements)).sqrt(), phase)
    coupling = None
    if sizes.coupling:
        rngs = [hardware_generator(seed, station, KINDS.index("coupling")) for station in range(stations)]
        psi = torch.tensor([rng.uniform(-math.pi, math.pi) for rng in rngs], dtype=torch.float64)
        coupling = _coupling(sizes.coupling, psi.to(true.bs_position), true)
    noise = None
    if sizes.noise_db or sizes.noise_spread_db:
        noise = from_db(sizes.noise_db + sizes.noise_spread_db * normal("noise", 1)[:, 0])
    return Hardware(true, gain, coupling, noise)


def _coupling(size: float, psi: Tensor, deployment: Deployment) -> Tensor:
    """`I + K` [bs ant ant]."""
    element = deployment.antenna_global
    distance = torch.linalg.vector_norm(element[:, :, None] - element[:, None], dim=-1) / deployment.wavelength
    diagonal = torch.eye(distance.shape[-1], dtype=distance.dtype, device=distance.device)
    if bool((distance + diagonal == 0).any()):
        raise ConfigError("impairments.coupling needs elements in different places, got two in one")
    phase = psi[:, None, None] - 2.0 * math.pi * (distance - 0.5)
    return torch.polar(size * 0.5 / (distance + diagonal), phase) * (1.0 - diagonal) + diagonal
