"""Exhaustive search of the user where clusters may be points, images of the user, the user, or anything.

As in `user_search`, but it is the score of `user_score` that is evaluated on a grid over the region, with beta taken
from every cluster in turn (no outlier can hide the true value as long as one cluster is right), and refined at its best
distinct peaks.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sensing.coarse.pairs import wrap
from sensing.coarse.user_score import Hypothesis, Shares, proposals, score, shares
from sensing.coarse.user_search import UserModes, repeats_last, user_box, user_grid
from sensing.containers import Deployment
from sensing.units import SPEED_OF_LIGHT
from sensing.walls import beyond, user_walls

PLANE_CELL = 1.5  # largest cell [m] of a plane of users: scores peak within a few metres


def search_bounced_user(case: Hypothesis, deployment: Deployment, modes: int = 16, points: int = 3000) -> UserModes:
    """Best grid cells by score, one per neighbourhood, refined.

    Args:
        case: clusters and paths of the scenes, with their offsets relative to station 0.
        deployment: region and offset prior.
        modes: starts returned.
        points: size of the grid; a plane (height known) gets cells of PLANE_CELL if these need more.

    Returns:
        UserModes, its cost the negative score; somewhere in the box where a scene has no cluster.
    """
    extent = user_box(deployment).diff(dim=0).squeeze(0)
    if bool(extent[2] < PLANE_CELL):
        points = int((extent[0] * extent[1] / PLANE_CELL**2).clamp(points, 10 * points))
    grid, cell = user_grid(deployment, points)
    value, beta = grid_score(grid, cell, case, deployment)
    refined = _refine(_distinct(grid, beta, value, cell, modes), cell, case, deployment)
    return repeats_last(refined, 0.5 * cell.norm())


def grid_score(grid: Tensor, cell: Tensor, case: Hypothesis, deployment: Deployment) -> tuple[Tensor, Tensor]:
    """Score of grid points [grid xyz] with the best common offset there, and that offset: [b grid] each."""
    # metres on a grid of decimetres: single precision is ample and twice as fast
    points = grid.to(torch.float32)[None]
    beta = proposals(points, case, deployment)
    # mean square distance of a point from its cell centre, as seen along a random direction
    value = score(points, beta, case, deployment, float(cell.square().sum()) / 36.0)
    absent = ~case.clusters.mask.repeat(1, beta.shape[-1] // case.clusters.mask.shape[-1])[:, None]
    best, index = value.masked_fill(absent, -torch.inf).max(-1)
    found = torch.isfinite(best)
    beta = beta.gather(-1, index[..., None]).squeeze(-1)
    nothing = torch.zeros_like(best)
    return torch.where(found, best, nothing).double(), torch.where(found, beta, nothing).double()


def _distinct(grid: Tensor, beta: Tensor, value: Tensor, cell: Tensor, modes: int) -> UserModes:
    """Repeatedly take the best cell and remove its neighbourhood (two cells)."""
    rows = torch.arange(len(value), device=value.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(min(modes, len(grid))):
        best, index = value.max(-1)
        found.append((grid[index], beta[rows, index], best))
        near = ((grid[None] - grid[index][:, None]).abs() <= 2.01 * cell).all(-1)
        value = torch.where(near, torch.full_like(value, -torch.inf), value)
    position, offset, height = (torch.stack(field, 1) for field in zip(*found, strict=True))
    return UserModes(position, offset, -height)


def _refine(modes: UserModes, cell: Tensor, case: Hypothesis, deployment: Deployment, steps: int = 10) -> UserModes:
    """Expectation maximisation of (u, beta) per mode under the mixture; its widths shrink from the grid's to their own.

    A step solves the weighted least squares in which every cluster counts as `point`, `image` and `user` by its
    posterior probability of being one.
    """
    ue, beta = modes.ue_position, modes.common_offset
    box, walls, offsets = user_box(deployment), user_walls(deployment), case.offset_m[:, None]
    eye = torch.eye(4, dtype=ue.dtype, device=ue.device)
    vague = 1.0 / (3.0 * box.diff(dim=0).norm()).square()
    clock = 1.0 / (SPEED_OF_LIGHT * deployment.clock_offset_std).clamp_min(1e-3).square()
    for step in range(steps):
        width = float(cell.square().sum()) / 36.0 * 0.5**step
        normal, gradient = _normal_equations(
            ue, beta, case, shares(ue, beta, case, deployment, width), width, deployment
        )
        distance, wall = beyond(ue, walls)
        normal = normal + vague * eye + torch.diag_embed(pad(wall, (0, 1)))
        gradient = gradient + pad(wall * distance, (0, 1))
        stray = wrap(offsets + beta[..., None], deployment.range_ambiguity)
        normal[..., 3, 3] += clock * offsets.shape[-1]
        gradient[..., 3] += clock * stray.sum(-1)
        if deployment.ue_height_range is not None:
            tight = 12.0 / deployment.ue_height_range.diff().squeeze().clamp_min(0.01).square()
            normal[..., 2, 2] += tight
            gradient[..., 2] += tight * (ue[..., 2] - deployment.ue_height_range.mean())
        delta = -torch.linalg.solve_ex(normal, gradient)[0].nan_to_num().clamp(-5.0, 5.0)
        ue, beta = ue + delta[..., :3], beta + delta[..., 3]
    distance, wall = beyond(ue, walls)
    value = score(ue, beta[..., None], case, deployment).squeeze(-1).double() - 0.5 * (wall * distance.square()).sum(-1)
    order = value.argsort(dim=-1, descending=True, stable=True)
    rows = torch.arange(len(value), device=value.device)[:, None]
    return UserModes(ue[rows, order], beta[rows, order], -value[rows, order])


def _normal_equations(
    ue: Tensor, beta: Tensor, case: Hypothesis, share: Shares, width: float, deployment: Deployment
) -> tuple[Tensor, Tensor]:
    """Curvature [b m 4 4] and gradient [b m 4] of the weighted squares over (u, beta)."""
    clusters, slack = case.clusters, case.slack_m**2 + width
    covariance = clusters.covariance
    difference = ue[:, :, None] - clusters.position[:, None]
    leg = difference.norm(dim=-1)
    slope = torch.cat([difference / leg.clamp_min(1e-3)[..., None], torch.ones_like(leg)[..., None]], -1)
    variance = ((slope.transpose(1, 2) @ covariance) * slope.transpose(1, 2)).sum(-1).transpose(1, 2) + slack
    residual = wrap(leg + beta[..., None] - clusters.excess[:, None], deployment.range_ambiguity)
    weight = share.point / variance
    normal = torch.einsum("bmk,bmki,bmkj->bmij", weight, slope, slope)
    gradient = torch.einsum("bmk,bmki,bmk->bmi", weight, slope, residual)
    # image and user: straight residuals of (u, beta) against (s, e), the plan position for `user` alone
    spread = covariance.diagonal(dim1=-2, dim2=-1)[:, None] + slack
    straight = torch.cat(
        [difference, wrap(beta[..., None] - clusters.excess[:, None], deployment.range_ambiguity)[..., None]], -1
    )
    either = share.user + share.image
    precision = torch.stack([share.user, share.user, either, either], -1) / spread
    return normal + torch.diag_embed(precision.sum(2)), gradient + (precision * straight).sum(2)
