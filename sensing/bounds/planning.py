"""Network planning: stations' places, boresights and powers that make the bound small over an area.

The bound is differentiable in all of them, so its power mean over points of the area,

    F_p = (mean PEB^p)^(1/p),    p = 1 the mean, p = 2 the root mean square, p -> inf the worst,

is lowered by quasi-Newton steps on `log F_p` (scipy: L-BFGS-B within bounds, SLSQP where a total is fixed). The worst
case is approached by rising p, each stage starting from the last. Few points suffice for a mean, but the largest values
lie on narrow ridges (the end-fire directions of linear arrays) that a plan learns to hide between the points. So every
stage is checked on many points, and the worst of these join the few (the exchange method of semi-infinite programming).

The problem is not convex in places and boresights, so many starts are made. In powers alone it is: J is linear in them
and `trace J^-1` convex in J, so that a local minimum of F_p (p >= 2) is the global one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from sensing.bounds.cooperative import Reason
from sensing.bounds.coverage import Area
from sensing.bounds.plan_variables import Variables
from sensing.bounds.radar import Radar
from sensing.errors import ConfigError, DomainError, NumericalError
from sensing.radar.network import RadarNetwork

EXPONENTS = {"mean": (1.0,), "rms": (2.0,), "worst": (4.0, 16.0, 64.0, 256.0)}
"""Stages of each objective; at 256 the power mean of a thousand points is within 3 % of the worst."""

GRADIENT_COST = 3
"""Evaluations of the bound that a value with its gradient counts for."""

ROUNDS = 6
"""Most exchanges at the last exponent; they end when the worst of the checks is within `CLOSE` of the worst point."""
CLOSE = 1.01
EXCHANGED = 128
"""Most points that one exchange adds."""


class Trace(NamedTuple):
    """What a search tried, in order; an optimiser's stages or random draws."""

    criterion_m: Tensor  # [try] the objective over the checks [m]
    evaluations: Tensor  # [try] int64: evaluations of the bound so far, of a map with gradient three, of a check one
    start: Tensor  # [try] int64: which start, or draw
    exponent: Tensor  # [try] of the power mean that was lowered; NaN for draws


class Plan(NamedTuple):
    """The best network that a search has found."""

    network: RadarNetwork
    criterion_m: float  # its objective over the checks [m]
    start: int  # where it came from: of an optimiser 0 is the given network
    trace: Trace


class Search:
    """The bound as a function of a plan's numbers, and what was tried so far.

    A point without a bound (no power, or an unobservable direction) counts with the largest distance in the area: that
    error is certain not to be exceeded there. Points on a station are left out.

    Args:
        model: the network and what it estimates.
        variables: what may change.
        checks: [check xyz] points over which plans are compared [m].
        objective: `worst`, `mean` or `rms`.
    """

    def __init__(self, model: Radar, variables: Variables, checks: Tensor, objective: str) -> None:
        if objective not in EXPONENTS:
            raise ConfigError(f"objective must be one of {list(EXPONENTS)}, got {objective!r}")
        if not len(checks):
            raise ConfigError("a plan needs points to be good at, got none")
        self.model, self.variables, self.checks = model, variables, checks
        self.exponents = EXPONENTS[objective]
        self.final = math.inf if objective == "worst" else self.exponents[-1]
        self.ceiling = (checks.amax(0) - checks.amin(0)).norm().clamp(min=float(model.network.deployment.wavelength))
        self.evaluations = 0
        self.tried: list[tuple[float, int, int, float]] = []
        self.best: tuple[float, int, Tensor] | None = None

    def log_peb(self, x: Tensor, points: Tensor) -> Tensor:
        """Logarithm of the bound that counts at points, [point]; -inf at those on a station."""
        bound = self.model._replace(network=self.variables.network(x)).point_bound(points)
        peb = torch.where(bound.reason == 0, bound.peb_m, self.ceiling)
        return torch.where(bound.reason == Reason.AT_STATION, -torch.inf, peb.log())

    def observable(self, x: Tensor) -> bool:
        """Whether any of the checks has a bound."""
        found = self.log_peb(x, self.checks)
        return bool((found.isfinite() & (found < self.ceiling.log())).any())

    def value_and_slope(self, x: Tensor, points: Tensor, exponent: float) -> tuple[float, Tensor]:
        """`log F_p` over points and its gradient [n]; raises NumericalError where this is not finite."""
        self.evaluations += GRADIENT_COST
        x = x.clone().requires_grad_()
        value = log_mean(self.log_peb(x, points), exponent)
        (slope,) = torch.autograd.grad(value, x)
        if not bool(torch.isfinite(slope).all()):
            raise NumericalError(f"the slope of the objective must be finite, got {slope.tolist()} at {x.tolist()}")
        return float(value.detach()), slope

    def check(self, x: Tensor, start: int, exponent: float = math.nan) -> Tensor:
        """Logarithm of the bound at the checks; the plan is kept if it is the best so far."""
        self.evaluations += 1
        with torch.no_grad():
            found = self.log_peb(x, self.checks)
        value = float(log_mean(found, self.final).exp())
        self.tried.append((value, self.evaluations, start, exponent))
        if self.best is None or value < self.best[0]:
            self.best = value, start, x.clone()
        return found

    def plan(self) -> Plan:
        """The best so far."""
        assert self.best is not None
        criterion, start, x = self.best
        kinds = (torch.float64, torch.int64, torch.int64, torch.float64)
        columns = zip(*self.tried, strict=True)
        trace = Trace(*(torch.tensor(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))
        return Plan(self.variables.network(x).validate(), criterion, start, trace)


def log_mean(log_values: Tensor, exponent: float) -> Tensor:
    """Logarithm of the power mean, the largest for an exponent of inf; values whose logarithm is -inf do not count."""
    if math.isinf(exponent):
        return log_values.amax()
    return (torch.logsumexp(exponent * log_values, 0) - (log_values > -torch.inf).to(log_values).sum().log()) / exponent


def optimise(
    model: Radar,
    variables: Variables,
    points: Tensor,
    checks: Tensor,
    objective: str = "worst",
    starts: int = 8,
    seed: int = 0,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    progress: Callable[[], object] | None = None,
) -> Plan:
    """The best plan from several starts: the given network and random ones.

    Args:
        model: the network and what it estimates.
        variables: what may change.
        points: [point xyz] few points of the area, whose bound is lowered [m].
        checks: [check xyz] many points, over which plans are compared [m].
        objective: `worst`, `mean` or `rms` bound.
        starts: number of starts.
        seed: of the random starts.
        max_iterations: quasi-Newton steps per stage.
        tolerance: a stage ends when a step lowers the bound by less, relatively.
        progress: called after each start.

    Returns:
        The plan.

    Raises:
        ConfigError: a value does not fit.
        DomainError: no start has a bound at any point.
        NumericalError: a gradient is not finite.
    """
    for name, count in (("starts", starts), ("max_iterations", max_iterations)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{name} must be a whole number >= 1, got {count!r}")
    if not 0 < tolerance < 1:
        raise ConfigError(f"tolerance must be between 0 and 1, got {tolerance!r}")
    search = Search(model, variables, checks, objective)
    generator = torch.Generator().manual_seed(seed)
    first = [variables.current(), *(variables.draw(generator) for _ in range(starts - 1))]
    if not any(search.observable(x) for x in first):
        raise DomainError(f"the area must hold observable points, got {len(checks)} without a bound in every start")
    options = {"maxiter": max_iterations, "ftol": tolerance}
    for start, x in enumerate(first):
        search.check(x, start)
        _descend(search, x, points, start, options)
        if progress is not None:
            progress()
    return search.plan()


def _descend(search: Search, x: Tensor, points: Tensor, start: int, options: dict[str, float]) -> None:
    """All stages from one start."""
    worst_case = math.isinf(search.final)
    stages = [*search.exponents, *search.exponents[-1:] * (ROUNDS if worst_case else 0)]
    for stage, exponent in enumerate(stages):
        x = _lowered(search, x, points, exponent, options)
        found = search.check(x, start, exponent)
        with torch.no_grad():
            reached = float(search.log_peb(x, points).amax())
        missed = int((found > reached).sum())
        last = stage + 1 >= len(search.exponents)
        if worst_case and last and float(found.amax()) <= reached + math.log(CLOSE):
            break
        if worst_case and missed:
            points = torch.cat([points, search.checks[found.topk(min(missed, EXCHANGED)).indices]])


def _lowered(search: Search, x: Tensor, points: Tensor, exponent: float, options: dict[str, float]) -> Tensor:
    """A local minimum of the power mean over points near x, within bounds and totals."""
    shares = search.variables.shares.numpy()
    total = [LinearConstraint(shares[None], 1.0, 1.0)] if shares.any() else []

    def value_and_slope(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = search.value_and_slope(torch.as_tensor(numbers), points, exponent)
        return value, slope.numpy()

    found = minimize(
        value_and_slope,
        x.numpy(),
        jac=True,
        method="SLSQP" if total else "L-BFGS-B",
        bounds=search.variables.bounds,
        constraints=total,
        options=options,
    )
    return torch.tensor(found.x)


def best_of_draws(
    model: Radar,
    variables: Variables,
    points: Tensor,
    checks: Tensor,
    objective: str,
    count: int,
    seed: int = 0,
    progress: Callable[[], object] | None = None,
) -> Plan:
    """The best of random plans, what an optimiser has to beat; arguments as in `optimise`.

    Plans that the few points already show to be worse than the best so far are not checked on the many.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"the number of random plans must be a whole number >= 1, got {count!r}")
    search = Search(model, variables, checks, objective)
    generator = torch.Generator().manual_seed(seed)
    for draw in range(count):
        x = variables.draw(generator)
        value = float(log_mean(search.log_peb(x, points), search.final).exp())
        if search.best is None or value < search.best[0]:
            search.check(x, draw)
        search.evaluations = draw + 1
        if progress is not None:
            progress()
    return search.plan()


def lattice(area: Area, count: int, edges: bool) -> Tensor:
    """Points on a square lattice over an area, [point xyz] [m].

    Args:
        area: the area.
        count: points along the longer side.
        edges: include the edges, where the worst often lies; otherwise each point stands for a cell of the same size,
            as means want it.

    Raises:
        ConfigError: fewer than two points.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 2:
        raise ConfigError(f"a lattice needs a whole number of points >= 2 along a side, got {count!r}")
    left, right, lower, upper = area.extent
    step = max(right - left, upper - lower) / count
    axes = []
    for low, high in ((left, right), (lower, upper)):
        number = max(2, round((high - low) / step))
        margin = 0.0 if edges else (high - low) / (2 * number)
        axes.append(torch.linspace(low + margin, high - margin, number, dtype=torch.float64))
    return torch.cartesian_prod(*axes, torch.tensor([area.height_m], dtype=torch.float64))
