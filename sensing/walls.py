"""Soft walls around the region: the user is uniform inside it and ever less likely beyond.

A wall costs `(distance beyond / softness)^2` and nothing inside, so that it does not pull an estimate that is inside
anywhere; but what the paths leave open (the height, at low SNR) does not run out of the building.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Deployment

SOFTNESS = 0.05
"""Softness of a wall as a share of the region's extent along that axis: the region may have been drawn a bit tight."""


class Walls(NamedTuple):
    """Box and stiffness."""

    lower: Tensor  # [xyz] [m]
    upper: Tensor  # [xyz] [m]
    precision: Tensor  # [xyz] [1/m^2], zero where there is no region


def user_walls(deployment: Deployment) -> Walls:
    """Walls of the deployment's region; none without a region."""
    if deployment.region is None:
        zero = torch.zeros_like(deployment.bs_position[0])
        return Walls(zero, zero, zero)
    lower, upper = deployment.region
    softness = SOFTNESS * (upper - lower).clamp_min(1e-3 * (upper - lower).norm())
    return Walls(lower, upper, softness.square().reciprocal())


def beyond(position: Tensor, walls: Walls) -> tuple[Tensor, Tensor]:
    """Signed distance beyond the walls [* xyz] [m] and the stiffness that acts there [* xyz]."""
    distance = position - torch.minimum(torch.maximum(position, walls.lower), walls.upper)
    return distance, walls.precision * (distance != 0)
