"""Users of a site whose walls are known: exhaustive search by mirrored stations, and refinement.

Given a user, the stations' clocks are independent: on a grid of users, every path of a station votes with each mirror
for an offset, by how well the direction fits; the best offset counts. The best users of the grid are refined together
with their offsets by expectation maximisation over which mirror explains which path.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.mirrors import LOG_ODDS, SPREAD_M, Mirrors, explain, possible
from sensing.coarse.normal_equations import LocationPrior, inverse_information, location_prior
from sensing.coarse.pairs import region_box, wrap
from sensing.coarse.rays import take
from sensing.coarse.user_search import distinct_cells, user_box, user_grid
from sensing.containers import Deployment, PathEstimates, map_tensors
from sensing.units import SPEED_OF_LIGHT

CELL_M = 1.0  # of the grid of users
BIN_M = 1.0  # of the votes for an offset
REACH = 3.5  # standard deviations of an offset that are searched
AT_ONCE = 2000  # users of the grid
STEPS, BLUR_M, SHRINK = 12, 1.0, 0.6  # of the refinement: its widths shrink from the grid's to their own
FINAL_M = 0.05  # blur of the evidence of a refined user
COMMON_M = 0.15
"""Standard deviation [m] that all paths by one wall share, as they share its error: no number of them reduces it."""
KERNEL = (0.25, 0.5, 0.25)  # how a vote spreads over bins


class SiteModes(NamedTuple):
    """Users of one scene."""

    ue_position: Tensor  # [n xyz] [m]
    offset_m: Tensor  # [n bs]
    log_odds: Tensor  # [n] evidence in nats, prior included
    information: Tensor  # [n 3+bs 3+bs] of user and offsets, prior included


def search_site(paths: PathEstimates, images: Mirrors, deployment: Deployment, modes: int) -> tuple[Tensor, Tensor]:
    """Best users [modes xyz] of one scene, paths [1 bs path], and their offsets [modes bs]."""
    extent = user_box(deployment).diff(dim=0).squeeze(0)
    layers = (extent[2] / (2.0 * CELL_M)).ceil().clamp_min(1.0)
    grid, cell = user_grid(deployment, int((extent[0] * extent[1] / CELL_M**2 * layers).clamp(3000, 100_000)))
    # metres on a grid of metres: single precision is ample and twice as fast
    coarse = map_tensors(paths, _single), map_tensors(images, _single)
    parts = [_votes(users.to(torch.float32), cell, *coarse, deployment) for users in grid.split(AT_ONCE)]
    value, offset = (torch.cat(part).to(grid)[None] for part in zip(*parts, strict=True))
    found = distinct_cells(grid, offset, -value, cell, modes)
    return found.ue_position[0], found.common_offset[0]


def _single(field: Tensor) -> Tensor:
    return field if field.dtype == torch.bool else field.to(torch.complex64 if field.is_complex() else torch.float32)


def _votes(
    ue: Tensor, cell: Tensor, paths: PathEstimates, images: Mirrors, deployment: Deployment
) -> tuple[Tensor, Tensor]:
    """Evidence [n] of grid points [n xyz] and the best offsets there [n bs]."""
    std = SPEED_OF_LIGHT * float(deployment.clock_offset_std)
    reach = min(REACH * std, float(0.5 * deployment.range_ambiguity), float(region_box(deployment).diff(dim=0).norm()))
    half = math.ceil(reach / BIN_M) + 1
    centre = (torch.arange(2 * half + 1, dtype=ue.dtype, device=ue.device) - half) * BIN_M
    prior = -0.5 * (centre / std).square() if math.isfinite(std) and std > 0 else torch.zeros_like(centre)
    span, spread = float(region_box(deployment).diff(dim=0).norm()), float(cell.square().mean()) / 12.0 + SPREAD_M**2
    exists = possible(ue, images, deployment)
    total, offsets = ue.new_zeros(len(ue)), []
    for q in range(len(deployment.bs_position)):
        mask = paths.mask[0, q]
        k, range_m, covariance = paths.direction[0, q][mask], paths.range_m[0, q][mask], paths.covariance[0, q][mask]
        difference = ue[:, None] - images.station[:, q]
        leg = difference.norm(dim=-1).clamp_min(1e-3)
        seen = torch.einsum("mji,nmj->nmi", images.linear, difference / leg[..., None])
        variance = 0.5 * covariance[:, 1:, 1:].diagonal(dim1=-2, dim2=-1).sum(-1) + (spread / leg.square())[..., None]
        weight = torch.exp((seen @ k.mT - 1.0) / variance) / variance  # [n mirror path], against uniform directions
        late = wrap(range_m - leg[..., None], deployment.range_ambiguity)
        weight = weight * (math.exp(LOG_ODDS) * span / BIN_M) * ((late.abs() < reach) & exists[:, :, q, None])
        place = (late / BIN_M).round().long().clamp(-half + 1, half - 1) + half
        votes = ue.new_zeros(len(ue), len(k), len(centre))
        for shift, part in enumerate(KERNEL):
            votes.scatter_add_(2, (place + shift - 1).mT, part * weight.mT)
        best, index = (votes.log1p().sum(1) + prior).max(-1)
        total = total + best
        offsets.append(centre[index])
    return total, torch.stack(offsets, -1)


def refine_site(
    ue: Tensor, offset: Tensor, paths: PathEstimates, images: Mirrors, deployment: Deployment, slack_m: float
) -> SiteModes:
    """Expectation maximisation of users [n xyz] and offsets [n bs] of one scene, paths [1 bs path]."""
    mean, precision = location_prior(deployment)
    paths = take(paths, torch.zeros(len(ue), dtype=torch.long, device=ue.device))
    args = paths, images, deployment, slack_m
    normal = torch.diag(precision).expand(len(ue), -1, -1)
    for step in range(STEPS):
        found = explain(ue, offset, *args, BLUR_M * SHRINK**step)
        weighted = found.information * found.share[..., None, None]
        pull = (weighted @ found.residual[..., None]).sum(-3)  # [n mirror bs 4 1]
        normal = (found.slope.mT @ weighted.sum(-3) @ found.slope).sum((1, 2)) + torch.diag(precision)
        state = torch.cat([ue, offset], -1)
        gradient = (found.slope.mT @ pull).sum((1, 2)).squeeze(-1) - precision * (state - mean)
        move = torch.linalg.solve_ex(normal, gradient)[0].nan_to_num().clamp(-3.0, 3.0)
        ue, offset = ue + move[:, :3], offset + move[:, 3:]
    stray = precision * (torch.cat([ue, offset], -1) - mean).square()
    return SiteModes(ue, offset, explain(ue, offset, *args, FINAL_M).log_odds - 0.5 * stray.sum(-1), normal)


def site_prior(modes: SiteModes) -> LocationPrior:
    """The refined users as a prior of least squares: user and offsets as independent ones of the same variances."""
    variance = inverse_information(modes.information).diagonal(dim1=-2, dim2=-1) + COMMON_M**2
    return LocationPrior(torch.cat([modes.ue_position, modes.offset_m], -1), 1.0 / variance)
