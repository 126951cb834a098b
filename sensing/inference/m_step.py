"""M-step: a damped, capped Gauss-Newton step on user, clock offsets, nodes and free paths at once.

These are strongly coupled: only a joint solve moves along the weak directions. The system is scaled by its diagonal,
the free paths of each station are eliminated by their Schur complement, and what has no information at all (padding,
nodes that nobody supports) is held by a weak trust precision of a physical scale, 1 / (TRUST c / bandwidth)^2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Deployment, Geometry
from sensing.geometry import direction_and_range, tangent_basis
from sensing.inference.linearisation import System, per_scene
from sensing.resolution import Scales, natural_scales
from sensing.units import SPEED_OF_LIGHT

TRUST = 10.0
"""Standard deviation, in units of c / bandwidth (beamwidths for directions), of the weak prior that steps have."""

VAGUE = 1e3
"""The same for the covariances reported: what is unobservable has a standard deviation of so many c / bandwidth."""

SHARPEST = 1e-4
"""Narrowest prior, in units of c / bandwidth: a known offset or height is held by it."""


class Steps(NamedTuple):
    """Relaxation factor of each block, [] or [*]; 1 is the full Gauss-Newton step."""

    ue: Tensor
    offset: Tensor
    node: Tensor
    free: Tensor


def prior_precision(deployment: Deployment, num_nodes: int, known_user: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gaussian priors of theta = (u, c * offsets, nodes): precision and mean, [theta], or [* theta] with `known_user`.

    Offsets: zero mean, the deployment's deviation (none if infinite). Height of the user: mean and variance of the
    uniform law over `ue_height_range`, if set. A user [* xyz] that is known is held where it is; NaN: not known.
    """
    bs = len(deployment.bs_position)
    sharpest = SHARPEST * natural_scales(deployment).metre
    precision = deployment.bs_position.new_zeros(3 + bs + 3 * num_nodes)
    mean = torch.zeros_like(precision)
    precision[3 : 3 + bs] = torch.maximum(SPEED_OF_LIGHT * deployment.clock_offset_std, sharpest) ** -2
    if deployment.ue_height_range is not None:
        low, high = deployment.ue_height_range
        mean[2] = 0.5 * (low + high)
        precision[2] = torch.maximum((high - low) / 12.0**0.5, sharpest) ** -2
    if known_user is None:
        return precision, mean
    known, rest = torch.isfinite(known_user), (*known_user.shape[:-1], len(mean) - 3)
    held = torch.where(known, sharpest**-2, precision[:3])
    at = torch.where(known, known_user, mean[:3])
    return torch.cat([held, precision[3:].expand(rest)], -1), torch.cat([at, mean[3:].expand(rest)], -1)


def log_prior(geometry: Geometry, precision: Tensor, mean: Tensor) -> Tensor:
    """Log density of the priors up to a constant, [*]."""
    return -0.5 * (precision * (stack_theta(geometry) - mean).square()).sum(-1)


def with_priors(system: System, geometry: Geometry, precision: Tensor, mean: Tensor) -> System:
    """Add gradient and curvature of the priors."""
    return system._replace(
        gradient=system.gradient + precision * (mean - stack_theta(geometry)),
        curvature=system.curvature + torch.diag_embed(precision),
    )


def stack_theta(geometry: Geometry) -> Tensor:
    """All of (u, c * offsets, nodes) as one vector, [* theta]."""
    return torch.cat([geometry.ue_position, geometry.offset_m, geometry.node_position.flatten(-2)], -1)


def _trust(system: System, scales: Scales, width: float) -> tuple[Tensor, Tensor]:
    """Weak precision of theta [theta] and of the free paths [free]."""
    theta = (width * scales.metre) ** -2 * torch.ones_like(system.gradient[..., :])
    psi = torch.stack([width * scales.metre, width * scales.radian, width * scales.radian]) ** -2
    return theta, psi.repeat(system.free_gradient.shape[-1] // 3).expand_as(system.free_gradient)


class Factors(NamedTuple):
    """Scaled and factorised system: theta after elimination of the free paths."""

    chol: Tensor  # [* theta theta] lower factor of the Schur complement
    scale: Tensor  # [* theta]
    free_chol: Tensor  # [* bs free free]
    free_scale: Tensor  # [* bs free]
    half: Tensor  # [* bs free theta] L^-1 (scaled cross)^T
    failed: Tensor  # [*] bool: not positive definite, the diagonal was used


def factorise(system: System, scales: Scales, lm: Tensor, width: float = TRUST) -> Factors:
    """Scale by the diagonal, add `lm` to it, eliminate the free paths, factorise.

    Args:
        system: normal equations.
        scales: natural lengths.
        lm: [*] or [] Levenberg-Marquardt damping relative to the diagonal.
        width: standard deviation of the weak prior in natural lengths.
    """
    lm = torch.as_tensor(lm, dtype=system.gradient.dtype, device=system.gradient.device)
    trust, free_trust = _trust(system, scales, width)
    diagonal = system.curvature.diagonal(dim1=-2, dim2=-1).clamp(min=0.0) + trust
    free_diagonal = system.free_curvature.diagonal(dim1=-2, dim2=-1).clamp(min=0.0) + free_trust
    scale, free_scale = diagonal.rsqrt(), free_diagonal.rsqrt()
    ridge = trust * scale.square() + lm[..., None]
    free_ridge = free_trust * free_scale.square() + lm[..., None, None]

    inner = free_scale[..., :, None] * system.free_curvature * free_scale[..., None, :] + torch.diag_embed(free_ridge)
    free_chol, free_failed = _cholesky(inner)
    cross = free_scale[..., :, None] * system.cross.mT * scale[..., None, None, :]
    half = torch.linalg.solve_triangular(free_chol, cross, upper=False)
    outer = scale[..., :, None] * system.curvature * scale[..., None, :] + torch.diag_embed(ridge)
    chol, failed = _cholesky(outer - (half.mT @ half).sum(-3))
    return Factors(chol, scale, free_chol, free_scale, half, failed | free_failed.any(-1))


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factor; where there is none the factor of twice the identity (a short diagonal step), and a flag."""
    chol, info = torch.linalg.cholesky_ex(matrix)
    failed = info != 0
    if bool(failed.any()):
        eye = 2.0 * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        chol, _ = torch.linalg.cholesky_ex(torch.where(failed[..., None, None], eye, matrix))
    return chol, failed


def solve(factors: Factors, system: System) -> tuple[Tensor, Tensor]:
    """Step of theta [* theta] and of the free paths [* bs free] (back-substituted)."""
    free_rhs = (factors.free_scale * system.free_gradient)[..., None]
    white = torch.linalg.solve_triangular(factors.free_chol, free_rhs, upper=False)
    rhs = (factors.scale * system.gradient)[..., None] - (factors.half.mT @ white).sum(-3)
    step = torch.cholesky_solve(rhs, factors.chol)
    rest = white - factors.half @ step[..., None, :, :]
    free = torch.linalg.solve_triangular(factors.free_chol.mT, rest, upper=True)
    return factors.scale * step[..., 0], factors.free_scale * free[..., 0]


def capped(step: Tensor, free: Tensor, bs: int, scales: Scales, cap: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    """Relax and shorten a step.

    User and offsets are coupled: one factor for both, and for what follows them. A node that still moves by more than
    the cap is hardly supported and is shortened alone.

    Args:
        step: [* theta].
        free: [* bs free].
        bs: number of stations.
        scales: natural lengths.
        cap: [] or [*] largest step in natural lengths.
        steps: relaxation factors.
    """
    ue, offset, node = step[..., :3], step[..., 3 : 3 + bs], step[..., 3 + bs :].unflatten(-1, (-1, 3))
    ue, offset, node = steps.ue[..., None] * ue, steps.offset[..., None] * offset, steps.node[..., None, None] * node
    free = (steps.free[..., None, None] * free).unflatten(-1, (-1, 3))
    longest = torch.maximum(_length(ue), offset.abs().amax(-1))
    limit = cap * scales.metre
    common = _shorten(longest, limit)
    node = common[..., None, None] * node
    size = _length(node)
    node = _shorten(size, per_scene(limit, size))[..., None] * node
    unit = torch.stack([limit, cap * scales.radian, cap * scales.radian], -1)[..., None, None, :]
    free = _shorten(_length(free / unit), torch.ones_like(scales.metre))[..., None] * free
    return torch.cat([common[..., None] * ue, common[..., None] * offset, node.flatten(-2)], -1), free.flatten(-2)


def _length(vector: Tensor) -> Tensor:
    """Euclidean norm whose gradient at zero is zero."""
    square = vector.square().sum(-1)
    return torch.where(square > 0, square, torch.ones_like(square)).sqrt() * (square > 0)


def _shorten(length: Tensor, limit: Tensor) -> Tensor:
    """Factor min(1, limit / length)."""
    return torch.where(
        length > limit, limit / torch.where(length > limit, length, torch.ones_like(length)), torch.ones_like(length)
    )


def moved(geometry: Geometry, step: Tensor, free: Tensor, free_basis: Tensor) -> Geometry:
    """Geometry after a step; directions stay unit vectors.

    Args:
        geometry: the point at which the system was formed.
        step: [* theta].
        free: [* bs free] (range, t1, t2) per free path.
        free_basis: [* bs free xyz 2] tangents that t1 and t2 refer to.
    """
    bs = geometry.offset_m.shape[-1]
    psi = free.unflatten(-1, (-1, 3)) * geometry.free_mask[..., None]
    direction = geometry.free_direction + (free_basis @ psi[..., 1:, None])[..., 0]
    direction = torch.where(geometry.free_mask[..., None], direction, geometry.free_direction)
    node = step[..., 3 + bs :].unflatten(-1, (-1, 3)) * geometry.node_mask[..., None]
    return geometry._replace(
        ue_position=geometry.ue_position + step[..., :3],
        offset_m=geometry.offset_m + step[..., 3 : 3 + bs],
        node_position=geometry.node_position + node,
        free_range_m=geometry.free_range_m + psi[..., 0],
        free_direction=direction_and_range(direction, torch.zeros_like(direction))[0],
    )


def free_tangents(geometry: Geometry) -> Tensor:
    """Tangent bases of the free paths, [* bs free xyz 2]."""
    return tangent_basis(geometry.free_direction)
