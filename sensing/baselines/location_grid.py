"""Candidate points of the location-domain dictionary (paper 1, equation 1.4).

Column of point g at station b is the path with range `|g - b| + |g - u| + c delta_b` and direction `(g - b) / |g - b|`;
user u and offsets delta are those of a coarse stage. The points are common to all stations.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sensing.coarse.pairs import region_box
from sensing.containers import Deployment, Geometry
from sensing.errors import ConfigError
from sensing.geometry import bounce_on_ray, bounce_ranges
from sensing.operators.khatri_rao import PathOperator, path_operator
from sensing.units import SPEED_OF_LIGHT


class Candidates(NamedTuple):
    """Points that may hold a scatterer."""

    position: Tensor  # [* node xyz] [m]
    mask: Tensor  # [* node] bool


class LocationGrid(Protocol):
    """Proposes the points of a scene."""

    def __call__(self, geometry: Geometry, deployment: Deployment) -> Candidates:
        """Points for a coarse geometry [b]."""
        ...


class CloudGrid:
    """Clouds around the coarse scatterers and around the bounce points of the paths that were associated with none.

    Args:
        extent: reach of a cloud along each axis, on either side of its centre [c / bandwidth].
        steps: points on either side; 0 leaves the centre alone.
        shape: `cross` (1 + 6 steps points) or `cube` ((1 + 2 steps)^3 points).
    """

    def __init__(self, extent: float = 0.8, steps: int = 1, shape: str = "cross") -> None:
        if not 0 < extent < float("inf") or steps < 0:
            raise ConfigError(f"a cloud needs extent > 0 and steps >= 0, got {extent}, {steps}")
        if shape not in ("cross", "cube"):
            raise ConfigError(f"shape must be cross or cube, got {shape!r}")
        axis = torch.arange(-steps, steps + 1, dtype=torch.float64) / max(steps, 1)
        cloud = torch.cartesian_prod(axis, axis, axis)
        if shape == "cross":
            cloud = cloud[(cloud != 0).sum(-1) <= 1]
        self.cloud = extent * cloud  # [point xyz] [c / bandwidth]

    def __call__(self, geometry: Geometry, deployment: Deployment) -> Candidates:
        """Points [b node]; a free path that no single bounce explains has no cloud."""
        length = geometry.free_range_m - geometry.offset_m[..., None]
        bs, ue = deployment.bs_position[:, None, :], geometry.ue_position[..., None, None, :]
        bounce, valid = bounce_on_ray(geometry.free_direction, length, bs, ue, deployment.range_ambiguity)
        centre = torch.cat([geometry.node_position, bounce.flatten(-3, -2)], -2)
        exists = torch.cat([geometry.node_mask, (valid & geometry.free_mask).flatten(-2)], -1)
        width = max(int(exists.sum(-1).max()), 1)  # gather what exists: columns cost cubically
        order = exists.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :width]
        centre, exists = centre.gather(-2, order[..., None].expand(*order.shape, 3)), exists.gather(-1, order)
        position = centre[..., None, :] + SPEED_OF_LIGHT / deployment.bandwidth * self.cloud.to(centre)
        return Candidates(position.flatten(-3, -2), exists.repeat_interleave(len(self.cloud), -1))


class RegionGrid:
    """A regular grid over the region, the same for all scenes: of the coarse stage only user and offsets are used.

    Args:
        spacing_m: distance of neighbours [m].
    """

    def __init__(self, spacing_m: float = 1.0) -> None:
        if not 0 < spacing_m < float("inf"):
            raise ConfigError(f"spacing_m must be positive, got {spacing_m}")
        self.spacing_m = spacing_m

    def __call__(self, geometry: Geometry, deployment: Deployment) -> Candidates:
        """Points [b node], in cells that fill the region."""
        low, high = region_box(deployment)
        count = ((high - low) / self.spacing_m).round().clamp_min(1).to(torch.int64).tolist()
        axes = [
            low[i] + (torch.arange(n, dtype=low.dtype, device=low.device) + 0.5) * (high[i] - low[i]) / n
            for i, n in enumerate(count)
        ]
        position = torch.cartesian_prod(*axes).expand(*geometry.ue_position.shape[:-1], -1, 3)
        return Candidates(position, torch.ones_like(position[..., 0], dtype=torch.bool))


def grid_operator(
    candidates: Candidates, geometry: Geometry, deployment: Deployment, dtype: torch.dtype | None = None
) -> PathOperator:
    """The dictionaries of all stations in factors, [b bs (ant, sc) node]."""
    range_m, direction, _, _ = bounce_ranges(
        candidates.position, geometry.ue_position, deployment.bs_position, geometry.offset_m
    )
    return path_operator(range_m, direction, deployment, candidates.mask[..., None, :].expand(range_m.shape), dtype)
