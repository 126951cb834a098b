"""Position and velocity of a target from what its links measured: weighted least squares.

    min  sum_links r^T W r,    r = (range(p) - range, doppler(p, v) - doppler, direction(p) - direction)

with W the information of each link, so that it is the maximum likelihood estimate of the whole network up to the
curvature of the links' likelihoods. Its Gauss-Newton matrix is the Fisher information of `sensing.bounds.cooperative`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.bounds.cooperative import UNKNOWN, Reason, target_bound, target_information
from sensing.bounds.fisher import LOST
from sensing.checks import check_finite, check_shape
from sensing.containers import Flag
from sensing.errors import ConfigError
from sensing.geometry import bounce_on_ray
from sensing.radar.echo import Target, echo_parameters
from sensing.radar.network import RadarNetwork
from sensing.targets.echoes import EchoEstimates

_RING = 8  # horizontal directions tried beside the estimated one, which an array may not resolve
_SURE = 1e-4  # a fit that is worse with this probability is called poor
_RIVAL = 16.0  # another minimum whose cost is higher by less than this, 4 standard deviations, is a second mode


class TargetEstimate(NamedTuple):
    """Position and velocity with their uncertainty."""

    position: Tensor  # [* xyz] [m]
    velocity: Tensor  # [* xyz] [m/s]; no component that the links do not observe
    covariance: Tensor  # [* n n] of the unknown coordinates of position, then velocity; zero for what is unobservable
    peb_m: Tensor  # [*] root of the trace of the position's covariance [m]; inf where unobservable
    veb_m_s: Tensor  # [*] that of the velocity [m/s]; inf where unobservable, as with a single link
    cost: Tensor  # [*] minimum of the objective
    dof: Tensor  # [*] measured less unknown numbers, the expected cost
    flags: Tensor  # [*] int64, bits of `sensing.containers.Flag`; 0 is a trusted position


class _Point(NamedTuple):
    """A point of the search and the step from it."""

    state: Tensor  # [n start 2 xyz] position and velocity
    cost: Tensor  # [n start]
    gradient: Tensor  # [n start 2*size] of half the cost
    information: Tensor  # [n start 2*size 2*size]


def locate_target(
    echoes: EchoEstimates,
    network: RadarNetwork,
    unknown: str = "xyz",
    height_m: Tensor | float = 0.0,
    starts: int = 4,
    steps: int = 40,
) -> TargetEstimate:
    """Locate a target from the echoes of monostatic, bistatic or multistatic links.

    Candidates lie on the ray of every link, and on horizontal rays in front of its receiver, at the measured range; the
    best few start a Levenberg-Marquardt search, so that mirror images compete and are flagged where they fit as well.

    Args:
        echoes: [* link] estimates, by `EchoEstimator` or from elsewhere.
        network: the stations.
        unknown: `xy` (height known, no vertical velocity) or `xyz`.
        height_m: [*] or a number, the known height [m]; not read for `xyz`.
        starts: candidates that are refined.
        steps: most steps.

    Returns:
        The estimate [*]. Without an echo, a position amid the stations with a flag and infinite bounds.

    Raises:
        ConfigError, ShapeError, DomainError: an argument does not fit.
    """
    if unknown not in UNKNOWN or starts < 1 or steps < 0:
        raise ConfigError(
            f"unknown must be of {list(UNKNOWN)}, starts >= 1 and steps >= 0, got {unknown!r}, {starts}, {steps}"
        )
    check_shape("echoes.range_m", echoes.range_m, "* link", link=len(network.links))
    batch = echoes.range_m.shape[:-1]
    for name, field in echoes._asdict().items():
        check_finite(f"echoes.{name}", field)
    flat = EchoEstimates(*(field.reshape(-1, *field.shape[len(batch) :]) for field in echoes))
    height = torch.as_tensor(height_m, dtype=torch.float64).expand(batch).reshape(-1, 1)
    with torch.no_grad():
        problem = _Problem(flat, network, unknown)
        found = _minimised(problem, problem.starts(height, starts), steps)
        best = found.cost.argmin(-1)
        row = torch.arange(len(best))
        position, velocity = found.state[row, best].unbind(-2)
        cost = found.cost[row, best]
        bound = target_bound(position, network, velocity, unknown, snr=torch.where(flat.mask, flat.snr, 0.0))
    assert bound.veb_m_s is not None
    size = UNKNOWN[unknown]
    weight = problem.weight[:, 0]
    measured = _rank(weight[..., :2, :2]) + _rank(weight[..., 2:, 2:]).clamp(max=2)  # a direction has two coordinates
    dof = (measured.sum(-1) - _rank(found.information[row, best])).clamp(min=0)
    poor = (dof > 0) & (torch.special.gammaincc(dof.clamp(min=1) / 2.0, cost / 2.0) < _SURE)
    gap = (found.state[..., 0, :size] - position[:, None, :size])[..., None]
    apart = (gap.mT @ found.information[row, best][:, None, :size, :size] @ gap)[..., 0, 0] > _RIVAL
    rival = (apart & (found.cost < cost[:, None] + _RIVAL)).any(-1)
    none = ~flat.mask.any(-1)
    lost = (bound.reason & (Reason.AT_STATION | Reason.SINGULAR | Reason.NO_POWER)) > 0
    flags = Flag.NO_PATHS * none.long() | Flag.UNOBSERVABLE * lost.long() | Flag.POOR_FIT * poor.long()
    flags = flags | Flag.SECOND_MODE * rival.long()
    result = (position, velocity, bound.covariance, bound.peb_m, bound.veb_m_s, cost, dof, flags)
    return TargetEstimate(*(field.reshape(batch + field.shape[1:]) for field in result))


def _rank(information: Tensor) -> Tensor:
    """Number of directions with information, [* n n] to [*]."""
    scale = information.diagonal(dim1=-2, dim2=-1).nan_to_num(posinf=0.0)
    scale = torch.where(scale > 0, scale, 1.0).rsqrt()
    scaled = information.nan_to_num(posinf=0.0, neginf=0.0) * scale[..., :, None] * scale[..., None, :]
    return (torch.linalg.eigvalsh(scaled) > LOST).sum(-1)


class _Problem:
    """Cost, gradient and curvature of the fit at states [n start 2 xyz]."""

    def __init__(self, echoes: EchoEstimates, network: RadarNetwork, unknown: str) -> None:
        self.echoes, self.network, self.unknown, self.size = echoes, network, unknown, UNKNOWN[unknown]
        self.snr = torch.where(echoes.mask, echoes.snr, 0.0)[:, None]
        self.weight = torch.where(echoes.mask[..., None, None], echoes.information, 0.0)[:, None]

    def cost(self, state: Tensor) -> Tensor:
        """[n start]."""
        position, velocity = state.unbind(-2)
        echo = echo_parameters(Target(position, velocity, position.new_zeros(1)), self.network)
        mine = self.echoes
        along = torch.stack([echo.range_m - mine.range_m[:, None], echo.doppler_hz - mine.doppler_hz[:, None]], -1)
        residual = torch.cat([along, echo.direction - mine.direction[:, None]], -1)
        return torch.einsum("...i,...ij,...j", residual, self.weight, residual).sum(-1)

    def at(self, state: Tensor) -> _Point:
        """A point with its derivatives."""
        with torch.enable_grad():
            leaf = state.detach().requires_grad_()
            cost = self.cost(leaf)
            (slope,) = torch.autograd.grad(0.5 * cost.sum(), leaf)
        position, velocity = state.unbind(-2)
        information = target_information(position, self.network, velocity, self.unknown, self.snr)
        return _Point(state, cost.detach(), slope[..., : self.size].flatten(-2), information)

    def starts(self, height: Tensor, count: int) -> Tensor:
        """The `count` best candidates of range and direction, at rest: [n count 2 xyz]."""
        mine, network = self.echoes, self.network
        angle = torch.arange(_RING, dtype=torch.float64) * (2.0 * math.pi / _RING)
        ring = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)
        ray = torch.cat([mine.direction[..., None, :], ring.expand(*mine.direction.shape[:-1], _RING, 3)], -2)
        receiver, sender = network.receivers.bs_position[:, None], network.transmitter_position[:, None]
        ahead = (ray * network.receivers.boresight[:, None]).sum(-1) > 0  # [n link ray]: arrays do not look back
        ahead[..., 0] = True
        point, _ = bounce_on_ray(ray, mine.range_m[..., None].expand(ray.shape[:-1]), receiver, sender)
        far = torch.linalg.vector_norm(point - receiver, dim=-1, keepdim=True)
        point = torch.where(far < network.deployment.wavelength, receiver + network.deployment.wavelength * ray, point)
        point = point.flatten(1, 2)  # [n link*ray xyz]
        if self.unknown == "xy":
            point = torch.cat([point[..., :2], height[..., None].expand(*point.shape[:-1], 1)], -1)
        state = torch.stack([point, torch.zeros_like(point)], -2)
        still = self.weight.clone()
        still[..., 1, :], still[..., :, 1] = 0.0, 0.0  # without Doppler: the velocity is not known yet
        kept, self.weight = self.weight, still
        cost = self.cost(state)
        self.weight = kept
        usable = (mine.mask[..., None] & ahead).flatten(1)
        order = torch.where(usable, cost, torch.inf).topk(min(count, cost.shape[-1]), -1, largest=False).indices
        chosen = state.gather(1, order[..., None, None].expand(*order.shape, 2, 3))
        middle = network.deployment.bs_position.mean(0)
        return torch.where(mine.mask.any(-1)[:, None, None, None], chosen, torch.stack([middle, 0.0 * middle]))


def _minimised(problem: _Problem, state: Tensor, steps: int) -> _Point:
    """Levenberg-Marquardt from every start."""
    point = problem.at(state)
    damping = torch.full_like(point.cost, 1e-4)
    size = problem.size
    for _ in range(steps):
        scale = point.information.diagonal(dim1=-2, dim2=-1).nan_to_num(posinf=0.0)
        scale = torch.where(scale > 0, scale, 1.0).rsqrt()
        scaled = point.information.nan_to_num(posinf=0.0, neginf=0.0) * scale[..., :, None] * scale[..., None, :]
        ridge = (damping[..., None, None] + 1e-12) * torch.eye(2 * size, dtype=scaled.dtype)
        step = -scale * torch.linalg.solve_ex(scaled + ridge, scale * point.gradient.nan_to_num())[0]
        expected = -(point.gradient * step).sum(-1)
        running = expected > 1e-9 * (1.0 + point.cost)
        if not bool(running.any()):
            break
        change = torch.zeros_like(point.state)
        change[..., :size] = torch.nan_to_num(step).unflatten(-1, (2, size))
        trial = problem.at(point.state + change)
        better = running & (trial.cost < point.cost)
        point = _Point(
            *(
                torch.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)
                for new, old in zip(trial, point, strict=True)
            )
        )
        damping = torch.where(better, damping / 10.0, damping * 10.0).clamp(1e-12, 1e8)
    return point
