"""What of a radar network a plan may change, as numbers within bounds (`sensing.bounds.planning` chooses them).

Each variable maps its numbers to a network for which its limits hold whatever the numbers are, and lets gradients
through. Totals that are fixed are linear, `weight . x = total`, and are kept by the optimiser.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sensing.checks import check_finite, check_shape
from sensing.errors import ConfigError, DomainError
from sensing.radar.network import RadarNetwork

CHOICES = {
    "place": (None, "inside", "walls"),
    "boresight": (None, "centre", "free"),
    "power": (None, "eirp", "sensing_fraction"),
}


class Variable(Protocol):
    """A part of a network that may change."""

    @property
    def low(self) -> Tensor:
        """Least values [n]; -inf: none."""

    @property
    def high(self) -> Tensor:
        """Largest values [n]; inf: none."""

    def current(self, network: RadarNetwork) -> Tensor:
        """The numbers [n] of a network, or of an allowed one near it."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Random allowed numbers [n]."""

    def applied(self, network: RadarNetwork, x: Tensor) -> RadarNetwork:
        """The network with numbers x [n]."""


class Inside(NamedTuple):
    """Positions in a box, in units of its sides."""

    stations: Tensor  # [own] indices
    region: Tensor  # [2 axis] lower and upper corner [m]; two axes: heights stay

    @property
    def low(self) -> Tensor:
        """Zero."""
        return self.region.new_zeros(len(self.stations) * self.region.shape[1])

    @property
    def high(self) -> Tensor:
        """One."""
        return torch.ones_like(self.low)

    def current(self, network: RadarNetwork) -> Tensor:
        """Positions, those outside moved to the box."""
        low, size = self.region[0], self.region[1] - self.region[0]
        place = network.deployment.bs_position[self.stations, : len(low)]
        return ((place - low) / torch.where(size > 0, size, torch.inf)).clamp(0.0, 1.0).flatten()

    def draw(self, generator: torch.Generator) -> Tensor:
        """Uniform in the box."""
        return torch.rand(len(self.low), generator=generator, dtype=torch.float64)

    def applied(self, network: RadarNetwork, x: Tensor) -> RadarNetwork:
        """Move the stations."""
        low, high = self.region
        return _moved(network, self.stations, low + x.reshape(-1, len(low)).clamp(0.0, 1.0) * (high - low))


class Walls(NamedTuple):
    """Positions on the outline of a rectangle, in units of its length from the lower corner, counter-clockwise."""

    stations: Tensor  # [own] indices
    region: Tensor  # [2 xy] lower and upper corner [m]

    @property
    def low(self) -> Tensor:
        """None: the outline is closed."""
        return self.region.new_full((len(self.stations),), -torch.inf)

    @property
    def high(self) -> Tensor:
        """None."""
        return -self.low

    def current(self, network: RadarNetwork) -> Tensor:
        """The nearest points of the outline."""
        corner, side, length, before = self._sides()
        place = network.deployment.bs_position[self.stations, None, :2]  # against [side xy]
        share = (((place - corner) * side).sum(-1) / length.square()).clamp(0.0, 1.0)
        nearest = (place - corner - share[..., None] * side).norm(dim=-1).argmin(-1, keepdim=True)
        return ((before + share * length).gather(-1, nearest) / length.sum())[:, 0]

    def draw(self, generator: torch.Generator) -> Tensor:
        """Uniform along the outline."""
        return torch.rand(len(self.stations), generator=generator, dtype=torch.float64)

    def applied(self, network: RadarNetwork, x: Tensor) -> RadarNetwork:
        """Move the stations."""
        corner, side, length, before = self._sides()
        way = torch.remainder(x, 1.0) * length.sum()
        index = torch.searchsorted(before, way.detach(), right=True) - 1
        share = ((way - before[index]) / length[index]).clamp(0.0, 1.0)
        return _moved(network, self.stations, corner[index] + share[:, None] * side[index])

    def _sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Start [side xy], vector [side xy] and length [side] of each side, and the way before it [side]."""
        (x0, y0), (x1, y1) = self.region
        corner = torch.stack([torch.stack(pair) for pair in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))])
        side = corner.roll(-1, 0) - corner
        length = side.abs().sum(-1)
        return corner, side, length, length.cumsum(0) - length


class Azimuth(NamedTuple):
    """Directions of the boresights about the vertical, free [rad]; tilts stay."""

    stations: Tensor  # [own] indices

    @property
    def low(self) -> Tensor:
        """None: angles are periodic."""
        return torch.full((len(self.stations),), -torch.inf, dtype=torch.float64)

    @property
    def high(self) -> Tensor:
        """None."""
        return -self.low

    def current(self, network: RadarNetwork) -> Tensor:
        """Azimuths."""
        return _azimuth(network.deployment.boresight[self.stations])

    def draw(self, generator: torch.Generator) -> Tensor:
        """Uniform over the circle."""
        return 2.0 * math.pi * torch.rand(len(self.stations), generator=generator, dtype=torch.float64)

    def applied(self, network: RadarNetwork, x: Tensor) -> RadarNetwork:
        """Turn the arrays."""
        return _turned(network, self.stations, x)


class Facing(NamedTuple):
    """Boresights that follow the positions and face a point; no numbers of its own."""

    stations: Tensor  # [own] indices
    point: Tensor  # [xyz] [m]

    @property
    def low(self) -> Tensor:
        """Empty."""
        return self.point.new_zeros(0)

    @property
    def high(self) -> Tensor:
        """Empty."""
        return self.point.new_zeros(0)

    def current(self, network: RadarNetwork) -> Tensor:
        """Empty."""
        return self.low

    def draw(self, generator: torch.Generator) -> Tensor:
        """Empty."""
        return self.low

    def applied(self, network: RadarNetwork, x: Tensor) -> RadarNetwork:
        """Turn the arrays."""
        away = self.point - network.deployment.bs_position[self.stations]
        return _turned(network, self.stations, _azimuth(away))


class Power(NamedTuple):
    """Shares of a total that stays: of the EIRP, or of the power in the sensing beams (each station's EIRP stays).

    With b the budget of a field f, `sum_i weight_i f_i = b`. The numbers are `weight f / b`, which add up to one.
    """

    stations: Tensor  # [own] indices
    field: str  # eirp_w or sensing_fraction
    weight: Tensor  # [own] one, or the stations' EIRP [W]
    budget: Tensor  # [] [W]
    limit: Tensor  # [2] least and largest value of the field

    @property
    def low(self) -> Tensor:
        """Share at the least value."""
        return self.limit[0] * self.weight / self.budget

    @property
    def high(self) -> Tensor:
        """Share at the largest value."""
        return self.limit[1] * self.weight / self.budget

    def current(self, network: RadarNetwork) -> Tensor:
        """Shares of a network, moved within the limits."""
        values: Tensor = getattr(network, self.field)[self.stations]
        return self._added_up(self.weight * values / self.budget)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Uniform shares (Dirichlet), moved within the limits."""
        draws = torch.empty(len(self.stations), dtype=torch.float64).exponential_(generator=generator)
        return self._added_up(draws / draws.sum())

    def applied(self, network: RadarNetwork, x: Tensor) -> RadarNetwork:
        """Set the field."""
        values = (x * self.budget / self.weight).clamp(*self.limit)
        field: Tensor = getattr(network, self.field)
        changed: dict[str, Any] = {self.field: field.index_copy(0, self.stations, values)}
        return network._replace(**changed)

    def _added_up(self, share: Tensor) -> Tensor:
        """Clamped to the limits, then moved towards the lower or the upper ones until the sum is one."""
        share = share.clamp(self.low, self.high)
        end = self.low if share.sum() > 1 else self.high.clamp(max=1.0)
        gap = (end - share).sum()
        return share if gap == 0 else share + (end - share) * ((1.0 - share.sum()) / gap)


class Variables(NamedTuple):
    """All that may change, in the order in which it is applied."""

    base: RadarNetwork
    parts: list[Variable]

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """Least and largest value of each number."""
        low, high = (torch.cat([getattr(part, name) for part in self.parts]).tolist() for name in ("low", "high"))
        return list(zip(low, high, strict=True))

    @property
    def shares(self) -> Tensor:
        """One for the numbers that add up to one, zero for the others; [n]."""
        return torch.cat([torch.full_like(part.low, float(isinstance(part, Power))) for part in self.parts])

    def current(self) -> Tensor:
        """Numbers of the network as it is, or of an allowed one near it, [n]."""
        return torch.cat([part.current(self.base) for part in self.parts])

    def draw(self, generator: torch.Generator) -> Tensor:
        """Random numbers, [n]."""
        return torch.cat([part.draw(generator) for part in self.parts])

    def network(self, x: Tensor) -> RadarNetwork:
        """The network of the numbers x [n]."""
        network = self.base
        for part, numbers in zip(self.parts, x.split([len(part.low) for part in self.parts]), strict=True):
            network = part.applied(network, numbers)
        return network


def build_variables(
    network: RadarNetwork,
    place: str | None = None,
    region: Sequence[Sequence[float]] | None = None,
    boresight: str | None = None,
    centre: Sequence[float] | None = None,
    power: str | None = None,
    power_limit: Sequence[float] = (0.0, math.inf),
) -> Variables:
    """The variables of a plan.

    Args:
        network: its stations that belong to a link may change, the others stay.
        place: `inside` the region, on its `walls`, or None: positions stay.
        region: (lower, upper) corner, [2 xy] (heights stay) or, inside, [2 xyz] [m].
        boresight: facing the `centre` whatever the position, `free` to turn about the vertical, or None: stays.
        centre: [xyz] point that the boresights face.
        power: `eirp` or `sensing_fraction`, with the total radiated power, or sensing power, of the network as it is.
        power_limit: least and largest EIRP [W] or sensing fraction of a station.

    Returns:
        The variables.

    Raises:
        ConfigError, ShapeError, DomainError: a value does not fit, or there is nothing to vary.
    """
    for name, value in (("place", place), ("boresight", boresight), ("power", power)):
        if value not in CHOICES[name]:
            raise ConfigError(f"{name} must be one of {list(CHOICES[name])}, got {value!r}")
    stations = network.links.unique()
    parts: list[Variable] = []
    if place is not None:
        box = _region(region, place)
        parts.append(Inside(stations, box) if place == "inside" else Walls(stations, box))
    if boresight == "centre":
        if centre is None:
            raise ConfigError("boresight=centre needs the point to face, got centre=None")
        point = torch.as_tensor(centre, dtype=torch.float64)
        check_shape("centre", point, "xyz", xyz=3)
        check_finite("centre", point)
        parts.append(Facing(stations, point))
    elif boresight == "free":
        parts.append(Azimuth(stations))
    if power is not None:
        parts.append(_power(network, stations, power, power_limit))
    if not sum(len(part.low) for part in parts):
        raise ConfigError(
            f"a plan needs something to vary (place, boresight=free or power), got {place}, {boresight}, {power}"
        )
    return Variables(network, parts)


def _region(region: Sequence[Sequence[float]] | None, place: str) -> Tensor:
    if region is None:
        raise ConfigError(f"place={place} needs the region of allowed positions, got region=None")
    box = torch.as_tensor(region, dtype=torch.float64)
    if box.ndim != 2 or len(box) != 2 or box.shape[1] not in ((2, 3) if place == "inside" else (2,)):
        raise ConfigError(f"region must be [2 xy]{' or [2 xyz]' if place == 'inside' else ''}, got {list(box.shape)}")
    check_finite("region", box)
    size = box[1] - box[0]
    empty = (size < 0).any() or not (size > 0).any() if place == "inside" else (size <= 0).any()
    if bool(empty):
        raise DomainError(f"region must be (lower, upper) corner and not empty, got {box.tolist()}")
    return box


def _power(network: RadarNetwork, stations: Tensor, power: str, limit: Sequence[float]) -> Power:
    field = "eirp_w" if power == "eirp" else "sensing_fraction"
    eirp = network.eirp_w[stations]
    weight = torch.ones_like(eirp) if power == "eirp" else eirp
    budget = (weight * getattr(network, field)[stations]).sum()
    if not bool(budget > 0) or not bool((weight > 0).all()):
        raise DomainError(f"power={power} needs stations that send and a total > 0, got {eirp.tolist()}, {budget:g} W")
    edge = torch.as_tensor(limit, dtype=torch.float64)
    check_shape("power_limit", edge, "2")
    most = torch.inf if power == "eirp" else 1.0
    if power != "eirp" and network.communication_point is not None and not bool(((edge > 0) & (edge < 1)).all()):
        raise DomainError(f"power_limit must lie inside 0 to 1 where communication beams leak, got {edge.tolist()}")
    if not bool((edge >= 0).all()) or not bool(edge[0] < edge[1]):
        raise DomainError(f"power_limit must be (least, largest), both >= 0, got {edge.tolist()}")
    edge = edge.clamp(max=most)
    if not bool((edge[0] * weight).sum() <= budget) or not bool((edge[1] * weight).sum() >= budget):
        raise DomainError(
            f"power_limit must leave room for a total of {budget:g} W, got {edge.tolist()} for {len(stations)} stations"
        )
    return Power(stations, field, weight, budget, edge)


def _moved(network: RadarNetwork, stations: Tensor, place: Tensor) -> RadarNetwork:
    """The network with its stations at places [own axis]; two axes: heights stay."""
    full = network.deployment.bs_position
    place = torch.cat([place, full[stations, place.shape[1] :]], -1)
    return network._replace(deployment=network.deployment._replace(bs_position=full.index_copy(0, stations, place)))


def _turned(network: RadarNetwork, stations: Tensor, azimuth: Tensor) -> RadarNetwork:
    """The network with its boresights turned about the vertical to azimuths [own] [rad]."""
    full = network.deployment.bs_rotation
    angle = azimuth - _azimuth(full[stations, :, 0])
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = ((cos, -sin, zero), (sin, cos, zero), (zero, zero, zero + 1.0))
    turn = torch.stack([torch.stack(row, -1) for row in rows], -2)
    rotation = full.index_copy(0, stations, turn @ full[stations])
    return network._replace(deployment=network.deployment._replace(bs_rotation=rotation))


def _azimuth(direction: Tensor) -> Tensor:
    return torch.atan2(direction[..., 1], direction[..., 0])
