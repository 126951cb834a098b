"""Log-densities of the position that stations report, normalised over one domain (paper 3, equations 4, 5 and 7).

Range: `-(d - |p - b|)^2 / (2 std^2)`; direction, von Mises and Fisher on the sphere: `kappa (mu(p).u - 1)`, with
kappa = 1 / std^2. Their constants cancel in the normalisation, which makes densities in metres and in steradian alike.
"""

import math

import torch
from torch import Tensor

from sensing.fusion.domain import Domain
from sensing.fusion.measurements import StationMeasurements

LOG_2PI = math.log(2.0 * math.pi)


def log_likelihood(measured: StationMeasurements, points: Tensor) -> Tensor:
    """Logarithms of the likelihoods up to constants that do not depend on the position.

    Args:
        measured: [* bs].
        points: [point xyz], or [* point xyz] where they differ from drop to drop [m].

    Returns:
        [* 2*bs point]: ranges of all stations, then directions; 0 where not measured, which is flat.
    """
    offset = points[..., None, :, :] - measured.bs_position[..., :, None, :]  # [* bs point xyz]
    distance = torch.linalg.vector_norm(offset, dim=-1)
    ranges, directions = measured.precision.unbind(-2)  # [* bs]
    along = measured.range_m[..., None] - distance
    along = along.square_().mul_(-0.5 * ranges[..., None])
    across = (offset @ measured.direction[..., None])[..., 0]
    safe = torch.where(distance > 0, distance, torch.ones_like(distance))
    across = across.div_(safe).sub_(1.0).mul_(directions[..., None])
    return torch.cat([along, across.expand_as(along)], -2)


def log_von_mises_fisher(cosine: Tensor, kappa: Tensor) -> Tensor:
    """Density on the sphere `kappa / (4 pi sinh kappa) exp(kappa cosine)`, in a form that does not overflow (eq. 5).

    Args:
        cosine: [*] of the angle between the direction and the mean direction.
        kappa: [*] concentration, positive.

    Returns:
        [*] logarithm of the density per steradian.
    """
    return kappa.log() - LOG_2PI - torch.log1p(-torch.exp(-2.0 * kappa)) + kappa * (cosine - 1.0)


def log_normaliser(log_values: Tensor, domain: Domain) -> Tensor:
    """Logarithm of the integral over the domain of `exp(log_values)`, given in its cells: [* cell] to [*]."""
    return log_values.logsumexp(-1) + domain.log_cell


def log_range_with_bias(excess: Tensor, std: Tensor, largest: Tensor) -> Tensor:
    """Likelihood of a range with a bias uniform from 0 to `largest` and Gaussian noise.

    `(Phi(e / std) - Phi((e - largest) / std)) / largest`, e the measured range minus the distance; the Gaussian density
    where `largest` is 0.

    Args:
        excess: [*] e [m].
        std: [*] of the noise [m].
        largest: [*] largest bias [m].

    Returns:
        [*] logarithm of the density per metre.
    """
    scaled, width = excess / std, largest / std
    # the difference of two tails on the same side, whichever is the smaller: no cancellation
    near = torch.where(scaled > width / 2, width - scaled, scaled)
    upper = torch.special.log_ndtr(near)
    lower = torch.special.log_ndtr(near - width)
    gap = torch.where(width > 0, lower - upper, torch.full_like(upper, -torch.inf)).clamp(max=-1e-300)
    spread = upper + torch.log(-torch.expm1(gap)) - torch.where(largest > 0, largest, torch.ones_like(largest)).log()
    return torch.where(largest > 0, spread, -0.5 * scaled.square() - std.log() - 0.5 * LOG_2PI)
