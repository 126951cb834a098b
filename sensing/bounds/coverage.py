"""Where a network localizes a target, and how well: its position error bound over an area.

The area is cut into cells, each asked at its centre, so that stations in the corners are no points of the map and, with
an odd number of cells, its centre is one. The map is computed in chunks: memory does not grow with the model's
temporaries, and a point's bound depends on no other point.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.bounds.cooperative import Reason
from sensing.bounds.radar import BoundModel
from sensing.errors import ConfigError

CHUNK = 16384
"""Points at once: their vectors stay in the processor's cache."""


class Area(NamedTuple):
    """Centres of the cells of a rectangle at one height."""

    x_m: Tensor  # [x] [m]
    y_m: Tensor  # [y] [m]
    height_m: float
    extent: tuple[float, float, float, float]  # edges: left, right, lower, upper [m]

    @property
    def points(self) -> Tensor:
        """All centres, [y x xyz] [m]."""
        y, x = torch.meshgrid(self.y_m, self.x_m, indexing="ij")
        return torch.stack([x, y, torch.full_like(x, self.height_m)], -1)


class Worst(NamedTuple):
    """The point with the largest finite bound."""

    peb_m: float
    x_m: float
    y_m: float


class CoverageMap(NamedTuple):
    """Position error bound over an area."""

    area: Area
    peb_m: Tensor  # [y x] [m]; inf where unobservable
    reason: Tensor  # [y x] int64, bits of `Reason`: 0 exactly where the bound is finite

    def covered(self, required_m: float) -> float:
        """Share of the points whose bound is at most the required accuracy."""
        return float((self.peb_m <= required_m).double().mean())

    def quantile(self, share: float) -> float:
        """Accuracy that this share of all points reaches; inf where more than the rest are unobservable."""
        ordered = self.peb_m.flatten().sort().values
        return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)])

    @property
    def worst(self) -> Worst | None:
        """The point with the largest finite bound; None where no point has one."""
        finite = torch.where(torch.isfinite(self.peb_m), self.peb_m, -1.0)
        row, column = divmod(int(finite.argmax()), finite.shape[1])
        peb = float(finite[row, column])
        return Worst(peb, float(self.area.x_m[column]), float(self.area.y_m[row])) if peb >= 0 else None

    @property
    def unobservable(self) -> dict[str, int]:
        """Number of points without a finite bound, by reason."""
        bits, counts = self.reason[self.reason > 0].unique(return_counts=True)
        return {Reason.describe(bit): count for bit, count in zip(bits.tolist(), counts.tolist(), strict=True)}


def build_area(
    stations: Tensor,
    area: Sequence[Sequence[float]] | None = None,
    height_m: float = 0.0,
    num_points: Sequence[int] = (289, 289),
) -> Area:
    """Cells of a rectangle.

    Args:
        stations: [bs xyz] [m].
        area: [[x0, y0], [x1, y1]], opposite corners [m]; None: the least rectangle around the stations.
        height_m: height of all points [m].
        num_points: cells along x and along y.

    Raises:
        ConfigError: a value does not fit; names it.
    """
    corner = [stations.amin(0)[:2].tolist(), stations.amax(0)[:2].tolist()] if area is None else area
    pair = isinstance(corner, Sequence) and len(corner) == 2 and all(isinstance(each, Sequence) for each in corner)
    numbers = pair and all(len(each) == 2 and all(map(_finite, each)) for each in corner)
    if not numbers or not all(low < high for low, high in zip(*corner, strict=True)):
        got = f"{corner}, the rectangle around the stations" if area is None else corner
        raise ConfigError(f"area must be [[x0, y0], [x1, y1]] with x0 < x1 and y0 < y1, got {got}")
    if not _finite(height_m):
        raise ConfigError(f"height_m must be a finite number, got {height_m!r}")
    counts = list(num_points) if isinstance(num_points, Sequence) else [num_points]
    if len(counts) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in counts):
        raise ConfigError(f"num_points must be two whole numbers >= 1, along x and y, got {num_points!r}")
    axes = [
        low + (torch.arange(count, dtype=torch.float64) + 0.5) * ((high - low) / count)
        for low, high, count in zip(*corner, counts, strict=True)
    ]
    (left, lower), (right, upper) = corner
    return Area(axes[0], axes[1], float(height_m), (left, right, lower, upper))


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def coverage_map(
    model: BoundModel, area: Area, chunk: int = CHUNK, progress: Callable[[int], object] | None = None
) -> CoverageMap:
    """The bound at all points of an area; nothing is raised for a point.

    Args:
        model: the network.
        area: the points.
        chunk: points at once; does not change the result.
        progress: called with the number of points after each chunk.

    Raises:
        ConfigError: the chunk is not a positive whole number.
    """
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise ConfigError(f"chunk must be a whole number >= 1, got {chunk!r}")
    shape = (len(area.y_m), len(area.x_m))
    peb = torch.empty(shape[0] * shape[1], dtype=torch.float64)
    reason = torch.empty(peb.shape, dtype=torch.int64)
    with torch.no_grad():
        for place, part in enumerate(area.points.reshape(-1, 3).split(chunk)):
            bound = model.point_bound(part)
            here = slice(place * chunk, place * chunk + len(part))
            peb[here], reason[here] = bound.peb_m, bound.reason
            if progress is not None:
                progress(len(part))
    return CoverageMap(area, peb.reshape(shape), reason.reshape(shape))
