"""The bound of a radar network as an object that maps points to position error bounds, built from a configuration."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sensing.bounds.cooperative import UNKNOWN, PointBound, point_bound
from sensing.errors import ConfigError
from sensing.radar.network import RadarNetwork, build_network


class BoundModel(Protocol):
    """What a map, a sweep or a planner asks of a network of any kind."""

    @property
    def bs_position(self) -> Tensor:
        """Stations that take part, [bs xyz] [m]."""

    def point_bound(self, position: Tensor) -> PointBound:
        """Position error bound at points [* xyz] [m]."""


class Radar(NamedTuple):
    """A radar network and what it is asked to estimate."""

    network: RadarNetwork
    unknown: str = "xy"  # coordinates of the target that are estimated: xy (height known) or xyz

    @property
    def bs_position(self) -> Tensor:
        """Stations of any link, [bs xyz] [m]."""
        return self.network.deployment.bs_position[self.network.links.unique()]

    def point_bound(self, position: Tensor) -> PointBound:
        """Position error bound at points [* xyz] [m]; see `sensing.bounds.cooperative.point_bound`."""
        return point_bound(position, self.network, self.unknown)


def build_radar(bs_position: Sequence[Sequence[float]], unknown: str = "xy", **values: Any) -> Radar:
    """A radar network from configuration values.

    Args:
        bs_position: [bs xyz] or [bs xy] [m].
        unknown: `xy` or `xyz`.
        values: as `sensing.radar.build_network`.

    Raises:
        ConfigError, ShapeError, DomainError: a value does not fit.
    """
    if unknown not in UNKNOWN:
        raise ConfigError(f"unknown must be one of {list(UNKNOWN)}, got {unknown!r}")
    return Radar(build_network(bs_position, **values), unknown)
