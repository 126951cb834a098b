"""Path-level weighted least squares of user, clock offsets and shared scatterers.

    min  sum_{k,q in k} r_kq^T W_kq r_kq + sum_q d_q^T W_q d_q + sum_q (c delta_q)^2 / (c sigma)^2 + height + walls,
    r_kq = [ ||s_k - b_q|| + ||s_k - u|| + c delta_q - range_q ; (s_k - b_q)/||s_k - b_q|| - direction_q ]
    d_q  = [ ||u - b_q|| + c delta_q - range_q ; (u - b_q)/||u - b_q|| - direction_q ]     (line of sight, where seen)

with W the full information of each detected path, so that it is the maximum a posteriori estimate given the detections.
Levenberg-Marquardt with the scatterers eliminated (3x3 blocks); everything is batched over scenes and starts. It
converges from anywhere in a hall, unlike the refinement on the signal itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.clusters import gather_members
from sensing.coarse.pairs import region_box, wrap
from sensing.containers import Deployment, PathEstimates
from sensing.geometry import bounce_ranges, direction_and_range
from sensing.units import SPEED_OF_LIGHT
from sensing.walls import beyond, user_walls


class PathData(NamedTuple):
    """Measured paths; leading axes are batch axes."""

    range_m: Tensor  # [* bs]
    direction: Tensor  # [* bs xyz]
    information: Tensor  # [* bs 4 4], zero where the station has none


class Measurements(NamedTuple):
    """Member paths of each cluster, and the lines of sight; leading axes are batch axes."""

    range_m: Tensor  # [* cluster bs]
    direction: Tensor  # [* cluster bs xyz]
    information: Tensor  # [* cluster bs 4 4], zero where the station has no member
    direct: PathData | None = None  # [* bs ...]


class Solution(NamedTuple):
    """Minimiser and its quality."""

    ue_position: Tensor  # [* xyz]
    offset_m: Tensor  # [* bs]
    position: Tensor  # [* cluster xyz]
    cost: Tensor  # [*] minimum of the objective
    information: Tensor  # [* 3+bs 3+bs] of (user, offsets), scatterers eliminated, priors included
    node_covariance: Tensor  # [* cluster 3 3]


class _System(NamedTuple):
    common: Tensor  # [* n n], n = 3 + bs
    cross: Tensor  # [* cluster n 3]
    block: Tensor  # [* cluster 3 3]
    gradient: Tensor  # [* n]
    node_gradient: Tensor  # [* cluster 3]
    cost: Tensor  # [*]
    wall: Tensor  # [* xyz] curvature of the walls, part of `common`


class LocationPrior(NamedTuple):
    """Gaussian prior of (user, offsets): mean and precision of each coordinate [n]."""

    mean: Tensor
    precision: Tensor


def location_prior(deployment: Deployment) -> LocationPrior:
    """Offsets N(0, sigma^2); user spread over the region (weak); height over its range where one is given."""
    stations = len(deployment.bs_position)
    box = region_box(deployment)
    mean = torch.cat([box.mean(0), box.new_zeros(stations)])
    width = (box[1] - box[0]).norm()
    precision = mean.new_ones(3 + stations)
    # a standard deviation of three diagonals: it decides only where nothing else does
    precision[:3] = 1.0 / (3.0 * width).square()
    # sigma = 0 (known clocks) becomes a micrometre: tighter would only cost digits
    precision[3:] = 1.0 / (SPEED_OF_LIGHT * deployment.clock_offset_std).clamp_min(1e-6).square()
    if deployment.ue_height_range is not None:
        low, high = deployment.ue_height_range
        mean[2] = 0.5 * (low + high)
        precision[2] = 12.0 / (high - low).clamp_min(0.01).square()
    return LocationPrior(mean, precision)


def cluster_measurements(
    path: Tensor, paths: PathEstimates, weights: Tensor | None = None, direct: Tensor | None = None
) -> Measurements:
    """Collect the member paths [b cluster bs] of each cluster.

    Args:
        path: member indices, -1 for none.
        paths: detected paths.
        weights: [b bs path 2] fusion weights that multiply the information of range and direction; None is one.
        direct: [b bs] index of each station's line of sight, -1 for none.
    """
    information = paths.information
    if weights is not None:
        root = weights.sqrt()
        root = torch.cat([root[..., :1], root[..., 1:].expand(*root.shape[:-1], 3)], -1)
        information = information * root[..., :, None] * root[..., None, :]
    everything = PathData(paths.range_m, paths.direction, information)
    line = None
    if direct is not None and bool((direct >= 0).any()):
        line = PathData(*(field[:, 0] for field in _gather(everything, direct[:, None])))
    return Measurements(*_gather(everything, path), line)


def _gather(data: PathData, path: Tensor) -> PathData:
    member = (path >= 0)[..., None, None]
    range_m, direction, information = (gather_members(field, path) for field in data)
    return PathData(range_m, direction, information * member)


def _assemble(
    ue: Tensor, offset: Tensor, position: Tensor, data: Measurements, prior: LocationPrior, deployment: Deployment
) -> _System:
    """Normal equations of the objective at a point."""
    stations = len(deployment.bs_position)
    ranges, k, leg, toward = bounce_ranges(position, ue, deployment.bs_position, offset)  # [* bs cluster]
    ranges, k, leg = ranges.mT, k.transpose(-3, -2), leg.mT.clamp_min(1e-3)  # [* cluster bs]
    residual = torch.cat([wrap(ranges - data.range_m, deployment.range_ambiguity)[..., None], k - data.direction], -1)
    eye = torch.eye(3, dtype=ue.dtype, device=ue.device)
    jac = residual.new_zeros(*residual.shape, 3)  # with respect to the scatterer
    jac[..., 0, :] = k + toward[..., None, :]
    jac[..., 1:, :] = (eye - k[..., :, None] * k[..., None, :]) / leg[..., None, None]
    weighted_residual = (data.information @ residual[..., None]).squeeze(-1)  # [* cluster bs 4]
    weighted = data.information @ jac
    block = (jac.mT @ weighted).sum(-3)
    node_gradient = (jac.mT @ weighted_residual[..., None]).sum(-3).squeeze(-1)
    # user and offset enter through the range row alone: d range / d(user, offset_q) = [-toward, 1]
    range_weight = data.information[..., 0, 0]  # [* cluster bs]
    user = -toward  # [* cluster xyz]
    common = residual.new_zeros(*ue.shape[:-1], 3 + stations, 3 + stations)
    summed = range_weight.sum(-1)
    common[..., :3, :3] = torch.einsum("...k,...ki,...kj->...ij", summed, user, user)
    user_offset = torch.einsum("...kq,...ki->...iq", range_weight, user)
    common[..., :3, 3:] = user_offset
    common[..., 3:, :3] = user_offset.mT
    common[..., 3:, 3:] = torch.diag_embed(range_weight.sum(-2))
    common = common + torch.diag_embed(prior.precision)
    row = weighted[..., 0, :]  # [* cluster bs 3]: range row of W times the scatterer Jacobian
    cross = torch.cat([user[..., :, None] * row.sum(-2)[..., None, :], row], -2)  # [* cluster n 3]
    pull = weighted_residual[..., 0]  # [* cluster bs]
    state = torch.cat([ue, offset], -1)
    gradient = torch.cat([torch.einsum("...k,...ki->...i", pull.sum(-1), user), pull.sum(-2)], -1)
    gradient = gradient + prior.precision * (state - prior.mean)
    distance, wall = beyond(ue, user_walls(deployment))
    common[..., :3, :3] += torch.diag_embed(wall)
    gradient[..., :3] += wall * distance
    cost = (residual * weighted_residual).sum((-3, -2, -1)) + (prior.precision * (state - prior.mean).square()).sum(-1)
    cost = cost + (wall * distance.square()).sum(-1)
    if data.direct is not None:
        line = line_of_sight_system(ue, offset, data.direct, deployment)
        common, gradient, cost = common + line.common, gradient + line.gradient, cost + line.cost
    return _System(common, cross, block, gradient, node_gradient, cost, wall)


class LineSystem(NamedTuple):
    """Normal equations of the lines of sight over (user, offsets)."""

    common: Tensor  # [* n n]
    gradient: Tensor  # [* n]
    cost: Tensor  # [*]


def line_of_sight_system(ue: Tensor, offset: Tensor, data: PathData, deployment: Deployment) -> LineSystem:
    """A line of sight is a path whose scatterer is the user: `[||u - b|| + c delta; direction of u - b]`."""
    k, leg = direction_and_range(ue[..., None, :], deployment.bs_position)  # [* bs xyz], from the station to the user
    residual_range = wrap(leg + offset - data.range_m, deployment.range_ambiguity)
    residual = torch.cat([residual_range[..., None], k - data.direction], -1)
    eye = torch.eye(3 + len(deployment.bs_position), dtype=ue.dtype, device=ue.device)
    jac = residual.new_zeros(*residual.shape, len(eye))
    jac[..., 0, :3] = k
    jac[..., 0, 3:] = eye[3:, 3:]
    jac[..., 1:, :3] = (eye[:3, :3] - k[..., :, None] * k[..., None, :]) / leg.clamp_min(1e-3)[..., None, None]
    pull = (data.information @ residual[..., None]).squeeze(-1)
    common = (jac.mT @ data.information @ jac).sum(-3)
    gradient = (jac.mT @ pull[..., None]).sum(-3).squeeze(-1)
    return LineSystem(common, gradient, (residual * pull).sum((-2, -1)))


def _unit_scale(information: Tensor) -> Tensor:
    """Factors that bring the diagonal to one; one where nothing is known (a flat prior without measurements)."""
    diagonal = information.diagonal(dim1=-2, dim2=-1)
    return torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()


def inverse_information(information: Tensor) -> Tensor:
    """Covariance [* n n] of an information matrix; huge but finite where it says nothing."""
    scale = _unit_scale(information)
    outer = scale[..., :, None] * scale[..., None, :]
    eye = torch.eye(information.shape[-1], dtype=information.dtype, device=information.device)
    return torch.linalg.inv_ex(information * outer + 1e-13 * eye)[0] * outer


def _reduce(system: _System, damping: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eliminate the scatterers: reduced matrix, reduced gradient, inverse blocks, and cross times inverse."""
    scale = system.block.diagonal(dim1=-2, dim2=-1)
    absent = (scale.sum(-1) <= 0).to(scale.dtype)
    # absent clusters get an identity block; present ones a damped diagonal that keeps a two-view block invertible
    ridge = (torch.as_tensor(damping, dtype=scale.dtype)[..., None, None] + 1e-9) * scale + absent[..., None]
    inverse = torch.linalg.inv_ex(system.block + torch.diag_embed(ridge))[0]
    half = system.cross @ inverse
    reduced = system.common - (half @ system.cross.mT).sum(-3)
    gradient = system.gradient - (half @ system.node_gradient[..., None]).sum(-3).squeeze(-1)
    return reduced, gradient, inverse, half


def _step(system: _System, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Gauss-Newton step of (user, offsets) [* n] and of the scatterers [* cluster 3]."""
    reduced, gradient, inverse, _ = _reduce(system, damping)
    scale = _unit_scale(system.common)
    scaled = reduced * scale[..., :, None] * scale[..., None, :]
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    scaled = scaled + (damping[..., None, None] + 1e-12) * eye
    delta = -scale * torch.linalg.solve_ex(scaled, scale * gradient)[0]
    node = -(inverse @ (system.node_gradient[..., None] + system.cross.mT @ delta[..., None, :, None])).squeeze(-1)
    return delta, node


def solve_location(
    data: Measurements,
    ue: Tensor,
    offset: Tensor,
    position: Tensor,
    deployment: Deployment,
    steps: int = 20,
    cap_m: float = 20.0,
    tolerance: float = 1e-4,
) -> Solution:
    """Levenberg-Marquardt from given starts.

    Args:
        data: member paths [* cluster bs].
        ue: [* xyz] start [m].
        offset: [* bs] start [m].
        position: [* cluster xyz] start [m].
        deployment: stations and priors.
        steps: most iterations.
        cap_m: longest step of any coordinate [m].
        tolerance: a scene stops when its cost falls by less than this (squared residual units).

    Returns:
        The best point visited.
    """
    prior = location_prior(deployment)
    system = _assemble(ue, offset, position, data, prior, deployment)
    damping = torch.full_like(system.cost, 1e-4)
    active = torch.ones_like(system.cost, dtype=torch.bool)
    for _ in range(steps):
        delta, node = _step(system, damping)
        delta, node = torch.nan_to_num(delta).clamp(-cap_m, cap_m), torch.nan_to_num(node).clamp(-cap_m, cap_m)
        trial = (ue + delta[..., :3], offset + delta[..., 3:], position + node)
        trial_system = _assemble(*trial, data, prior, deployment)
        # a scene that has converged rests, so that no scene depends on the others of its batch
        better = active & (trial_system.cost < system.cost)
        gain = torch.where(better, system.cost - trial_system.cost, torch.zeros_like(system.cost))
        ue, offset, position = (
            torch.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)
            for new, old in zip(trial, (ue, offset, position), strict=True)
        )
        system = _System(
            *(
                torch.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)
                for new, old in zip(trial_system, system, strict=True)
            )
        )
        damping = torch.where(better, damping / 5.0, damping * 8.0).clamp(1e-9, 1e9)
        active = active & ((gain > tolerance) | (~better & (damping < 1e2)))
        if not active.any():
            break
    return _finish(ue, offset, position, system)


def _finish(ue: Tensor, offset: Tensor, position: Tensor, system: _System) -> Solution:
    """Information of (user, offsets) and covariance of the scatterers at a solution."""
    reduced, _, inverse, half = _reduce(system, 0.0)
    reduced = 0.5 * (reduced + reduced.mT)
    # the law of a user at a wall is cut off there, not narrow: the walls tell nothing about the errors
    reduced[..., :3, :3] -= torch.diag_embed(system.wall)
    covariance = inverse_information(reduced)
    node = inverse + half.mT @ covariance[..., None, :, :] @ half
    return Solution(ue, offset, position, system.cost, reduced, node)


def eliminated_system(
    solution: Solution, data: Measurements, deployment: Deployment, further: Tensor
) -> tuple[Tensor, Tensor]:
    """Cost and log determinant of the information over (user, offsets, present scatterers) at a solution, [*] each.

    Args:
        solution: where to evaluate.
        data: member paths.
        deployment: stations and priors.
        further: [3+bs] precision of user and offsets beyond the prior's.
    """
    system = _assemble(
        solution.ue_position, solution.offset_m, solution.position, data, location_prior(deployment), deployment
    )
    reduced, _, inverse, _ = _reduce(system, 0.0)
    present = system.block.diagonal(dim1=-2, dim2=-1).sum(-1) > 0
    blocks = torch.where(present, -torch.linalg.slogdet(inverse).logabsdet, torch.zeros_like(system.cost)[..., None])
    sign, log_det = torch.linalg.slogdet(reduced + torch.diag(further))
    return system.cost, torch.where(sign > 0, log_det, torch.full_like(log_det, torch.inf)) + blocks.sum(-1)


def differentiable_step(
    data: Measurements, ue: Tensor, offset: Tensor, position: Tensor, deployment: Deployment
) -> tuple[Tensor, Tensor, Tensor]:
    """A converged solution, unchanged in value, with the derivative of an undamped Gauss-Newton step.

    At the minimiser that is `-H^-1 d gradient` with H the Gauss-Newton curvature: the implicit derivative of the arg
    min by the measurements and their weights. The value stays, so that training and evaluation see the same.
    """
    system = _assemble(ue.detach(), offset.detach(), position.detach(), data, location_prior(deployment), deployment)
    delta, node = _step(system, torch.zeros_like(system.cost))
    common = torch.nan_to_num(delta - delta.detach())
    return ue + common[..., :3], offset + common[..., 3:], position + torch.nan_to_num(node - node.detach())
