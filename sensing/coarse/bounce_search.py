"""Exhaustive search of the user where clusters may be points, images of the user, the user, or anything.

As in `user_search`, but it is the score of `user_score` that is evaluated on a grid over the region, with beta taken
from every cluster in turn (no outlier can hide the true value as long as one cluster is right), and refined at its best
distinct peaks.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from sensing.coarse.normal_equations import location_prior
from sensing.coarse.pairs import wrap
from sensing.coarse.user_score import Hypothesis, Shares, proposals, score, shares
from sensing.coarse.user_search import (
    UserModes,
    cluster_residuals,
    distinct_cells,
    ordered,
    repeats_last,
    user_box,
    user_grid,
)
from sensing.containers import Deployment
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
    refined = _refine(distinct_cells(grid, beta, -value, cell, modes), cell, case, deployment)
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


def _refine(modes: UserModes, cell: Tensor, case: Hypothesis, deployment: Deployment, steps: int = 10) -> UserModes:
    """Expectation maximisation of (u, beta) per mode under the mixture; its widths shrink from the grid's to their own.

    A step solves the weighted least squares in which every cluster counts as `point`, `image` and `user` by its
    posterior probability of being one.
    """
    ue, beta = modes.ue_position, modes.common_offset
    walls, offsets, (mean, precision) = user_walls(deployment), case.offset_m[:, None], location_prior(deployment)
    # with a flat prior of the clocks the common offset is held like the user
    clock = precision[3:].sum().clamp_min(precision[0])
    for step in range(steps):
        width = float(cell.square().sum()) / 36.0 * 0.5**step
        normal, gradient = _normal_equations(
            ue, beta, case, shares(ue, beta, case, deployment, width), width, deployment
        )
        distance, wall = beyond(ue, walls)
        normal = normal + torch.diag(torch.cat([precision[:3], clock[None]])) + torch.diag_embed(pad(wall, (0, 1)))
        stray = (precision[3:] * wrap(offsets + beta[..., None], deployment.range_ambiguity)).sum(-1)
        pull = precision[:3] * (ue - mean[:3]) + wall * distance
        gradient = gradient + torch.cat([pull, stray[..., None]], -1)
        delta = -torch.linalg.solve_ex(normal, gradient)[0].nan_to_num().clamp(-5.0, 5.0)
        ue, beta = ue + delta[..., :3], beta + delta[..., 3]
    distance, wall = beyond(ue, walls)
    value = score(ue, beta[..., None], case, deployment).squeeze(-1).double() - 0.5 * (wall * distance.square()).sum(-1)
    return ordered(UserModes(ue, beta, -value), (-value).argsort(dim=-1, stable=True))


def _normal_equations(
    ue: Tensor, beta: Tensor, case: Hypothesis, share: Shares, width: float, deployment: Deployment
) -> tuple[Tensor, Tensor]:
    """Curvature [b m 4 4] and gradient [b m 4] of the weighted squares over (u, beta)."""
    clusters, slack = case.clusters, case.slack_m**2 + width
    _, residual, slope, variance = cluster_residuals(ue, beta, clusters, deployment)
    weight = share.point / (variance + slack)
    normal = torch.einsum("bmk,bmki,bmkj->bmij", weight, slope, slope)
    gradient = torch.einsum("bmk,bmki,bmk->bmi", weight, slope, residual)
    # image and user: straight residuals of (u, beta) against (s, e), the plan position for `user` alone
    spread = clusters.covariance.diagonal(dim1=-2, dim2=-1)[:, None] + slack
    straight = torch.cat(
        [
            ue[:, :, None] - clusters.position[:, None],
            wrap(beta[..., None] - clusters.excess[:, None], deployment.range_ambiguity)[..., None],
        ],
        -1,
    )
    either = share.user + share.image
    precision = torch.stack([share.user, share.user, either, either], -1) / spread
    return normal + torch.diag_embed(precision.sum(2)), gradient + (precision * straight).sum(2)
