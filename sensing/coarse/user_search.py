"""Exhaustive, robust search of the user: where do the clusters' excess lengths agree?

Each cluster k gives `e_k = ||s_k - u|| + beta`, beta = c delta_0, four unknowns as in GPS and as multi-modal. On a grid
over the region the cost is a truncated sum of squares, with beta taken from every cluster in turn (no outlier can hide
the true value as long as one cluster is right).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sensing.coarse.clusters import Clusters
from sensing.coarse.pairs import region_box, wrap
from sensing.containers import Deployment
from sensing.units import SPEED_OF_LIGHT
from sensing.walls import beyond, user_walls


class UserModes(NamedTuple):
    """Distinct starts, best first; then repeats of these."""

    ue_position: Tensor  # [* mode xyz] [m]
    common_offset: Tensor  # [* mode] beta = c delta_0 [m]
    cost: Tensor  # [* mode] truncated cost


def user_box(deployment: Deployment) -> Tensor:
    """Box [2 xyz] of possible user positions [m]: the region, cut to the height range where one is given."""
    box = region_box(deployment).clone()
    if deployment.ue_height_range is not None:
        box[:, 2] = deployment.ue_height_range
    return box


def user_grid(deployment: Deployment, points: int) -> tuple[Tensor, Tensor]:
    """About `points` cell centres [grid xyz] covering the user box, and the cell size [xyz] [m]."""
    box = user_box(deployment)
    extent = (box[1] - box[0]).clamp_min(1e-3)
    pitch = (extent.prod() / points) ** (1.0 / 3.0)
    # flat boxes (known height) spend their points in the plane
    counts = (extent / pitch).clamp_min(1.0)
    counts = (counts * (points / counts.prod()) ** (1.0 / (counts > 1.0).sum().clamp_min(1))).where(
        counts > 1.0, counts
    )
    counts = counts.round().long().clamp_min(1)
    axes = [
        box[0, i] + extent[i] * (torch.arange(int(counts[i]), device=box.device) + 0.5) / counts[i] for i in range(3)
    ]
    return torch.cartesian_prod(*axes), extent / counts


def search_user(
    clusters: Clusters,
    offset_m: Tensor,
    deployment: Deployment,
    modes: int = 16,
    points: int = 3000,
    truncation: float = 9.0,
) -> UserModes:
    """Best grid cells by truncated cost, one per neighbourhood.

    Args:
        clusters: associated paths with their (position, excess) estimates.
        offset_m: [b bs] offsets relative to station 0 [m].
        deployment: region and offset prior.
        modes: starts returned.
        points: size of the grid.
        truncation: largest squared residual of one cluster.

    Returns:
        UserModes; the box centre with the prior mean offset where a scene has no cluster.
    """
    cells = search_cells(clusters, offset_m, deployment, modes, points, truncation)
    _, cell = user_grid(deployment, points)
    return repeats_last(_refine(cells, clusters, deployment), 0.5 * cell.norm())


def search_cells(
    clusters: Clusters,
    offset_m: Tensor,
    deployment: Deployment,
    cells: int,
    points: int = 3000,
    truncation: float = 9.0,
) -> UserModes:
    """The best grid cells themselves, at least two cells apart; arguments as in `search_user`."""
    grid, cell = user_grid(deployment, points)
    cost, beta = grid_cost(grid, cell, clusters, offset_m, deployment, truncation)
    return distinct_cells(grid, beta, cost, cell, cells)


def grid_cost(
    grid: Tensor, cell: Tensor, clusters: Clusters, offset_m: Tensor, deployment: Deployment, truncation: float
) -> tuple[Tensor, Tensor]:
    """Truncated cost of grid points [grid xyz], and the best common offset there: [b grid] each."""
    single = torch.float32  # metres on a grid of decimetres: single precision is ample and twice as fast
    position, covariance = clusters.position.to(single), clusters.covariance.to(single)
    difference = grid.to(single)[None, None] - position[:, :, None]  # [b k g xyz]
    leg = torch.linalg.vector_norm(difference, dim=-1)
    slope = torch.cat([difference / leg.clamp_min(1e-3)[..., None], torch.ones_like(leg)[..., None]], -1)
    variance = ((slope @ covariance) * slope).sum(-1)
    # mean square distance of a point from its cell centre, as seen along a random direction
    variance = (variance + cell.square().sum().to(single) / 36.0).mT.contiguous()  # [b g k]
    value = clusters.excess.to(single)[:, None] - leg.mT  # [b g k] proposals of beta
    ambiguity = deployment.range_ambiguity.to(single)
    cost = value.new_zeros(value.shape)
    for k in range(value.shape[-1]):
        residual = wrap(value[..., k : k + 1] - value, ambiguity)
        squared = (residual.square() / variance[..., k : k + 1]).clamp_max(truncation)
        cost = cost + squared * clusters.mask[:, None, k : k + 1]
    std = (SPEED_OF_LIGHT * deployment.clock_offset_std).to(single)
    if torch.isfinite(std):
        # beta itself is only known to the grid's resolution
        spread = std.square() + (cell.norm().to(single) / 4.0).square()
        for q in range(offset_m.shape[-1]):
            prior = wrap(offset_m[:, q, None, None].to(single) + value, ambiguity)
            cost = cost + (prior.square() / spread).clamp_max(truncation)
    cost = torch.where(clusters.mask[:, None], cost, torch.full_like(cost, torch.inf))
    cost, proposal = cost.min(-1)
    beta = value.gather(-1, proposal[..., None]).squeeze(-1)
    empty = ~clusters.mask.any(-1)
    cost = torch.where(empty[:, None], torch.zeros_like(cost), cost)
    beta = torch.where(empty[:, None], torch.zeros_like(beta), beta)
    return cost.double(), beta.double()


def distinct_cells(grid: Tensor, beta: Tensor, cost: Tensor, cell: Tensor, modes: int) -> UserModes:
    """Repeatedly take the cheapest cell and remove its neighbourhood (two cells)."""
    rows = torch.arange(len(cost), device=cost.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(min(modes, len(grid))):
        best, index = cost.min(-1)
        found.append((grid[index], beta[rows, index], best))
        near = ((grid[None] - grid[index][:, None]).abs() <= 2.01 * cell).all(-1)
        cost = torch.where(near, torch.full_like(cost, torch.inf), cost)
    position, offset, value = (torch.stack(field, 1) for field in zip(*found, strict=True))
    return UserModes(position, offset, value)


def _refine(
    modes: UserModes, clusters: Clusters, deployment: Deployment, steps: int = 10, scale: float = 3.0
) -> UserModes:
    """Reweighted Gauss-Newton of (u, beta) per mode with the Geman-McClure loss `r^2 / (1 + r^2 / scale^2)`."""
    ue, beta = modes.ue_position, modes.common_offset
    walls = user_walls(deployment)
    eye = torch.eye(4, dtype=ue.dtype, device=ue.device)
    prior = 1.0 / (3.0 * user_box(deployment).diff(dim=0).norm()).square()
    for step in range(steps + 1):
        squared, residual, slope, variance = cluster_residuals(ue, beta, clusters, deployment)
        distance, wall = beyond(ue, walls)
        if step == steps:
            break
        # the width shrinks from the grid's resolution to the statistical one
        width = scale * (1.0 + 8.0 * 0.5**step)
        weight = (1.0 + squared / width**2).pow(-2) / variance * clusters.mask[:, None]
        normal = torch.einsum("bmk,bmki,bmkj->bmij", weight, slope, slope) + prior * eye
        gradient = torch.einsum("bmk,bmki,bmk->bmi", weight, slope, residual)
        normal = normal + torch.diag_embed(pad(wall, (0, 1)))
        gradient = gradient + pad(wall * distance, (0, 1))
        delta = -torch.linalg.solve_ex(normal, gradient)[0].nan_to_num().clamp(-5.0, 5.0)
        ue, beta = ue + delta[..., :3], beta + delta[..., 3]
    cost = (squared / (1.0 + squared / scale**2) * clusters.mask[:, None]).sum(-1)
    cost = cost + (wall * distance.square()).sum(-1)
    return ordered(UserModes(ue, beta, cost), cost.argsort(dim=-1))


def ordered(modes: UserModes, order: Tensor) -> UserModes:
    """Modes in the order [b mode] of their indices."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    return UserModes(*(field[rows, order] for field in modes))


def repeats_last(modes: UserModes, distance: Tensor) -> UserModes:
    """Starts that converged to the same place as a better one go to the end, where they hide no other mode."""
    gap = (modes.ue_position[:, :, None] - modes.ue_position[:, None]).norm(dim=-1)
    repeat = torch.tril(gap < distance, diagonal=-1).any(-1)
    return ordered(modes, repeat.int().argsort(dim=-1, stable=True))


def cluster_residuals(
    ue: Tensor, beta: Tensor, clusters: Clusters, deployment: Deployment
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residuals `||s_k - u|| + beta - e_k` of modes [b mode] against clusters.

    Returns:
        Squared normalised residual, residual [m], slope [b mode k 4] with respect to (u, beta), variance [m^2].
    """
    difference = ue[:, :, None] - clusters.position[:, None]
    leg = difference.norm(dim=-1)
    slope = torch.cat([difference / leg.clamp_min(1e-3)[..., None], torch.ones_like(leg)[..., None]], -1)
    residual = wrap(leg + beta[..., None] - clusters.excess[:, None], deployment.range_ambiguity)
    # the residual depends on (s, e) by minus the same slope
    variance = ((slope.transpose(1, 2) @ clusters.covariance) * slope.transpose(1, 2)).sum(-1).transpose(1, 2)
    return residual.square() / variance, residual, slope, variance
