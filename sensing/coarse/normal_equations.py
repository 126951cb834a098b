"""Normal equations of user, clock offsets and scatterers, and the elimination of the scatterers (3x3 blocks)."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.measurements import Measurements, PathData, misfit, straight_paths
from sensing.coarse.pairs import region_box
from sensing.containers import Deployment
from sensing.geometry import bounce_ranges
from sensing.units import SPEED_OF_LIGHT
from sensing.walls import beyond, user_walls


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


class System(NamedTuple):
    """Normal equations over (user, offsets), n = 3 + bs unknowns, and the scatterers."""

    common: Tensor  # [* n n]
    cross: Tensor  # [* cluster n 3]
    block: Tensor  # [* cluster 3 3]
    gradient: Tensor  # [* n]
    node_gradient: Tensor  # [* cluster 3]
    cost: Tensor  # [*]
    wall: Tensor  # [* xyz] curvature of the walls, part of `common`


def assemble(
    ue: Tensor, offset: Tensor, position: Tensor, data: Measurements, prior: LocationPrior, deployment: Deployment
) -> System:
    """Normal equations of the objective at a point."""
    stations = len(deployment.bs_position)
    ranges, k, leg, toward = bounce_ranges(position, ue, deployment.bs_position, offset)  # [* bs cluster]
    ranges, k, leg = ranges.mT, k.transpose(-3, -2), leg.mT.clamp_min(1e-3)  # [* cluster bs]
    residual = misfit(ranges, k, data, deployment)
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
        line = line_of_sight_system(ue, offset, data.direct, deployment, data.ground)
        common, gradient, cost = common + line.common, gradient + line.gradient, cost + line.cost
    return System(common, cross, block, gradient, node_gradient, cost, wall)


class LineSystem(NamedTuple):
    """Normal equations of the lines of sight over (user, offsets)."""

    common: Tensor  # [* n n]
    gradient: Tensor  # [* n]
    cost: Tensor  # [*]


def line_of_sight_system(
    ue: Tensor, offset: Tensor, data: PathData, deployment: Deployment, ground: Tensor | None = None
) -> LineSystem:
    """Normal equations of lines of sight, by the ground or not, at a point (user [* xyz], offsets [* bs])."""
    range_m, direction, jac = straight_paths(ue, offset, deployment, ground)
    residual = misfit(range_m, direction, data, deployment)
    pull = (data.information @ residual[..., None]).squeeze(-1)
    common = (jac.mT @ data.information @ jac).sum(-3)
    gradient = (jac.mT @ pull[..., None]).sum(-3).squeeze(-1)
    return LineSystem(common, gradient, (residual * pull).sum((-2, -1)))


def unit_scale(information: Tensor) -> Tensor:
    """Factors that bring the diagonal to one; one where nothing is known (a flat prior without measurements)."""
    diagonal = information.diagonal(dim1=-2, dim2=-1)
    return torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()


def inverse_information(information: Tensor) -> Tensor:
    """Covariance [* n n] of an information matrix; huge but finite where it says nothing."""
    scale = unit_scale(information)
    outer = scale[..., :, None] * scale[..., None, :]
    eye = torch.eye(information.shape[-1], dtype=information.dtype, device=information.device)
    return torch.linalg.inv_ex(information * outer + 1e-13 * eye)[0] * outer


def eliminated(system: System, damping: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
