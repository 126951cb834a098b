"""The domain that measurements themselves speak of, where nobody says in which area the targets are."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.fusion.domain import Domain, box
from sensing.fusion.measurements import StationMeasurements

REACH = 5.0
"""Deviations around a measured place or range that belong to the domain."""

MOST = 200_000
"""Cells; finer ones take longer than they help."""

CELL_STD = 2.0
"""Edge of a cell in least deviations of a range: fine enough for samples of a pool."""


def measured_area(
    drops: Sequence[StationMeasurements], height_m: float | None = None, spacing_m: float | None = None
) -> Domain:
    """A box around the stations and all places that they measure, five deviations wide.

    A station with range and direction measures a place; stations with ranges alone leave what their spheres' boxes have
    in common; directions alone say nothing of the distance, which is then taken to be below that of the stations.

    Args:
        drops: [1 bs] each, with any number of stations.
        height_m: known height of the targets; None: unknown.
        spacing_m: edge of a cell [m]; None: two least deviations of a range, as far as 200,000 cells allow.

    Returns:
        The domain.

    Raises:
        ConfigError: directions alone, of stations at one place.
    """
    stations = torch.cat([drop.bs_position.reshape(-1, 3) for drop in drops])
    corners = [stations]
    for drop in drops:
        place, reach = _places(drop)
        if len(place):
            corners += [place - reach[:, None], place + reach[:, None]]
            continue
        has_range = torch.isfinite(drop.range_std)[0]
        if bool(has_range.any()):
            far = (drop.range_m + REACH * drop.range_std)[0, has_range, None]
            bs = drop.bs_position.reshape(-1, 3)[has_range]
            corners += [(bs - far).amax(0, keepdim=True), (bs + far).amin(0, keepdim=True)]
        elif bool(torch.isfinite(drop.angle_std).any()):
            apart = (stations.amax(0) - stations.amin(0)).norm()
            if not bool(apart > 0):
                raise ConfigError(
                    "lower_m and upper_m must be given where directions alone come from one place, got none"
                )
            corners += [stations - apart, stations + apart]
    points = torch.cat(corners)
    low, high = points.amin(0), points.amax(0)
    if height_m is not None:
        low[2] = high[2] = height_m
    return box(low.tolist(), high.tolist(), _spacing(drops, high - low) if spacing_m is None else spacing_m)


def _places(drop: StationMeasurements) -> tuple[Tensor, Tensor]:
    """Places [n xyz] of stations with range and direction, and how far around them the target may be [n] [m]."""
    std = (drop.range_std.square() + (drop.range_m * drop.angle_std).square()).sqrt()[0]
    both = torch.isfinite(std)
    place = (drop.bs_position + drop.range_m[..., None] * drop.direction)[0]
    return place[both], REACH * std[both]


def _spacing(drops: Sequence[StationMeasurements], extent: Tensor) -> float:
    """Cells of two least deviations of a range, or as fine as their number allows [m]."""
    edges = extent[extent > 0]
    std = torch.cat([drop.range_std.flatten() for drop in drops])
    finite = std[torch.isfinite(std)]
    wanted = CELL_STD * float(finite.min()) if len(finite) else 0.0
    least = math.exp(float(edges.log().sum() - math.log(MOST)) / len(edges))
    return max(wanted, least, 1.01 * float(edges.max()) / MOST)
