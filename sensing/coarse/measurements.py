"""What the paths of clusters and the lines of sight measured, and how far a geometry is from it.

r_kq = [ ||s_k - b_q|| + ||s_k - u|| + c delta_q - range_q ; (s_k - b_q)/||s_k - b_q|| - direction_q ]
d_q  = [ ||u - b_q|| + c delta_q - range_q ; (u - b_q)/||u - b_q|| - direction_q ]     (line of sight, where seen)

A path by the ground is a line of sight of the station's mirror image below the floor, its direction mirrored too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.cluster_fit import gather_members
from sensing.coarse.pairs import region_box, wrap
from sensing.containers import Deployment, PathEstimates
from sensing.geometry import direction_and_range


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
    direct: PathData | None = None  # [* bs ...], directions mirrored where by the ground
    ground: Tensor | None = None  # [* bs] bool: by the ground


def cluster_measurements(
    path: Tensor, paths: PathEstimates, weights: Tensor | None = None, direct: Tensor | None = None
) -> Measurements:
    """Collect the member paths [b cluster bs] of each cluster.

    Args:
        path: member indices, -1 for none.
        paths: detected paths.
        weights: [b bs path 2] fusion weights that multiply the information of range and direction; None is one.
        direct: [b bs] index of each station's line of sight, -1 for none; by the ground it is that of the path plus the
            number of paths.
    """
    information = paths.information
    if weights is not None:
        root = weights.sqrt()
        root = torch.cat([root[..., :1], root[..., 1:].expand(*root.shape[:-1], 3)], -1)
        information = information * root[..., :, None] * root[..., None, :]
    everything = PathData(paths.range_m, paths.direction, information)
    if direct is None or not bool((direct >= 0).any()):
        return Measurements(*_gather(everything, path))
    index, ground = path_index(direct, paths.mask.shape[-1])
    range_m, direction, information = (field[:, 0] for field in _gather(everything, index[:, None]))
    line = PathData(range_m, *mirrored(direction, information, ground))
    return Measurements(*_gather(everything, path), line, ground)


def path_index(direct: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Index of the path, -1 for none, and whether it came by the ground, of lines of sight among `count` paths."""
    ground = direct >= count
    return torch.where(ground, direct - count, direct), ground


def mirrored(direction: Tensor, matrix: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """Directions [* xyz] and matrices [* 4 4] of (range, direction), upside down where by the ground [*]."""
    flip = torch.ones_like(matrix[..., 0])
    flip[..., 3] = torch.where(ground, -1.0, 1.0).to(flip)
    return direction * flip[..., 1:], matrix * flip[..., :, None] * flip[..., None, :]


def _gather(data: PathData, path: Tensor) -> PathData:
    member = (path >= 0)[..., None, None]
    range_m, direction, information = (gather_members(field, path) for field in data)
    return PathData(range_m, direction, information * member)


def misfit(range_m: Tensor, direction: Tensor, data: PathData | Measurements, deployment: Deployment) -> Tensor:
    """Residuals [* 4] of predicted ranges [*], modulo the ambiguity, and directions [* xyz]."""
    late = wrap(range_m - data.range_m, deployment.range_ambiguity)
    return torch.cat([late[..., None], direction - data.direction], -1)


class Straight(NamedTuple):
    """The lines of sight of a user: paths whose scatterer is the user."""

    range_m: Tensor  # [* bs] ||u - b|| + c delta [m]
    direction: Tensor  # [* bs xyz]
    slope: Tensor  # [* bs 4 3+bs] derivative of (range, direction) by (user, offsets)


def straight_paths(ue: Tensor, offset: Tensor, deployment: Deployment, ground: Tensor | None = None) -> Straight:
    """Lines of sight of users [* xyz] whose stations have the offsets [* bs], or are mirrored by the ground [* bs]."""
    station = deployment.bs_position
    if ground is not None:
        x, y, z = station.unbind(-1)
        below = torch.stack([x, y, 2.0 * region_box(deployment)[0, 2] - z], -1)
        station = torch.where(ground[..., None], below, station)
    k, leg = direction_and_range(ue[..., None, :], station)  # from the station to the user
    stations = leg.shape[-1]
    eye = torch.eye(3 + stations, dtype=leg.dtype, device=leg.device)
    slope = leg.new_zeros(*leg.shape, 4, 3 + stations)
    slope[..., 0, :3], slope[..., 0, 3:] = k, eye[3:, 3:]
    slope[..., 1:, :3] = (eye[:3, :3] - k[..., :, None] * k[..., None, :]) / leg.clamp_min(1e-3)[..., None, None]
    return Straight(leg + offset, k, slope)
