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

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sensing.bounds.fisher import LOST, MOVED, invert_with_prior
from sensing.checks import check_finite, check_shape
from sensing.errors import ConfigError, ShapeError
from sensing.radar.network import RadarNetwork
from sensing.radar.power import echo_snr
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
        [* n n] over position and, with a velocity, velocity; not finite on top of a station.

    Raises:
        ConfigError, ShapeError, DomainError: an argument does not fit.
    """
    size = _check(position, velocity, unknown)
    entry = _summed(position, velocity, network, echo_snr(position, network) if snr is None else snr, size)
    n = size if velocity is None else 2 * size
    return torch.stack([torch.stack([entry[max(i, j), min(i, j)] for j in range(n)], -1) for i in range(n)], -2)


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
    position, snr, reason = _reachable(position, network)
    entry = _summed(position, None, network, snr, size)
    xx, xy, yy = entry[0, 0], entry[1, 0], entry[1, 1]
    product = xx * yy
    determinant = product - xy.square()
    reason = reason | Reason.SINGULAR * ((reason == 0) & ~(determinant > LOST * product)).long()
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
    position, snr, reason = _reachable(position, network, snr)
    entry = _summed(position, velocity, network, snr, size)
    information = torch.stack([torch.stack([entry[max(i, j), min(i, j)] for j in range(n)], -1) for i in range(n)], -2)
    if prior_std is None:
        prior_std = information.new_full((n,), torch.inf)
    check_shape("prior_std", prior_std, "n", n=n)
    solved = invert_with_prior(information, information.diagonal(dim1=-2, dim2=-1), prior_std.to(information))
    known = information.diagonal(dim1=-2, dim2=-1)
    share = solved.null.square().sum(-1) * torch.where(known > 0, known, torch.ones_like(known))
    open_ = share > MOVED  # [* n] parameters that a null direction moves
    reason = reason | Reason.SINGULAR * (open_[..., :size].any(-1) & (reason == 0)).long()
    lost = (reason & Reason.AT_STATION) > 0
    variance = torch.where(open_ | lost[..., None], torch.inf, solved.covariance.diagonal(dim1=-2, dim2=-1))
    peb = variance[..., :size].sum(-1).sqrt()
    inside = torch.isfinite(variance)
    covariance = torch.where(inside[..., :, None] & inside[..., None, :], solved.covariance, 0.0)
    veb = None if velocity is None else variance[..., size:].sum(-1).sqrt()
    return TargetBound(peb, veb, covariance, torch.where(torch.isfinite(peb), torch.zeros_like(reason), reason))


def _reachable(position: Tensor, network: RadarNetwork, snr: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that keep away from the stations, their SNR [* link], and why a point has no bound so far.

    Nearer than a wavelength to a station of a link the far-field model says nothing; such points are replaced, so that
    neither their values nor their gradients are NaN.
    """
    station = network.deployment.bs_position[network.links.unique()]
    nearest = torch.full(position.shape[:-1], torch.inf, dtype=torch.float64, device=position.device)
    for place in station:
        nearest = torch.minimum(nearest, (position - place).square().sum(-1))
    at_station = nearest <= network.deployment.wavelength.square()
    away = station.amax(0) + 1.0
    position = torch.where(at_station[..., None], away, position.double())
    snr = echo_snr(position, network) if snr is None else snr
    dark = ~(snr > 0).any(-1)
    return position, snr, Reason.AT_STATION * at_station.long() | Reason.NO_POWER * (dark & ~at_station).long()


def _summed(
    position: Tensor, velocity: Tensor | None, network: RadarNetwork, snr: Tensor, size: int
) -> dict[tuple[int, int], Tensor]:
    """Lower triangle of the information, entry by entry: long vectors are many times faster than small matrices."""
    sharp = sharpness(network)
    place = network.deployment.bs_position
    total: dict[tuple[int, int], Tensor] = {}
    for link, (sender, receiver) in enumerate(network.links.tolist()):
        gamma = snr[..., link]
        back, back_leg = _toward(position, place[receiver])
        out, out_leg = (back, back_leg) if sender == receiver else _toward(position, place[sender])
        gradient = [a + b for a, b in zip(out, back, strict=True)]
        cross = [sum(sharp.direction[link, i, j] * back[j] for j in range(3)) for i in range(3)]
        stretch = sum(back[i] * cross[i] for i in range(3))
        along, across = gamma * sharp.range, gamma / back_leg.square()
        terms = {
            (i, j): along * (gradient[i] * gradient[j])
            + across
            * (sharp.direction[link, i, j] - back[i] * cross[j] - cross[i] * back[j] + stretch * (back[i] * back[j]))
            for i in range(size)
            for j in range(i + 1)
        }
        if velocity is not None:
            rate = _doppler_slope(velocity.unbind(-1), (out, out_leg), (back, back_leg))
            slope = [*rate[:size], *gradient[:size]]
            weight = gamma * sharp.doppler * (network.deployment.carrier_hz / SPEED_OF_LIGHT).square()
            for i in range(2 * size):
                for j in range(i + 1):
                    terms[i, j] = terms.get((i, j), 0.0) + weight * (slope[i] * slope[j])
        total = {key: total[key] + value for key, value in terms.items()} if total else terms
    return total


def _toward(position: Tensor, station: Tensor) -> tuple[list[Tensor], Tensor]:
    """Components of the unit vector from a station to the points, and the distance."""
    difference = [position[..., i] - station[i] for i in range(3)]
    distance = (difference[0].square() + difference[1].square() + difference[2].square()).sqrt()
    return [part / distance for part in difference], distance


def _doppler_slope(
    velocity: tuple[Tensor, ...], out: tuple[list[Tensor], Tensor], back: tuple[list[Tensor], Tensor]
) -> list[Tensor]:
    """Slope d(v . (u_tx + u_rx)) / dp, with du/dp = (I - u u^T) / r."""
    total = [torch.zeros_like(part) for part in out[0]]
    for unit, leg in (out, back):
        closing = sum(v * u for v, u in zip(velocity, unit, strict=True))
        total = [t + (v - closing * u) / leg for t, v, u in zip(total, velocity, unit, strict=True)]
    return total


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
