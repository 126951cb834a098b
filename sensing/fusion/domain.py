"""The bounded domain on which all densities are normalised, as a grid of equal cells."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import ConfigError, DomainError

MOST_CELLS = 5_000_000


MISALIGNED = 1e-6
"""Share of a cell by which a centre may be off the grid of all others."""


class Lattice(NamedTuple):
    """The grid that the cells of a domain are part of: tells at once whether a position is in one of them."""

    lower: Tensor  # [n] corner of the grid, over the unknown coordinates [m]
    cell: Tensor  # [n] [m]
    filled: Tensor  # [...] bool, one axis per unknown coordinate
    unknown: list[int]

    def contains(self, position: Tensor) -> Tensor:
        """Whether positions [* xyz] lie in a cell, [*] bool."""
        size = torch.tensor(self.filled.shape, device=position.device)
        index = ((position[..., self.unknown] - self.lower) / self.cell).floor()
        within = ((index >= 0) & (index < size)).all(-1)
        index = torch.where(within[..., None], index, 0.0).long()
        return within & self.filled[index.unbind(-1)]


class Domain(NamedTuple):
    """Cells of a domain: in a plane of known height, or in space."""

    points: Tensor  # [cell xyz] centres [m]
    cell: Tensor  # [xyz] edge lengths of a cell [m]; 0 along a known coordinate

    @property
    def log_cell(self) -> Tensor:
        """Logarithm of a cell's area or volume, [] over the unknown coordinates."""
        return self.cell[self.cell > 0].log().sum()

    @property
    def unknown(self) -> list[int]:
        """Coordinates that are not known."""
        return self.cell.nonzero()[:, 0].tolist()

    @property
    def place(self) -> Tensor:
        """Place of each cell in their common grid, [cell n] int64 over the unknown coordinates.

        Raises:
            DomainError: the cells are not part of one grid.
        """
        points = self.points[:, self.unknown]
        ratio = (points - points.amin(0)) / self.cell[self.unknown]
        index = ratio.round()
        off = float((ratio - index).abs().max())
        if not off <= MISALIGNED:
            raise DomainError(f"the cells of a domain must be part of one grid, got one {off:.2g} of a cell off it")
        return index.long()

    def lattice(self) -> Lattice:
        """The cells as entries of their grid."""
        unknown, index = self.unknown, self.place
        cell = self.cell[unknown]
        filled = torch.zeros((index.amax(0) + 1).tolist(), dtype=torch.bool, device=index.device)
        filled[index.unbind(-1)] = True
        return Lattice(self.points[:, unknown].amin(0) - 0.5 * cell, cell, filled, unknown)

    def contains(self, position: Tensor) -> Tensor:
        """Whether positions [* xyz] lie in a cell, [*] bool."""
        return self.lattice().contains(position)

    def thinned(self, most: int) -> tuple[Tensor, int]:
        """About `most` centres spread evenly, and all at the edge: [point xyz], and the former's distance in cells."""
        stride = max(1, math.ceil((len(self.points) / most) ** (1.0 / len(self.unknown))))
        place = self.place + 1
        filled = torch.zeros((place.amax(0) + 2).tolist(), dtype=torch.bool, device=place.device)
        filled[place.unbind(-1)] = True
        inner = torch.ones_like(filled)
        for axis in range(filled.ndim):
            inner &= filled.roll(1, axis) & filled.roll(-1, axis)
        kept = (place % stride == 0).all(-1) | ~inner[place.unbind(-1)]
        return self.points[kept], stride


def box(lower: Sequence[float], upper: Sequence[float], spacing_m: float = 1.0) -> Domain:
    """An axis-parallel box; a coordinate with equal bounds is known.

    Args:
        lower: [xyz] [m].
        upper: [xyz] [m].
        spacing_m: largest edge of a cell [m].

    Raises:
        ConfigError: bounds in the wrong order, no unknown coordinate, or too many cells.
    """
    low, high = torch.as_tensor(lower, dtype=torch.float64), torch.as_tensor(upper, dtype=torch.float64)
    if low.shape != (3,) or high.shape != (3,) or not bool((low <= high).all()) or bool((low == high).all()):
        raise ConfigError(f"a domain must have lower corner [x, y, z] below upper, got {lower} and {upper}")
    if not 0 < spacing_m < math.inf:
        raise ConfigError(f"the spacing of a domain must be a positive number of metres, got {spacing_m}")
    extent = high - low
    count = (extent / spacing_m).ceil().clamp_min(1).long()
    if math.prod(count.tolist()) > MOST_CELLS:  # whole numbers of any size
        raise ConfigError(f"a domain must have at most {MOST_CELLS} cells, got {count.tolist()}; raise its spacing")
    cell = extent / count
    axes = [low[i] + (torch.arange(int(count[i]), dtype=torch.float64) + 0.5) * cell[i] for i in range(3)]
    return Domain(torch.cartesian_prod(*axes), cell)


def hexagon(radius_m: float, height_m: float, spacing_m: float = 1.0) -> Domain:
    """A regular hexagon around the origin with corners at angles 0, 60, ... degrees, at a known height.

    Args:
        radius_m: from the centre to a corner [m].
        height_m: of the target [m].
        spacing_m: largest edge of a cell [m].
    """
    if not 0 < radius_m < math.inf:
        raise ConfigError(f"the radius of a hexagon must be a positive number of metres, got {radius_m}")
    half = radius_m * math.sqrt(3.0) / 2.0
    around = box([-radius_m, -half, height_m], [radius_m, half, height_m], spacing_m)
    x, y, _ = around.points.abs().unbind(-1)
    return around._replace(points=around.points[math.sqrt(3.0) * x + y <= 2.0 * half])
