"""Bound on the position and velocity of a target that a network of links observes (paper 2, equations 19 to 22).

A link estimates range, Doppler and direction of an echo of unknown complex gain. Its samples lie on a product grid of
times t, frequencies f and element positions q, so eliminating the gain centres each axis and leaves no coupling:

    J_range = 2 gamma MKN (2 pi / c)^2 var(f),    J_doppler = 2 gamma MKN (2 pi)^2 var(t),
    J_direction = 2 gamma MKN (2 pi / lambda)^2 cov(q)    [xyz xyz], to be projected across the direction.

For a uniform linear array these are equations 12 and 14. With the unit vectors u_tx, u_rx from the stations to the
target and P = I - u_rx u_rx^T, the information of the position p is, summed over links,

    J = J_range g g^T + P J_direction P / r_rx^2,    g = u_tx + u_rx  (twice u in a monostatic link),

and a velocity v adds `J_doppler h h^T`, h = -(f_c / c) (d(v.g)/dp, g). Amplitude and carrier phase are nuisances:
neither the r^-4 law nor the wavelength tells the position. All is differentiable, also in stations' places and power.
"""

import functools
import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sensing.bounds.fisher import LOST, MOVED, invert_with_prior
from sensing.checks import check_finite, check_shape
from sensing.errors import ConfigError, ShapeError
from sensing.radar.network import RadarNetwork
from sensing.radar.power import link_budget
from sensing.units import SPEED_OF_LIGHT

UNKNOWN = {"xy": 2, "xyz": 3}


class Reason:
    """Bits that say why a bound is infinite; 0 where it is finite."""

    AT_STATION = 1  # the target lies on a station
    NO_POWER = 2  # no link illuminates the target
    SINGULAR = 4  # a direction of the unknowns leaves all observations unchanged
    SOME_DRAWS = 8  # of an average over random scenes: singular in some of them only
    NAMES: ClassVar[dict[int, str]] = {1: "at_station", 2: "no_power", 4: "singular", 8: "some_draws"}

    @classmethod
    def describe(cls, bits: int) -> str:
        """Names of the set bits, joined by `|`; empty when none is set."""
        return "|".join(name for bit, name in cls.NAMES.items() if bits & bit)


class PointBound(NamedTuple):
    """Position error bound at points."""

    peb_m: Tensor  # [*] sqrt(trace of the covariance of the position) [m]; inf where unobservable
    reason: Tensor  # [*] int64, bits of `Reason`


class TargetBound(NamedTuple):
    """Bound of position and velocity of a target."""

    peb_m: Tensor  # [*] position error bound [m]; inf where unobservable
    veb_m_s: Tensor | None  # [*] velocity error bound [m/s]; None where the velocity is not asked for
    covariance: Tensor  # [* n n] of position, then velocity; NaN-free: zero for what is unobservable
    reason: Tensor  # [*] int64, bits of `Reason`


class Sharpness(NamedTuple):
    """Information per unit SNR that one link's samples hold."""

    range: Tensor  # [] of the way's length [1/m^2]
    doppler: Tensor  # [] [s^2]
    direction: Tensor  # [link 3 3] of the direction vector, global axes


def sharpness(network: RadarNetwork) -> Sharpness:
    """The constants above without gamma."""
    receivers = network.receivers
    samples = len(receivers.antenna_local) * len(receivers.pilot_freq) * len(network.symbol_time)
    scale = 2.0 * samples * (2.0 * math.pi) ** 2
    antenna = receivers.antenna_global / receivers.wavelength  # [link ant xyz]
    centred = antenna - antenna.mean(-2, keepdim=True)
    return Sharpness(
        range=scale * receivers.pilot_freq.var(correction=0) / SPEED_OF_LIGHT**2,
        doppler=scale * network.symbol_time.var(correction=0),
        direction=scale * (centred.mT @ centred) / centred.shape[-2],
    )


def target_information(
    position: Tensor,
    network: RadarNetwork,
    velocity: Tensor | None = None,
    unknown: str = "xyz",
    snr: Tensor | None = None,
) -> Tensor:
    """Fisher information of a target, gains eliminated.

    Args:
        position: [* xyz] [m].
        network: the stations.
        velocity: [* xyz] [m/s]; None: the target's Doppler is a nuisance, and the velocity no unknown.
        unknown: `xy` (height and vertical velocity known) or `xyz`.
        snr: [* link] of the echoes per sample; that of the link budget by default.

    Returns:
        [* n n] over position and, with a velocity, velocity; inf on top of a station.

    Raises:
        ConfigError, ShapeError, DomainError: an argument does not fit.
    """
    size = _check(position, velocity, unknown)
    seen = _see(position, network, snr)
    information = _summed(seen, velocity, network, size).movedim((0, 1), (-2, -1))
    lost = (seen.reason & Reason.AT_STATION) > 0
    return torch.where(lost[..., None, None], torch.inf, information)


def point_bound(position: Tensor, network: RadarNetwork, unknown: str = "xy") -> PointBound:
    """Position error bound of a target at each point, its Doppler a nuisance; in two dimensions a closed form.

    Args:
        position: [* xyz] [m].
        network: the stations.
        unknown: `xy` (height known) or `xyz`.

    Returns:
        The bound; inf with its reason where there is none. Nothing is raised for a point.

    Raises:
        ConfigError, ShapeError, DomainError: an argument does not fit.
    """
    if unknown != "xy":
        bound = target_bound(position, network, unknown=unknown)
        return PointBound(bound.peb_m, bound.reason)
    size = _check(position, None, unknown)
    seen = _see(position, network)
    (xx, xy), (_, yy) = _summed(seen, None, network, size)
    determinant = xx * yy - xy.square()
    scale = (0.5 * (xx + yy)).square()  # the same however the axes lie
    reason = seen.reason + Reason.SINGULAR * ((seen.reason == 0) & ~(determinant > LOST * scale)).long()
    trusted = reason == 0
    variance = (xx + yy) / torch.where(trusted, determinant, torch.ones_like(determinant))
    return PointBound(torch.where(trusted, variance, torch.inf).sqrt(), reason)


def target_bound(
    position: Tensor,
    network: RadarNetwork,
    velocity: Tensor | None = None,
    unknown: str = "xyz",
    prior_std: Tensor | None = None,
    snr: Tensor | None = None,
) -> TargetBound:
    """Bound on a target's position and, where one is given, velocity.

    Args:
        position: [* xyz] [m].
        network: the stations.
        velocity: [* xyz] [m/s]; None: the Doppler is a nuisance.
        unknown: `xy` or `xyz`.
        prior_std: [n] standard deviations of a Gaussian prior of the unknowns (0: known, inf: none); None: no prior.
        snr: [* link] of the echoes per sample; that of the link budget by default.

    Returns:
        The bound; inf with its reason where there is none. A prior can make up for missing power.

    Raises:
        ConfigError, ShapeError, DomainError: an argument does not fit.
    """
    size = _check(position, velocity, unknown)
    n = size if velocity is None else 2 * size
    seen = _see(position, network, snr)
    information = _summed(seen, velocity, network, size).movedim((0, 1), (-2, -1))
    if prior_std is None:
        prior_std = information.new_full((n,), torch.inf)
    check_shape("prior_std", prior_std, "n", n=n)
    # one scale for the coordinates of a vector, so that what is lost does not depend on how the axes lie
    known = information.diagonal(dim1=-2, dim2=-1).unflatten(-1, (-1, size))
    known = known.mean(-1, keepdim=True).expand_as(known).flatten(-2)
    solved = invert_with_prior(information, known, prior_std.to(information))
    share = solved.null.square().sum(-1) * torch.where(known > 0, known, torch.ones_like(known))
    open_ = share > MOVED  # [* n] parameters that a null direction moves
    reason = seen.reason + Reason.SINGULAR * (open_[..., :size].any(-1) & (seen.reason == 0)).long()
    lost = (reason & Reason.AT_STATION) > 0
    variance = torch.where(open_ | lost[..., None], torch.inf, solved.covariance.diagonal(dim1=-2, dim2=-1))
    peb = variance[..., :size].sum(-1).sqrt()
    inside = torch.isfinite(variance)
    covariance = torch.where(inside[..., :, None] & inside[..., None, :], solved.covariance, 0.0)
    veb = None if velocity is None else variance[..., size:].sum(-1).sqrt()
    return TargetBound(peb, veb, covariance, torch.where(torch.isfinite(peb), torch.zeros_like(reason), reason))


class _Sight(NamedTuple):
    """A point as one station sees it; components come first, because long vectors are faster than small ones."""

    unit: Tensor  # [xyz *] from the station to the point
    square: Tensor  # [*] of the distance [m^2]


class _Seen(NamedTuple):
    """Points as the stations see them."""

    by: dict[int, _Sight]  # by station
    snr: list[Tensor]  # [*] by link
    reason: Tensor  # [*] int64, why a point has no bound so far


def _see(position: Tensor, network: RadarNetwork, snr: Tensor | None = None) -> _Seen:
    """Directions and distances to the stations of any link, and the SNR unless [* link] is given.

    Nearer than a wavelength the far-field model says nothing; such a point is flagged and gets a distance of one metre,
    so that neither its values nor their gradients are NaN.
    """
    point = position.double().movedim(-1, 0).contiguous()
    close = network.deployment.wavelength.square()
    at_station = torch.zeros(point.shape[1:], dtype=torch.bool, device=point.device)
    by = {}
    for station in network.links.unique().tolist():
        place = network.deployment.bs_position[station]
        difference = point - place.reshape(3, *[1] * (point.ndim - 1))
        square = _dot(difference, difference)
        near = square <= close
        at_station |= near
        square = torch.where(near, 1.0, square)
        by[station] = _Sight(difference / square.sqrt(), square)
    budget = link_budget(position.double(), network) if snr is None else snr
    gamma = list(budget.unbind(-1))
    if snr is None:
        spread = [by[sender].square * by[receiver].square for sender, receiver in network.links.tolist()]
        gamma = [power / loss for power, loss in zip(gamma, spread, strict=True)]
    dark = ~(budget > 0).any(-1).expand(at_station.shape)
    reason = Reason.AT_STATION * at_station.long() + Reason.NO_POWER * (dark & ~at_station).long()
    return _Seen(by, gamma, reason)


def _summed(seen: _Seen, velocity: Tensor | None, network: RadarNetwork, size: int) -> Tensor:
    """Information, [n n *]: of the first coordinates of the position and, if there is one, of the velocity."""
    sharp = sharpness(network)
    parts = []
    for link, (sender, receiver) in enumerate(network.links.tolist()):
        out, back = seen.by[sender], seen.by[receiver]
        gamma = seen.snr[link]
        slope = out.unit + back.unit
        along = _outer(gamma * sharp.range * slope[:size], slope[:size])
        place = along + (gamma / back.square) * _across(sharp.direction[link], back.unit, size)
        if velocity is not None:
            rate = _closing_slope(velocity.double().movedim(-1, 0), (out, back))
            joint = torch.cat([rate[:size], slope[:size]])
            weight = gamma * sharp.doppler * (network.deployment.carrier_hz / SPEED_OF_LIGHT).square()
            doppler = _outer(weight * joint, joint)
            doppler[:size, :size] += place
            place = doppler
        parts.append(place)
    return functools.reduce(torch.add, parts)


def _across(direction: Tensor, unit: Tensor, size: int) -> Tensor:
    """Information D [xyz xyz] across the line of sight: `P D P = D - u e^T - e u^T` with e = D u - (u^T D u) u / 2."""
    wide = direction.reshape(3, 3, *[1] * (unit.ndim - 1))
    cross = wide[:, 0] * unit[0] + wide[:, 1] * unit[1] + wide[:, 2] * unit[2]
    skew = (cross - (0.5 * _dot(unit, cross)) * unit)[:size]
    mixed = _outer(unit[:size], skew)
    return wide[:size, :size] - (mixed + mixed.transpose(0, 1))


def _closing_slope(velocity: Tensor, sights: tuple[_Sight, _Sight]) -> Tensor:
    """Slope d(v . (u_tx + u_rx)) / dp, with du/dp = (I - u u^T) / r."""
    first, second = ((velocity - _dot(velocity, each.unit) * each.unit) / each.square.sqrt() for each in sights)
    return first + second


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over the first axis, always in the same order."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, None] * b[None]


def _check(position: Tensor, velocity: Tensor | None, unknown: str) -> int:
    """Number of unknown coordinates."""
    if unknown not in UNKNOWN:
        raise ConfigError(f"unknown must be one of {list(UNKNOWN)}, got {unknown!r}")
    check_shape("position", position, "* xyz", xyz=3)
    check_finite("position", position)
    if velocity is not None:
        check_finite("velocity", velocity)
        if velocity.shape != position.shape:
            raise ShapeError(f"velocity must be {list(position.shape)} as position is, got {list(velocity.shape)}")
    return UNKNOWN[unknown]
