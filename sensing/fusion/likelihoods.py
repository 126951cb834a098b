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

NEGLIGIBLE = -80.0
"""Logarithm of a ratio of densities below which the smaller one counts for nothing in a sum."""


def log_likelihood(measured: StationMeasurements, points: Tensor) -> Tensor:
    """Logarithms of the likelihoods up to constants that do not depend on the position.

    Args:
        measured: [* bs].
        points: [point xyz], or [* point xyz] where they differ from drop to drop [m].

    Returns:
        [* 2*bs point]: ranges of all stations, then directions; 0 where not measured, which is flat.
    """
    # coordinate by coordinate: planes in memory, and what does not depend on the drop is computed once
    planes = zip(points.unbind(-1), measured.bs_position.unbind(-1), strict=True)
    offset = [place[..., None, :] - station[..., None] for place, station in planes]  # [* bs point]
    squared = offset[0].square()
    for each in offset[1:]:
        squared = squared.addcmul(each, each)
    distance = squared.sqrt()
    inverse = distance.clamp_min(torch.finfo(distance.dtype).tiny).reciprocal_()
    ranges, directions = measured.precision.unbind(-2)  # [* bs]
    shape = (*torch.broadcast_shapes(measured.range_m.shape[:-1], points.shape[:-2]), 2, *distance.shape[-2:])
    value = distance.new_empty(shape)
    along, across = value.unbind(-3)
    torch.sub(measured.range_m[..., None], distance, out=along)
    along.square_().mul_(-0.5 * ranges[..., None])
    toward = (measured.direction * directions[..., None]).unbind(-1)
    across.copy_(-directions[..., None])
    for each, slope in zip(offset, toward, strict=True):
        across.addcmul_(each * inverse, slope[..., None])
    return value.flatten(-3, -2)


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
    peak = log_values.amax(-1, keepdim=True)
    # exponentials that underflow are slow, and count for nothing
    total = (log_values - peak).clamp_(min=NEGLIGIBLE).exp_().sum(-1)
    return total.log_() + peak[..., 0] + domain.log_cell


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
