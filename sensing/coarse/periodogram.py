"""Search grid over direction and range, and the periodogram of what a set of paths leaves unexplained.

The periodogram of a snapshot R is `|a(k)^H R d(r)^*|^2 / (ant * sc)` over unit directions k and ranges r. The snapshot
is correlated with the grid once; the correlation of a path is the product of two short vectors, so that the periodogram
of a residual costs a rank-L update. Every array is treated alike through the principal axes of its elements: a point
has no direction, a line resolves one cosine, a plane two (on one side of it), anything else the whole sphere.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing import arrays, ofdm
from sensing.containers import Deployment
from sensing.errors import DomainError
from sensing.units import SPEED_OF_LIGHT

_FLAT = 1e-6  # an axis along which the array is so much thinner than along its longest is not resolved
_MOST_POINTS = 1 << 20  # directions, and ranges, of a search grid
_UNRESOLVED_RANGE_M = 1e3  # scale of the unknown range where a single pilot says nothing about it


class SearchGrid(NamedTuple):
    """Grid points and their responses."""

    direction: Tensor  # [dir xyz] in the frame of the array
    range_m: Tensor  # [rng]
    steering: Tensor  # [dir ant] conjugate responses
    delay: Tensor  # [sc rng] conjugate responses
    normal: Tensor | None  # [xyz] the array cannot tell a direction from its mirror image behind this normal
    range_scale: float  # largest range [m] that the pilots tell apart
    period: float | None  # exact period of the delay response [m]
    threshold: float  # of the periodogram over the noise power


def search_grid(deployment: Deployment, oversampling: float, false_alarm: float, dtype: torch.dtype) -> SearchGrid:
    """Grid with `oversampling` points per resolution cell in every dimension.

    Args:
        deployment: array and pilots; poses do not matter.
        oversampling: points per resolution cell, `wavelength / aperture` and `c / bandwidth`.
        false_alarm: probability that noise alone exceeds the threshold somewhere.
        dtype: complex type of the responses.
    """
    direction, normal, cells, dimension = direction_grid(deployment, oversampling)
    freq = deployment.pilot_freq
    range_scale = float(deployment.range_ambiguity) if len(freq) > 1 else _UNRESOLVED_RANGE_M
    spread = float(freq.std(correction=0)) / SPEED_OF_LIGHT  # [1/m]
    num = _affordable("pilot_freq", max(1, math.ceil(oversampling * range_scale * math.sqrt(12.0) * spread)))
    range_m = torch.arange(num, dtype=freq.dtype, device=freq.device) * (range_scale / num)
    steps = freq.diff() / deployment.pilot_spacing
    periodic = len(freq) > 1 and bool((steps - steps.round()).abs().max() < 1e-6)
    return SearchGrid(
        direction=direction,
        range_m=range_m,
        steering=arrays.response(direction, deployment.antenna_local, deployment.wavelength).mH.to(dtype),
        delay=ofdm.response(range_m, freq).conj().to(dtype),
        normal=normal,
        range_scale=range_scale,
        period=range_scale if periodic else None,
        threshold=detection_threshold(false_alarm, (2.0 * math.pi * range_scale * spread, 1), (cells, dimension)),
    )


def detection_threshold(false_alarm: float, *axes: tuple[float, int]) -> float:
    """Level u that the largest of a continuous periodogram of unit noise exceeds with probability `false_alarm`.

    Expected number of maxima above u of a smooth complex Gaussian field (Rice): `V (u / pi)^(d/2) exp(-u)` with V the
    volume measured by the root determinant of the covariance of the field's derivative. Dimensions that are not
    resolved, and the edges of the others, count as one cell.

    Args:
        false_alarm: the probability.
        axes: volume and dimensions of each independent axis: (cells, 1) of the range, (cells, 0 to 2) of the direction.
    """
    u = 1.0
    for _ in range(50):
        root = math.sqrt(u / math.pi)
        u = math.log(math.prod(1.0 + cells * root**dimension for cells, dimension in axes) / false_alarm)
        u = max(u, 1.0)
    return u


def direction_grid(deployment: Deployment, oversampling: float) -> tuple[Tensor, Tensor | None, float, int]:
    """Directions [dir xyz] in the frame of the array with `oversampling` points per resolution cell.

    Also: the normal [xyz] across which the array cannot tell mirror images (None for arrays in space), the volume in
    the sense of `detection_threshold`, and the number of resolved dimensions.
    """
    position = deployment.antenna_local / deployment.wavelength
    position = position - position.mean(0)
    covariance = position.mT @ position / len(position)
    trace = covariance.trace()
    boresight = position.new_tensor([1.0, 0.0, 0.0])
    if not bool(trace > 0):
        return boresight[None], boresight, 0.0, 0
    # rounding makes the axes of a symmetric array its own rows and columns rather than an arbitrary pair
    variance, axes = torch.linalg.eigh((covariance / trace).round(decimals=9))
    variance, axes = (variance * trace).flip(0), axes.flip(1)
    dimension = int((variance > _FLAT**2 * variance[0]).sum())
    spacing = 1.0 / (oversampling * (12.0 * variance[:dimension]).sqrt())
    slope = 2.0 * math.pi * variance.sqrt()
    if dimension == 3:
        num = _affordable("antenna_local", math.ceil(4.0 * math.pi / float(spacing.min()) ** 2))
        direction = _sphere(num, position)
        # det of the tangential 2x2 block of Lambda is k^T adj(Lambda) k
        adjugate = slope.prod() ** 2 * (axes / slope.square()) @ axes.mT
        density = torch.einsum("di,ij,dj->d", direction, adjugate, direction).sqrt()
        return direction, None, 4.0 * math.pi * float(density.mean()), 2
    _affordable("antenna_local", math.ceil(float((2.0 / spacing).prod())))
    cosines = [_symmetric_steps(float(step), position) for step in spacing]
    cosine = torch.cartesian_prod(*cosines).reshape(-1, dimension)
    cosine = cosine[cosine.square().sum(-1) < 1.0]
    if dimension == 1:
        normal = boresight - (boresight @ axes[:, 0]) * axes[:, 0]
        normal = axes[:, 1] if bool(normal.norm() < 1e-6) else normal / normal.norm()
    else:
        normal = axes[:, 2] * torch.where(axes[0, 2] < 0, -1.0, 1.0)
    direction = cosine @ axes[:, :dimension].mT + (1.0 - cosine.square().sum(-1, keepdim=True)).sqrt() * normal
    volume = (2.0 if dimension == 1 else math.pi) * float(slope[:dimension].prod())
    return direction, normal, volume, dimension


def _affordable(field: str, num: int) -> int:
    """The number itself; raises DomainError for grids that no memory holds."""
    if num > _MOST_POINTS:
        raise DomainError(f"{field} must need at most {_MOST_POINTS} points of the search grid, got {num}")
    return num


def _symmetric_steps(step: float, like: Tensor) -> Tensor:
    """Cosines inside (-1, 1), at most `step` apart."""
    num = math.ceil(2.0 / step)
    return (2.0 * torch.arange(num, dtype=like.dtype, device=like.device) + 1.0) / num - 1.0


def _sphere(num: int, like: Tensor) -> Tensor:
    """Fibonacci lattice, [num xyz]."""
    index = torch.arange(num, dtype=like.dtype, device=like.device)
    z = 1.0 - (2.0 * index + 1.0) / num
    azimuth = index * (math.pi * (3.0 - math.sqrt(5.0)))
    radius = (1.0 - z.square()).sqrt()
    return torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], -1)


def correlate(y: Tensor, grid: SearchGrid) -> Tensor:
    """Correlation of snapshots with every grid point, [n ant sc] to [n dir 2*rng]: real parts, then imaginary parts."""
    correlation = grid.steering @ (y.to(grid.delay.dtype) @ grid.delay)
    return torch.cat([correlation.real, correlation.imag], -1)


def residual_peak(
    correlation: Tensor,
    steering: Tensor,
    delay: Tensor,
    gain: Tensor,
    grid: SearchGrid,
    energy: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Grid point of the largest periodogram of the residual `y - Phi gain`.

    Real and imaginary parts lie apart, so that all work on the full grid is on contiguous real numbers.

    Args:
        correlation: [n dir 2*rng] of y, from `correlate`.
        steering: [n ant path] responses of the paths to be subtracted.
        delay: [n sc path].
        gain: [n path].
        grid: the grid.
        energy: [n rng] squared norm of the grid's delay responses where these are whitened; all alike when None.

    Returns:
        range [n] and direction [n xyz] of the peak.
    """
    num, rng = len(correlation), len(grid.range_m)
    left = grid.steering @ (steering * gain[:, None, :]).to(grid.steering.dtype)  # [n dir path]
    right = delay.mT.to(grid.delay.dtype) @ grid.delay  # [n path rng]
    left = torch.cat([left.real, left.imag], -1)
    right = torch.cat([torch.cat([right.real, right.imag], -1), torch.cat([-right.imag, right.real], -1)], -2)
    rest = torch.baddbmm(correlation, left, right, alpha=-1).square_()
    power = rest[..., :rng].add_(rest[..., rng:])  # [n dir rng]
    power = power if energy is None else power.div_(energy[:, None].to(power.dtype))
    along = power.amax(-1).argmax(-1)  # the largest of the largest: a fifth of the time of one argmax over all
    index = power[torch.arange(num, device=power.device), along].argmax(-1)
    return grid.range_m[index], grid.direction[along]
