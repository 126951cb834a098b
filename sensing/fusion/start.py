"""Where the position layer starts: closed forms, one for each kind of measurement.

Stations with range and direction: the mean of their own positions. Directions alone: the point nearest to all lines.
Ranges alone: the crossings of the circles of all pairs, or in space the intersection of the spheres of all stations,
the one that fits all ranges best; of two that fit alike the one nearer to the domain's centre.
"""

import torch
from torch import Tensor

from sensing.fusion.domain import Domain
from sensing.fusion.measurements import StationMeasurements

RIDGE = 1e-12
"""Relative; parallel lines have no nearest point, stations in a plane none beside it."""

INDISTINCT = 4.5
"""Half a squared misfit (three deviations): what fits no worse than this fits alike."""


def start_position(measured: StationMeasurements, domain: Domain) -> Tensor:
    """Start from the measurements of each drop, [* xyz] [m].

    Args:
        measured: [* bs].
        domain: gives the known coordinates, and the more probable of two modes, the one nearer to its centre.
    """
    has_range, has_angle = torch.isfinite(measured.range_std), torch.isfinite(measured.angle_std)
    both = (has_range & has_angle).any(-1)
    position = _own_positions(measured, has_range & has_angle)
    if not bool(both.all()):
        position = torch.where(both[..., None], position, _nearest_to_lines(measured, has_angle, domain))
    ranges = ~has_angle.any(-1)
    if bool(ranges.any()):
        found = (_spheres if len(domain.unknown) == 3 else _circles)(measured, has_range, domain)
        position = torch.where(ranges[..., None], found, position)
    return torch.where(domain.cell > 0, position, domain.points[0])


def station_plane(position: Tensor, used: Tensor, unknown: list[int]) -> tuple[Tensor, Tensor]:
    """Plane nearest to the stations that count, within the unknown coordinates (in the plane: a line).

    Ranges to stations in this plane do not change by a reflection in it.

    Args:
        position: [* bs xyz] [m].
        used: [* bs] bool.
        unknown: the n unknown coordinates.

    Returns:
        Centre [* n] and unit normal [* n].
    """
    centre, _, axis, _ = _principal(position, used, unknown)
    return centre, axis[..., 0]


def _principal(position: Tensor, used: Tensor, unknown: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre [* n], spreads [* n] in rising order, axes [* n axis] and offsets [* bs n] of the stations that count."""
    place = position[..., unknown].expand(*used.shape, len(unknown))
    count = used.sum(-1, keepdim=True).clamp_min(1)
    centre = torch.where(used[..., None], place, 0.0).sum(-2) / count
    offset = torch.where(used[..., None], place - centre[..., None, :], 0.0)
    value, axis = torch.linalg.eigh(offset.mT @ offset)
    return centre, value, axis, offset


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


def _circles(measured: StationMeasurements, used: Tensor, domain: Domain) -> Tensor:
    """The best crossing of the circles around all pairs of stations, at the height of the domain's centre."""
    centre = domain.points.mean(0)
    bs = measured.bs_position.expand(*measured.range_m.shape, 3)
    level = measured.range_m.square() - (centre[2] - bs[..., 2]).square()
    radius = level.clamp_min(0.0).sqrt()
    first, second = torch.triu_indices(bs.shape[-2], bs.shape[-2], 1)
    if not len(first):
        return centre.expand(*radius.shape[:-1], 3)
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
    usable = used[..., first] & used[..., second] & (length > 0)
    return _best(pair.flatten(-3, -2), usable[..., None].expand(*usable.shape, 2).flatten(-2), measured, used, centre)


def _spheres(measured: StationMeasurements, used: Tensor, domain: Domain) -> Tensor:
    """Intersection of the stations' spheres.

    With stations at a_i from their centre, `2 a_i.q = |a_i|^2 - d_i^2 + |q|^2` is linear but for its last term, which
    the mean over stations gives. Of the coordinate along their common normal this tells little: three proposals, both
    roots of `|q|^2` and the linear solution.
    """
    unknown = domain.unknown
    bs, centre = measured.bs_position.expand(*measured.range_m.shape, 3), domain.points.mean(0)
    middle, value, axis, offset = _principal(bs, used, unknown)
    count = used.sum(-1, keepdim=True).clamp_min(1)
    level = torch.where(used, measured.range_m.square() - offset.square().sum(-1), 0.0)
    mean = level.sum(-1, keepdim=True) / count
    right = torch.where(used, 0.5 * (mean - level), 0.0)
    clear = value > RIDGE * value[..., -1:]
    seen = ((offset @ axis).mT @ right[..., None])[..., 0] / torch.where(clear, value, 1.0)
    seen = torch.where(clear, seen, 0.0)  # [* axis]
    height = (mean - seen[..., 1:].square().sum(-1, keepdim=True)).clamp_min(0.0).sqrt()
    along = torch.stack([height, -height, seen[..., :1]], -2)  # [* proposal 1]
    q = torch.cat([along, seen[..., None, 1:].expand(*along.shape[:-1], len(unknown) - 1)], -1)
    place = centre.expand(*q.shape[:-1], 3).clone()
    place[..., unknown] = middle[..., None, :] + q @ axis.mT
    return _best(place, torch.ones_like(place[..., 0], dtype=torch.bool), measured, used, centre)


def _best(place: Tensor, usable: Tensor, measured: StationMeasurements, used: Tensor, centre: Tensor) -> Tensor:
    """Of proposals [* proposal xyz] the one that fits all ranges best; of equals the one nearer to the centre."""
    distance = torch.linalg.vector_norm(place[..., None, :] - measured.bs_position[..., None, :, :], dim=-1)
    misfit = (measured.range_m[..., None, :] - distance) / measured.range_std[..., None, :]
    cost = torch.where(used[..., None, :], 0.5 * misfit.square(), 0.0).sum(-1)
    cost = torch.where(usable, cost, torch.inf)
    away = torch.linalg.vector_norm(place - centre, dim=-1)
    order = cost + INDISTINCT * away / away.amax(-1, keepdim=True).clamp_min(torch.finfo(away.dtype).tiny)
    best = order.argmin(-1)[..., None, None].expand(*order.shape[:-1], 1, 3)
    found = place.gather(-2, best)[..., 0, :]
    return torch.where(usable.any(-1)[..., None], found, centre)  # stations all at one place: no crossing
