"""Where the position layer starts: closed forms, one for each kind of measurement.

Stations with range and direction: the mean of their own positions. Directions alone: the point nearest to all lines.
Ranges alone: the crossings of the circles of all pairs, the one that fits all ranges best; its mirror image is
the second mode that two stations, or stations in a line, cannot tell from it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.fusion.domain import Domain
from sensing.fusion.measurements import StationMeasurements

RIDGE = 1e-12
"""Relative; parallel lines have no nearest point."""

INDISTINCT = 4.5
"""Half a squared misfit (three deviations): a mirror image that fits no worse than this is a second mode."""


class Start(NamedTuple):
    """Start of the position layer."""

    position: Tensor  # [* xyz] [m]
    mirror: Tensor  # [* xyz] the second mode of ranges alone; elsewhere the position itself [m]
    ambiguous: Tensor  # [*] bool: there is a second mode


def start_position(measured: StationMeasurements, domain: Domain) -> Start:
    """Start from the measurements of each drop.

    Args:
        measured: [* bs].
        domain: gives the known coordinates, and the more probable of two modes, the one nearer to its centre.
    """
    has_range, has_angle = torch.isfinite(measured.range_std), torch.isfinite(measured.angle_std)
    both = (has_range & has_angle).any(-1)
    position, ambiguous = _own_positions(measured, has_range & has_angle), torch.zeros_like(both)
    if not bool(both.all()):
        position = torch.where(both[..., None], position, _nearest_to_lines(measured, has_angle, domain))
    mirror = position
    ranges = ~has_angle.any(-1)
    if bool(ranges.any()):
        crossing = _crossing(measured, has_range, domain)
        position = torch.where(ranges[..., None], crossing.position, position)
        mirror = torch.where(ranges[..., None], crossing.mirror, position)
        ambiguous = ranges & crossing.ambiguous
    return Start(_at_height(position, domain), _at_height(mirror, domain), ambiguous)


def _at_height(position: Tensor, domain: Domain) -> Tensor:
    """The position with the known coordinates of the domain."""
    return torch.where(domain.cell > 0, position, domain.points[0])


def _own_positions(measured: StationMeasurements, used: Tensor) -> Tensor:
    """Mean of the stations' own positions, weighted by their precision."""
    own = measured.bs_position + measured.range_m[..., None] * measured.direction
    variance = measured.range_std.square() + (measured.range_m * measured.angle_std).square()
    share = torch.where(used, variance.reciprocal(), 0.0)
    share = share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return (share[..., None] * own).sum(-2)


def _nearest_to_lines(measured: StationMeasurements, used: Tensor, domain: Domain) -> Tensor:
    """Least squares `sum_i |(I - u_i u_i^T)(p - b_i)|^2` over the unknown coordinates."""
    unknown, unit = domain.unknown, measured.direction
    across = torch.eye(3, dtype=unit.dtype) - unit[..., :, None] * unit[..., None, :]
    across = across * used[..., None, None]
    known = torch.where(domain.cell > 0, 0.0, domain.points[0])
    matrix = across[..., unknown, :][..., unknown].sum(-3)
    vector = (across @ (measured.bs_position - known)[..., None])[..., unknown, 0].sum(-2)
    scale = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    ridge = (RIDGE * scale).clamp_min(torch.finfo(scale.dtype).tiny) * torch.eye(len(unknown), dtype=unit.dtype)
    position = known.expand(*vector.shape[:-1], 3).clone()
    position[..., unknown] = torch.linalg.solve(matrix + ridge, vector)
    return position


def _crossing(measured: StationMeasurements, used: Tensor, domain: Domain) -> Start:
    """Crossings of the circles around all pairs of stations, at the height of the domain's centre."""
    centre = domain.points.mean(0)
    bs = measured.bs_position.expand(*measured.range_m.shape, 3)
    level = measured.range_m.square() - (centre[2] - bs[..., 2]).square()
    radius = level.clamp_min(0.0).sqrt()
    first, second = torch.triu_indices(bs.shape[-2], bs.shape[-2], 1)
    if not len(first):
        nowhere = centre.expand(*radius.shape[:-1], 3)
        return Start(nowhere, nowhere, torch.zeros_like(used[..., 0]))
    base = (bs[..., second, :] - bs[..., first, :])[..., :2]
    length = torch.linalg.vector_norm(base, dim=-1)
    safe = torch.where(length > 0, length, 1.0)
    along = base / safe[..., None]
    reach = 0.5 * (radius[..., first].square() - radius[..., second].square() + length.square()) / safe
    height = (radius[..., first].square() - reach.square()).clamp_min(0.0).sqrt()
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    foot = bs[..., first, :2] + reach[..., None] * along
    pair = torch.stack([foot + height[..., None] * across, foot - height[..., None] * across], -2)  # [* pair 2 xy]
    pair = torch.cat([pair, centre[2].expand(*pair.shape[:-1], 1)], -1)
    distance = torch.linalg.vector_norm(pair[..., None, :] - bs[..., None, None, :, :], dim=-1)  # [* pair 2 bs]
    misfit = (measured.range_m[..., None, None, :] - distance) / measured.range_std[..., None, None, :]
    cost = torch.where(used[..., None, None, :], 0.5 * misfit.square(), 0.0).sum(-1)
    usable = used[..., first] & used[..., second] & (length > 0)
    cost = torch.where(usable[..., None], cost, torch.inf)
    # of two equal costs the one nearer to the centre of the domain
    away = torch.linalg.vector_norm(pair - centre, dim=-1)
    order = cost + INDISTINCT * away / away.amax((-2, -1), keepdim=True).clamp_min(torch.finfo(away.dtype).tiny)
    best = order.flatten(-2).argmin(-1, keepdim=True)
    flat, costs = pair.flatten(-3, -2), cost.flatten(-2)
    one, two = (flat.gather(-2, index[..., None].expand(*index.shape, 3))[..., 0, :] for index in (best, best ^ 1))
    gap = (costs.gather(-1, best ^ 1) - costs.gather(-1, best))[..., 0]
    apart = torch.linalg.vector_norm(one - two, dim=-1) > 0
    return Start(one, two, torch.where(torch.isfinite(gap), gap < INDISTINCT, False) & apart)
