"""Positions to path lengths and directions, and back.

Equations 1.2 and 1.9 of paper 1: with station b, user u and scatterer s,
`range = ||s - b|| + ||s - u|| + c * clock_offset`, `direction = (s - b) / ||s - b||`.
"""

import math

import torch
from torch import Tensor

BELOW = 0.25  # share of the ambiguity kept for lengths below that of the straight line, which no bounce explains


def direction_and_range(point: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vector and distance from origin to point.

    Args:
        point: [* xyz] [m].
        origin: [* xyz] [m], broadcast against point.

    Returns:
        direction [* xyz] (zero where the two coincide) and distance [*] [m].
    """
    difference = point - origin
    distance = torch.linalg.vector_norm(difference, dim=-1)
    safe = torch.where(distance > 0, distance, torch.ones_like(distance))
    return difference / safe[..., None], distance


def bounce_ranges(scatterer: Tensor, ue: Tensor, bs: Tensor, offset_m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apparent length and direction of the single-bounce paths user - scatterer - station.

    Args:
        scatterer: [* node xyz] [m].
        ue: [* xyz] [m].
        bs: [bs xyz] [m].
        offset_m: [* bs] c times the clock offset [m].

    Returns:
        range [* bs node] [m], direction [* bs node xyz], station leg [* bs node] [m], and the unit vector from the user
        to the scatterer [* node xyz], which is the derivative of the user leg with respect to the scatterer.
    """
    direction, station_leg = direction_and_range(scatterer[..., None, :, :], bs[:, None, :])
    user_direction, user_leg = direction_and_range(scatterer, ue[..., None, :])
    return station_leg + user_leg[..., None, :] + offset_m[..., None], direction, station_leg, user_direction


def tangent_basis(direction: Tensor) -> Tensor:
    """Two orthonormal vectors perpendicular to each direction, [* xyz 2].

    Without branches, after Duff et al., "Building an orthonormal basis, revisited", JCGT 6(1), 2017.
    """
    x, y, z = direction.unbind(-1)
    sign = 2.0 * (z >= 0).to(z.dtype) - 1.0
    a = -1.0 / (sign + z)
    ax, signed_x = a * x, sign * x
    b = ax * y
    entries = [1.0 + signed_x * ax, b, sign * b, sign + y * y * a, -signed_x, -y]
    return torch.stack(entries, -1).unflatten(-1, (3, 2))


def bounce_on_ray(
    direction: Tensor, length: Tensor, bs: Tensor, ue: Tensor, ambiguity: Tensor | float = math.inf
) -> tuple[Tensor, Tensor]:
    """Scatterer on a station's ray such that the path to the user has a given length (equation 1.9).

    `r = (R^2 - |v|^2) / (2 (R - k.v))` with v = ue - bs and R the length without clock offset. Where lengths are known
    modulo an ambiguity A, R is the one between |v| - A / 4 and |v| + 3 A / 4.

    Args:
        direction: [* xyz] ray direction k.
        length: [*] path length R [m], clock offset removed.
        bs: [* xyz] [m].
        ue: [* xyz] [m].
        ambiguity: lengths are known modulo this [m]; R is as given where it is infinite.

    Returns:
        position [* xyz] [m] and a bool [*], false where R <= |v|: no single bounce explains such a path, and the
        position returned is the station's.
    """
    v = ue - bs
    if math.isfinite(period := float(ambiguity)):
        least = v.norm(dim=-1) - BELOW * period
        length = least + (length - least).remainder(period)
    excess = length.square() - v.square().sum(-1)
    slack = length - (direction * v).sum(-1)
    valid = (excess > 0) & (slack > 0)
    radius = torch.where(valid, excess, torch.zeros_like(excess)) / (
        2.0 * torch.where(valid, slack, torch.ones_like(slack))
    )
    return bs + radius[..., None] * direction, valid


def facing(position: Tensor, target: Tensor, tilt: bool = False) -> Tensor:
    """Rotations whose boresight (column 0) points at a target; column 1 is horizontal.

    Args:
        position: [bs xyz] [m].
        target: [xyz] or [bs xyz] [m].
        tilt: point at the target's height too; otherwise the boresight stays horizontal.

    Returns:
        [bs 3 3] local to global.
    """
    boresight = target - position
    if not tilt:
        boresight = boresight * boresight.new_tensor([1.0, 1.0, 0.0])
    boresight = boresight / torch.linalg.vector_norm(boresight, dim=-1, keepdim=True)
    up = boresight.new_tensor([0.0, 0.0, 1.0]).expand_as(boresight)
    horizontal = torch.linalg.cross(up, boresight)
    horizontal = horizontal / torch.linalg.vector_norm(horizontal, dim=-1, keepdim=True)
    return torch.stack([boresight, horizontal, torch.linalg.cross(boresight, horizontal)], -1)
