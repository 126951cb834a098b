"""What a fusion centre gets of detected paths: ranges and directions with the deviations that their information claims.

Of the information J over (range, direction xyz) of a path, with T the two tangents of its direction k, that of each
modality alone is a Schur complement, the inverse of its marginal covariance:

    var(range) = 1 / (J_rr - J_rt J_tt^+ J_tr),        J_angle = J_tt - J_tr J_rt / J_rr,        J_t. = T^T J_k.

A fused direction has one deviation for all angles. It is the one with the same mean squared angle,
`angle_std^2 = tr(J_angle^-1) / 2`; where an array resolves one angle better than the other, the better one is
understated. Correlations between a range and its direction are left out, as are those between paths.

A line of antennas measures a cone around itself, no direction. Where the height of the target is known, the range gives
the elevation, and cone and elevation the azimuth; else a line gives its range alone.
"""

import math

import torch
from torch import Tensor

from sensing.checks import check_finite, check_shape
from sensing.containers import Deployment, PathEstimates
from sensing.errors import DomainError
from sensing.fusion.measurements import StationMeasurements
from sensing.geometry import BELOW, tangent_basis
from sensing.units import SPEED_OF_LIGHT

RESOLVED = 1e-9
"""Ratio of the two angles' information below which only one of them is resolved, by a line of antennas."""

SURE = 4.0
"""Deviations of a clock offset that must fit into the slack of ambiguous ranges, else the range is not used."""


def path_measurements(
    paths: PathEstimates,
    deployment: Deployment,
    line_of_sight: Tensor,
    offset_m: Tensor | None = None,
    offset_std_m: Tensor | float | None = None,
    height_m: float | None = None,
) -> StationMeasurements:
    """Ranges and directions of a user from the line of sight of every station, one path each.

    A path's range holds the station's clock offset: `range = |u - b| + c delta`. With the offsets independent of each
    other and of the paths, as they are a priori, a range less `offset_m` has the variance of the path plus that of the
    offset. Synchronised stations (deviation 0) so give ranges at full precision, stations whose offsets are unknown
    (infinite) directions alone. Offsets estimated from the same paths are not independent of them: to pass them on
    here counts the paths twice.

    Args:
        paths: detected paths [* bs path].
        deployment: the stations.
        line_of_sight: [* bs] int, index of the path that comes straight from the user, as by
            `sensing.coarse.direct.lines_of_sight` or `earliest_paths`; -1, or that of a path by the ground (from the
            number of paths on): the station takes no part.
        offset_m: [* bs] what is known of c times the clock offsets [m]; None: nothing but their mean, 0.
        offset_std_m: [* bs] or a number, its deviation [m]; None: c times the deployment's `clock_offset_std`.
        height_m: known height of the user, which completes the directions of a line of antennas; None: unknown.

    Returns:
        Measurements [* bs], deviations infinite where there is none.

    Raises:
        ShapeError, DomainError: an argument does not fit.
    """
    paths.validate(deployment)
    shape, count = paths.mask.shape[:-1], paths.mask.shape[-1]
    check_shape("line_of_sight", line_of_sight, "* bs", bs=shape[-1])
    if line_of_sight.shape != shape or line_of_sight.is_floating_point():
        raise DomainError(f"line_of_sight must be {list(shape)} whole numbers, got {list(line_of_sight.shape)}")
    chosen = (line_of_sight >= 0) & (line_of_sight < count)
    index = torch.where(chosen, line_of_sight, 0)[..., None]
    chosen = chosen & paths.mask.gather(-1, index)[..., 0]
    length = paths.range_m.gather(-1, index)[..., 0]
    direction = paths.direction.gather(-2, index[..., None].expand(*shape, 1, 3))[..., 0, :]
    information = paths.information.gather(-3, index[..., None, None].expand(*shape, 1, 4, 4))[..., 0, :, :]
    prior = deployment.clock_offset_std * SPEED_OF_LIGHT if offset_std_m is None else offset_std_m
    offset_std = torch.as_tensor(prior, dtype=torch.float64).expand(shape)
    if not bool((offset_std >= 0).all()):
        raise DomainError(f"offset_std_m must be >= 0 (inf: unknown), got {float(offset_std.min()):g}")
    if offset_m is not None:
        check_finite("offset_m", offset_m)
        length = length - offset_m
    period = float(deployment.range_ambiguity)
    if math.isfinite(period):  # the offset may make a range negative, but not by more than the slack
        slack = BELOW * period
        length = (length + slack).remainder(period) - slack
        offset_std = torch.where(SURE * offset_std > slack, torch.inf, offset_std)
    extra, axis = offset_std.square(), line_axis(deployment)
    return station_measurements(deployment.bs_position, length, direction, information, chosen, extra, height_m, axis)


def earliest_paths(paths: PathEstimates, within_db: float = 20.0) -> Tensor:
    """Index of the shortest path of each station among its strong ones, [* bs]; -1 without a path.

    It is the line of sight where this exists and no path is longer than the ambiguity of ranges allows.

    Args:
        paths: detected paths [* bs path].
        within_db: power by which a path may be below the station's strongest; weaker ones may be noise [dB].
    """
    power = torch.where(paths.mask, paths.gain.abs().square(), 0.0)
    strong = paths.mask & (power >= 10.0 ** (-within_db / 10.0) * power.amax(-1, keepdim=True))
    index = torch.where(strong, paths.range_m, torch.inf).argmin(-1)
    return torch.where(paths.mask.any(-1), index, -1)


def station_measurements(
    bs_position: Tensor,
    range_m: Tensor,
    direction: Tensor,
    information: Tensor,
    mask: Tensor,
    extra_variance: Tensor | float = 0.0,
    height_m: float | None = None,
    axis: Tensor | None = None,
) -> StationMeasurements:
    """Measurements with deviations from ranges and directions with their joint information.

    Args:
        bs_position: [bs xyz] [m].
        range_m: [* bs] [m].
        direction: [* bs xyz] unit vectors.
        information: [* bs 4 4] over (range, direction xyz) in global axes, say of `PathEstimates`.
        mask: [* bs] bool: there is such a path.
        extra_variance: [* bs] or a number, of the range beyond that of the path [m^2]; inf: the range is not used.
        height_m: known height of the target; None: unknown.
        axis: [bs xyz] of lines of antennas (`line_axis`); None: the arrays are none.

    Returns:
        Measurements [* bs].
    """
    tangent = tangent_basis(direction)
    own = information[..., 0, 0]
    cross = (information[..., :1, 1:] @ tangent)[..., 0, :]  # [* bs 2]
    both = tangent.mT @ information[..., 1:, 1:] @ tangent
    value, vector = torch.linalg.eigh(both)
    resolved = value > RESOLVED * value[..., 1:]  # [* bs 2]
    inverse = torch.where(resolved, 1.0 / torch.where(resolved, value, 1.0), 0.0)
    turned = (vector.mT @ cross[..., None])[..., 0]
    left = own - (inverse * turned.square()).sum(-1)
    has_range = mask & (left > RESOLVED * own)
    range_var = torch.where(has_range, 1.0 / torch.where(has_range, left, 1.0), torch.inf) + extra_variance
    safe = torch.where(own > 0, own, 1.0)[..., None, None]
    angles = both - torch.where(own[..., None, None] > 0, cross[..., :, None] * cross[..., None, :] / safe, 0.0)
    value, vector = torch.linalg.eigh(angles)
    plane = mask & (value[..., 0] > RESOLVED * value[..., 1]) & (value[..., 0] > 0)
    angle_var = torch.where(plane, 0.5 * (1.0 / torch.where(plane[..., None], value, 1.0)).sum(-1), torch.inf)
    if height_m is not None and axis is not None:
        along = (axis[..., None, :] @ tangent @ vector[..., 1:])[..., 0, 0]  # of the only resolved tangent
        line = mask & ~plane & (value[..., 1] > 0) & torch.isfinite(range_var)
        cosine_var = along.square() / torch.where(line, value[..., 1], 1.0)
        level, spread = _on_cone(direction, axis, cosine_var, range_m, height_m - bs_position[..., 2])
        line = line & torch.isfinite(spread)
        direction = torch.where(line[..., None], level, direction)
        angle_var = torch.where(line, spread, angle_var)
    some = torch.isfinite(range_var) | torch.isfinite(angle_var)
    x, y, z = torch.where(some[..., None], direction, direction.new_tensor([1.0, 0.0, 0.0])).unbind(-1)
    return StationMeasurements(
        bs_position=bs_position,
        range_m=torch.where(torch.isfinite(range_var), range_m, 0.0),
        azimuth=torch.atan2(y, x),
        elevation=z.clamp(-1.0, 1.0).asin(),
        range_std=range_var.sqrt(),
        angle_std=angle_var.sqrt(),
    )


def line_axis(deployment: Deployment) -> Tensor | None:
    """Unit vectors along lines of antennas in global axes, [bs xyz]; None where the antennas form no line."""
    place = deployment.antenna_local - deployment.antenna_local.mean(0)
    _, size, across = torch.linalg.svd(place, full_matrices=False)
    if len(size) < 2 or not bool(size[0] > 0) or bool(size[1] > math.sqrt(RESOLVED) * size[0]):
        return None
    return deployment.bs_rotation @ across[0]


def _on_cone(
    direction: Tensor, axis: Tensor, cosine_var: Tensor, range_m: Tensor, rise_m: Tensor
) -> tuple[Tensor, Tensor]:
    """The direction of a cone around the axis at a known rise over the range, and the variance of its angle.

    With a the axis, c = a.k, and e the elevation, `cos(azimuth - azimuth of a) = (c - a_z sin e) / (|a_xy| cos e)`. The
    elevation comes from the range, which for that part counts twice: by `(sin e std_r / (r angle_std))^2` too much.

    Returns:
        [* bs xyz], on the side of `direction`, and [* bs] [rad^2]; inf where the cone does not reach the height.
    """
    sine = (rise_m / torch.where(range_m > 0, range_m, torch.inf)).clamp(-1.0, 1.0)
    level = (1.0 - sine.square()).sqrt() * torch.linalg.vector_norm(axis[..., :2], dim=-1)
    cosine = (direction * axis).sum(-1) - axis[..., 2] * sine
    reached = cosine.abs() < level
    turn = torch.where(reached, cosine / torch.where(reached, level, 1.0), 1.0).acos()
    side = axis[..., 0] * direction[..., 1] - axis[..., 1] * direction[..., 0]
    azimuth = torch.atan2(axis[..., 1], axis[..., 0]) + torch.where(side < 0, -turn, turn)
    flat = (1.0 - sine.square()).sqrt()
    found = torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), sine], -1)
    slope = level * turn.sin() / torch.where(flat > 0, flat, 1.0)  # of the cosine over the angle
    usable = reached & (slope > 0)
    return found, torch.where(usable, cosine_var / torch.where(usable, slope, 1.0).square(), torch.inf)
