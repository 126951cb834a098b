"""What a fused position is worth: kept inside the domain, with its second mode and the reasons to doubt it.

All pooled methods end here. Costs are half the weighted squared residuals; the weights of a pool, known but for a
factor, count relative to their largest, so that the member trusted most keeps the deviation that it claims.
"""

import itertools
from enum import IntFlag
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.fusion.domain import Domain, Lattice
from sensing.fusion.likelihoods import log_likelihood
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.solve import normal_equations, pose, ridge, solve_position, solve_small
from sensing.fusion.start import INDISTINCT, station_plane

OPEN = 1e-9
"""Ratio of the information's eigenvalues below which a coordinate is open."""

P_VALUE = 1e-3
"""Probability of residuals as large as a contradiction, if the weighted deviations are right."""

LONE = 0.999
"""Share of all weight that makes a single member the only one that counts."""

UNSETTLED = 0.01
"""Squared length of the next Gauss-Newton step, in deviations, above which the position has not converged."""

COARSE, BEST, CLOSER, FINE = 500, 8, 4, 0.005
"""Search of a pool's best point: cells tried first, those followed up, ratio of spacings, last spacing in cells."""


NEARBY = 1e-3
"""Stiffness, relative to the ranges' precision, that holds an open coordinate near where it was."""


class FusionFlag(IntFlag):
    """What a user of a fused position must know."""

    MIRROR = 1  # the mirror image fits as well
    OPEN = 2  # a coordinate is not determined
    CONTRADICTORY = 4  # residuals beyond what the weighted deviations allow
    LONE_MEMBER = 8  # one member has all the weight
    OUTSIDE = 16  # the most likely position lay outside the domain: this is the best one inside
    NOT_CONVERGED = 32  # steps of position or weights did not settle
    ONE_STATION = 64  # nothing checks the only station that measured anything


class Mode(NamedTuple):
    """A position in the domain and the pool there."""

    position: Tensor  # [* xyz] [m]
    cost: Tensor  # [*] half the weighted squared residuals
    information: Tensor  # [* n n] over the unknown coordinates [1/m^2]
    outside: Tensor  # [*] bool: without the domain it would lie outside
    settled: Tensor  # [*] bool: the next step is short


class Verdict(NamedTuple):
    """Modes and doubts of fused positions."""

    position: Tensor  # [* xyz] [m]
    mirror: Tensor  # [* xyz] second mode where flagged, else the position [m]
    flags: Tensor  # [*] int64, of FusionFlag
    information: Tensor  # [* n n] [1/m^2]


class Pool(NamedTuple):
    """A weighted pool on a domain."""

    measured: StationMeasurements
    weight: Tensor  # [* 2 bs]
    bias_m: Tensor | None  # [* bs] taken off the ranges; None: nothing
    domain: Domain
    lattice: Lattice

    def rows(self, index: Tensor) -> "Pool":
        """Some of the drops [drop] of a pool with one batch axis."""
        where, *fields = self.measured
        where = where if where.ndim == 2 else where[index]
        bias = None if self.bias_m is None else self.bias_m[index]
        measured = StationMeasurements(where, *(field[index] for field in fields))
        return self._replace(measured=measured, weight=self.weight[index], bias_m=bias)

    def solve(self, start: Tensor) -> Tensor:
        """Most likely position near a start, [* xyz]."""
        return solve_position(start, self.measured, self.weight, self.bias_m, self.domain.unknown).position

    def cost(self, points: Tensor) -> Tensor:
        """Half the weighted squared residuals at points [* point xyz], [* point]."""
        off = 0.0 if self.bias_m is None else self.bias_m
        density = log_likelihood(self.measured._replace(range_m=self.measured.range_m - off), points)
        return -(self.weight.flatten(-2)[..., None, :] @ density)[..., 0, :]


def judged(
    position: Tensor,
    measured: StationMeasurements,
    weight: Tensor,
    bias_m: Tensor | None,
    domain: Domain,
    sampled: bool = False,
) -> Verdict:
    """Keep positions inside the domain, look for second modes, and say what is doubtful.

    Args:
        position: [drop xyz] most likely positions [m].
        measured: [drop bs].
        weight: [drop 2 bs] of ranges and directions; 0: not measured.
        bias_m: [drop bs] taken off the ranges [m]; None: nothing.
        domain: outside of which nothing can be.
        sampled: the positions are the best of samples: in the domain, and no stationary points.

    Returns:
        Positions and flags; differentiable where the position is the given one.
    """
    batch, stations = position.shape[:-1], measured.range_m.shape[-1]
    where, *fields = measured
    where = where if where.ndim == 2 else where.expand(*batch, stations, 3).reshape(-1, stations, 3)
    flat = StationMeasurements(where, *(field.expand(*batch, stations).reshape(-1, stations) for field in fields))
    bias_m = None if bias_m is None else bias_m.reshape(-1, stations)
    weight = weight.reshape(-1, 2, stations)
    pool = Pool(flat, weight, bias_m, domain, domain.lattice())
    used = (weight > 0).unbind(-2)
    mode = _mode(position.reshape(-1, 3), pool)
    if sampled:
        mode = mode._replace(settled=torch.ones_like(mode.settled))
    mirror, ambiguous = mode.position, torch.zeros_like(mode.outside)
    ranges = used[0].sum(-1).ge(len(domain.unknown)) & ~used[1].any(-1)  # fewer leave a coordinate open instead
    if bool(ranges.any()):
        mode, mirror, ambiguous = _with_mirror(mode, pool, used[0], ranges.nonzero()[:, 0])
    mode = _kept(mode, pool)
    mirror = torch.where(ambiguous[:, None], mirror, mode.position)
    share = weight.flatten(-2)
    freedom = used[0].sum(-1) + 2 * used[1].sum(-1) - len(domain.unknown)  # circles that do not meet leave one
    chance = torch.special.gammaincc(0.5 * freedom.clamp_min(1).to(mode.cost), mode.cost.detach())
    doubts = {
        FusionFlag.MIRROR: ambiguous,
        FusionFlag.OPEN: _is_open(mode.information),
        FusionFlag.CONTRADICTORY: chance < P_VALUE,
        FusionFlag.LONE_MEMBER: share.amax(-1) >= LONE * share.sum(-1),
        FusionFlag.OUTSIDE: mode.outside,
        FusionFlag.NOT_CONVERGED: ~mode.settled & ~mode.outside,
        FusionFlag.ONE_STATION: (flat.precision > 0).any(-2).sum(-1) == 1,
    }
    flags = sum((flag * doubt.long() for flag, doubt in doubts.items()), torch.zeros_like(freedom))
    size = mode.information.shape[-2:]
    return Verdict(
        mode.position.reshape(*batch, 3),
        mirror.reshape(*batch, 3),
        flags.reshape(batch),
        mode.information.reshape(*batch, *size),
    )


def _kept(mode: Mode, pool: Pool) -> Mode:
    """The mode itself; where it is outside the domain or has not settled, the best point inside."""
    stray = mode.outside | ~mode.settled
    if not bool(stray.any()):
        return mode
    with torch.no_grad():
        here = stray.nonzero()[:, 0]
        part = pool.rows(here)
        found = _mode(best_point(part, mode.position[here], _is_open(mode.information[here])), part)
        unsettled = ~mode.settled[here]
        if bool(unsettled.any()):
            refined = _mode(part.solve(found.position), part)
            found = _chosen(unsettled & ~refined.outside & (refined.cost <= found.cost), refined, found)
        taken = mode.outside[here] | (found.cost < mode.cost[here])
    kept = _chosen_at(here[taken], Mode(*(field[taken] for field in found)), mode)
    return kept._replace(outside=mode.outside)


def _is_open(information: Tensor) -> Tensor:
    """Whether a coordinate is not determined, [*] bool."""
    value = torch.linalg.eigvalsh(information.detach())
    return ~(value[..., 0] > OPEN * value[..., -1])


def _chosen(condition: Tensor, one: Mode, other: Mode) -> Mode:
    """One mode where a condition [drop] holds, the other elsewhere."""
    shapes = [condition.reshape(-1, *[1] * (field.ndim - 1)) for field in one]
    return Mode(*(torch.where(*each) for each in zip(shapes, one, other, strict=True)))


def _chosen_at(rows: Tensor, one: Mode, other: Mode) -> Mode:
    """The other mode, with some rows replaced."""
    return Mode(*(field.index_copy(0, rows, value) for field, value in zip(other, one, strict=True)))


def _mode(position: Tensor, pool: Pool) -> Mode:
    """Pool at a position."""
    normal = normal_equations(position, pose(pool.measured, pool.weight, pool.bias_m, pool.domain.unknown))
    information, vector = normal.information, normal.vector
    damped = information.detach() + ridge(information.detach())
    left = (vector * solve_small(damped, vector.detach()[..., None])[..., 0]).sum(-1)
    return Mode(position, normal.cost, information, ~pool.lattice.contains(position.detach()), left < UNSETTLED)


def _with_mirror(mode: Mode, pool: Pool, used: Tensor, here: Tensor) -> tuple[Mode, Tensor, Tensor]:
    """Mode, mirror image [drop xyz] and whether it fits as well [drop]; of drops `here`, which have ranges alone."""
    with torch.no_grad():
        part, first = pool.rows(here), Mode(*(field[here] for field in mode))
        unknown = pool.domain.unknown
        centre, normal = station_plane(part.measured.bs_position, used[here], unknown)
        height = ((first.position[:, unknown] - centre) * normal).sum(-1, keepdim=True)
        image = first.position.clone()
        image[:, unknown] -= 2.0 * height * normal
        second = _mode(part.solve(image), part)
        gap = (first.position - second.position)[:, unknown]
        apart = 0.5 * (gap[:, None, :] @ first.information @ gap[..., None])[:, 0, 0] > INDISTINCT
        alike = (
            apart & first.settled & second.settled & ~second.outside & ((second.cost - first.cost).abs() < INDISTINCT)
        )
        swap = alike & first.outside  # the start chose the image that cannot be
        mirror, ambiguous = mode.position.index_copy(0, here, second.position), torch.zeros_like(mode.outside)
        ambiguous[here] = alike & ~first.outside
    return _chosen_at(here[swap], Mode(*(field[swap] for field in second)), mode), mirror, ambiguous


def best_point(pool: Pool, origin: Tensor, is_open: Tensor) -> Tensor:
    """The point of the domain with the least cost, from several places of a thinned grid on, [drop xyz].

    A slanted edge is a staircase of cells, each of whose corners is a local minimum: hence more than one start. Where a
    coordinate is open, many points are as good: one near the origin is meant.

    Args:
        pool: [drop].
        origin: [drop xyz] [m].
        is_open: [drop] bool.
    """
    unknown = pool.domain.unknown
    points, stride = pool.domain.thinned(COARSE)
    stiffness = torch.where(is_open, NEARBY * (pool.weight * pool.measured.precision)[:, 0].sum(-1), 0.0)

    def total(at: Tensor) -> Tensor:
        return pool.cost(at) + 0.5 * stiffness[:, None] * (at - origin[:, None]).square().sum(-1)

    place = points[total(points).topk(min(BEST, len(points)), largest=False).indices]  # [drop start xyz]
    steps = list(itertools.product(range(-CLOSER, CLOSER + 1), repeat=len(unknown)))
    around = torch.zeros(len(steps), 3, dtype=place.dtype)
    around[:, unknown] = torch.tensor(steps, dtype=place.dtype)
    spacing = float(stride)
    while spacing > FINE:
        spacing /= CLOSER
        near = place[:, :, None] + spacing * pool.domain.cell * around
        cost = total(near.flatten(1, 2)).reshape(near.shape[:-1])
        least, index = torch.where(pool.lattice.contains(near), cost, torch.inf).min(-1)
        place = near.gather(2, index[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]
    return place[torch.arange(len(place)), least.argmin(-1)]
