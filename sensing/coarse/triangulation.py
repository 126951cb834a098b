"""Distances between rays and the point nearest to several rays, from angles alone (paper 1, equations 18 to 25).

A path of station b with direction k is the half-line `b + t k, t >= 0`; paths of one scatterer nearly meet in it. Clock
offsets play no part in this.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Approach(NamedTuple):
    """Where two half-lines are closest."""

    distance: Tensor  # [*] [m]
    length1: Tensor  # [*] from the start of the first to its closest point [m]
    length2: Tensor  # [*] [m]


def closest_approach(origin1: Tensor, direction1: Tensor, origin2: Tensor, direction2: Tensor) -> Approach:
    """Distance of two half-lines and where it is.

    With w = b_2 - b_1, g = k_1.k_2 and D = 1 - g^2, the two lines are closest at `t_1 = (w.k_1 - g w.k_2) / D` and
    `t_2 = (g w.k_1 - w.k_2) / D`. Where one of these lies behind its station, or the rays are parallel, the closest
    points include the start of a ray: then it is the distance of one station from the other's ray.

    Args:
        origin1: [* xyz] stations b_1 [m]; all four arguments broadcast.
        direction1: [* xyz] unit vectors k_1.
        origin2: [* xyz] [m].
        direction2: [* xyz].

    References:
        Paper 1, equations 20 to 23; EQUATIONS 1.6.
    """
    w, g = origin2 - origin1, (direction1 * direction2).sum(-1)
    along1, along2 = (w * direction1).sum(-1), (w * direction2).sum(-1)
    # |k_1 x k_2|^2 is 1 - g^2 without its cancellation
    sine2 = torch.linalg.cross(*torch.broadcast_tensors(direction1, direction2)).square().sum(-1)
    crossing = sine2 > torch.finfo(sine2.dtype).eps
    safe = torch.where(crossing, sine2, torch.ones_like(sine2))
    t1, t2 = (along1 - g * along2) / safe, (g * along1 - along2) / safe
    # the squared distance is convex: its minimum over t >= 0 is inside, or on an edge
    candidates = [
        (t1, t2, crossing & (t1 >= 0) & (t2 >= 0)),
        (along1.clamp_min(0.0), torch.zeros_like(t2), torch.ones_like(crossing)),
        (torch.zeros_like(t1), (-along2).clamp_min(0.0), torch.ones_like(crossing)),
    ]
    squared = [
        (w + b[..., None] * direction2 - a[..., None] * direction1).square().sum(-1).where(allowed, torch.inf)
        for a, b, allowed in candidates
    ]
    best, which = torch.stack(squared).min(0, keepdim=True)
    lengths = (torch.stack([pair[i] for pair in candidates]).gather(0, which)[0] for i in (0, 1))
    return Approach(best[0].sqrt(), *lengths)


class Triangulation(NamedTuple):
    """Point nearest to several rays."""

    position: Tensor  # [* xyz] [m]
    ray_length: Tensor  # [* ray] signed distance along each ray [m]; negative behind its station, zero where unused
    residual: Tensor  # [*] mean square distance of the point from the rays [m^2]


def triangulate(
    origin: Tensor, direction: Tensor, mask: Tensor | None = None, range_weighted: bool = False
) -> Triangulation:
    """Closed-form least squares `min_s sum_q w_q ||P_q (s - b_q)||^2`, P_q = I - k_q k_q^T.

    Eliminating the ray lengths r_q = k_q.(s - b_q) from `min sum_q ||s - b_q - r_q k_q||^2` leaves
    `s = (sum w_q P_q)^-1 sum w_q P_q b_q`. Where the rays are parallel the point nearest to the
    stations' mean is taken.

    Args:
        origin: [* ray xyz] stations [m].
        direction: [* ray xyz] unit vectors.
        mask: [* ray] bool, rays in use; all when None.
        range_weighted: a second pass with w_q = 1 / r_q^2, because an angle's error grows with the range.

    Returns:
        Triangulation; without any ray the position is zero.

    References:
        Paper 1, equations 24 and 25; EQUATIONS 1.8.
    """
    origin, direction = torch.broadcast_tensors(origin, direction)
    used = origin.new_ones(origin.shape[:-1]) if mask is None else mask.to(origin.dtype)
    projector = (
        torch.eye(3, dtype=origin.dtype, device=origin.device) - direction[..., :, None] * direction[..., None, :]
    )
    count = used.sum(-1).clamp_min(1.0)
    centre = (used[..., None] * origin).sum(-2) / count[..., None]
    relative = origin - centre[..., None, :]

    def solve(weight: Tensor) -> Tensor:
        # in units of the weights' sum the matrix is of order one, whatever the ranges are
        share = weight / weight.sum(-1, keepdim=True).where(
            weight.sum(-1, keepdim=True) > 0, torch.ones_like(count)[..., None]
        )
        matrix = (share[..., None, None] * projector).sum(-3)
        pulled = (share[..., None, None] * projector @ relative[..., None]).sum(-3)
        return centre + (torch.linalg.pinv(matrix, rtol=1e-12, hermitian=True) @ pulled).squeeze(-1)

    position = solve(used)
    if range_weighted:
        length = (direction * (position[..., None, :] - origin)).sum(-1).abs()
        longest = length.amax(-1, keepdim=True)
        # a point at a station would take all the weight
        near = torch.maximum(length, 1e-3 * longest)
        position = solve(used / near.square().where(near > 0, torch.ones_like(near)))
    offset = position[..., None, :] - origin
    length = (direction * offset).sum(-1)
    across = offset - length[..., None] * direction
    return Triangulation(position, used * length, (used * across.square().sum(-1)).sum(-1) / count)
