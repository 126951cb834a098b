"""Location-domain grid as local clouds: a few points around every coarse scatterer (paper 1, section II-B).

The M-step moves the points; those that meet are merged, because two columns that coincide cannot be told apart and make
the extrinsic variances of the turbo loop negative.
"""

import torch
from torch import Tensor

from sensing.containers import Geometry
from sensing.errors import ConfigError

NEIGHBOURS = (0, 6, 8, 14, 26)
"""Sizes of a neighbourhood: none, faces, corners, faces and corners, all of the 3 x 3 x 3 cube."""


def neighbourhood(count: int) -> Tensor:
    """Places of the neighbours of a point in units of their spacing, [count xyz].

    Raises:
        ConfigError: the count is not one of `NEIGHBOURS`.
    """
    if count not in NEIGHBOURS:
        raise ConfigError(f"neighbours must be one of {', '.join(map(str, NEIGHBOURS))}, got {count}")
    axis = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    cube = torch.cartesian_prod(axis, axis, axis)
    order = cube.abs().sum(-1)
    wanted = {0: (), 6: (1,), 8: (3,), 14: (1, 3), 26: (1, 2, 3)}[count]
    return cube[torch.isin(order, torch.tensor(wanted, dtype=order.dtype))]


def spread(geometry: Geometry, spacing_m: float, neighbours: int) -> Geometry:
    """Surround every located node with neighbours.

    Args:
        geometry: nodes at the coarse scatterers.
        spacing_m: distance of a neighbour along each axis in which it differs [m].
        neighbours: number of them, one of `NEIGHBOURS`; 0 leaves one movable point per scatterer.

    Returns:
        The nodes as before, then their neighbours, neighbour after neighbour. No detected path was associated with a
        neighbour, so `member` is false there.
    """
    places = neighbourhood(neighbours)
    if neighbours == 0:
        return geometry
    shift = spacing_m * places.to(geometry.node_position)
    further = (geometry.node_position[..., None, :, :] + shift[:, None, :]).flatten(-3, -2)
    mask = geometry.node_mask.repeat(*[1] * (geometry.node_mask.ndim - 1), neighbours)
    empty = torch.zeros_like(geometry.member[..., :1]).expand(*geometry.member.shape[:-1], mask.shape[-1])
    return geometry._replace(
        node_position=torch.cat([geometry.node_position, further], -2),
        node_mask=torch.cat([geometry.node_mask, mask], -1),
        member=torch.cat([geometry.member, empty], -1),
    )


def merge(geometry: Geometry, strength: Tensor, distance_m: Tensor | float) -> Geometry:
    """Merge nodes that are closer than a distance: the strongest remains and inherits the members of the others.

    Args:
        geometry: nodes; their order and number remain, merged ones are masked.
        strength: [* node] which of two nodes remains.
        distance_m: nodes at a smaller distance are one [m].
    """
    position = geometry.node_position
    gap = (position[..., :, None, :] - position[..., None, :, :]).square().sum(-1)
    close = gap < torch.as_tensor(distance_m, dtype=gap.dtype, device=gap.device).square()
    order = strength.where(geometry.node_mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    mask, member = geometry.node_mask.clone(), geometry.member.clone()
    slots = torch.arange(mask.shape[-1], device=mask.device)
    for node in order.unbind(-1):
        # one node per scene, strongest first; it swallows its neighbours unless it has been swallowed itself
        here = slots == node[..., None]
        alive = (mask & here).any(-1)
        swallowed = mask & alive[..., None] & ~here & (close & here[..., :, None]).any(-2)
        inherited = (member & swallowed[..., None, :]).any(-1)
        member = (member & ~swallowed[..., None, :]) | (here[..., None, :] & inherited[..., None])
        mask = mask & ~swallowed
    return geometry._replace(node_mask=mask, member=member)
