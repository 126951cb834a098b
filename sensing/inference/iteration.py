"""One iteration: E-step at the proposed geometry, accept or reject it, M-step to the next proposal.

The log evidence (gains integrated out) plus the log prior is the objective. A proposal that lowers it is dropped: the
step is taken again from the last accepted geometry with more Levenberg-Marquardt damping, which costs no further
evaluation, because its normal equations travel in the state. All is selected with `torch.where`, hence differentiable.

Every learned quantity is a correction of a configured base value and neutral at zero: `base * exp(delta)`,
`sigmoid(logit(base) + delta)`, or for the taper `base + 10 delta`.

The taper widens the basin: a layer may trust pilot f as if its noise were `exp(taper x^2)` times larger, x in [-1, 1]
the place of f in the band. Less bandwidth means a wider main lobe in delay. Objectives at different tapers do not
compare, so the accepted point's is computed anew then. The last E-step always uses all pilots alike.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sensing.containers import Deployment, Geometry, Observation
from sensing.errors import ConfigError
from sensing.geometry import bounce_ranges, tangent_basis
from sensing.inference import m_step
from sensing.inference.linearisation import System, location_jacobian, location_system, path_curvature, path_gradient
from sensing.inference.lmmse import log_evidence
from sensing.inference.prior import SupportPrior
from sensing.inference.turbo import Expectation, expectation, received_power
from sensing.operators.khatri_rao import PathOperator, extended_operator

T = TypeVar("T")

REJECTED, ACCEPTED = 10.0, 1.0 / 3.0
"""Factors on the damping of a scene after a rejected and an accepted step."""

MOST_DAMPED = 1e9
"""Damping saturates: such a scene stands still."""

TAPER_UNIT = 10.0
"""Attenuation of the outermost pilots in nepers per unit of the correction; brings the taper to the scale of the others."""

BLOCKS = ("ue", "offset", "node", "free")

TAPER_UNIT = 10.0
"""Change of the taper per unit of its correction: useful tapers are of this size."""


class Evaluation(NamedTuple):
    """The E-step and the normal equations at one geometry."""

    geometry: Geometry
    expectation: Expectation
    system: System  # priors included
    objective: Tensor  # [*] log evidence + log prior, up to a constant
    taper: Tensor  # [*] of the pilots behind all this


class State(NamedTuple):
    """What iterations hand on."""

    proposal: Geometry  # to be evaluated next
    power: Tensor  # [* bs] variance of the gains that are present
    damping: Tensor  # [*] factor on the configured LM damping, at least 1
    accepted: Evaluation | None = None  # best point so far; None before the first E-step
    clipped: Tensor | None = None  # [*] int64, guards of the E-step that acted so far
    rejected: Tensor | None = None  # [*] int64, proposals dropped so far


class Problem(NamedTuple):
    """The observation, prepared once for all iterations."""

    y: Tensor  # [* bs ant sc] in the precision of the large products
    noise_var: Tensor  # [* bs] float64
    deployment: Deployment
    precision: Tensor  # [theta] of the Gaussian priors
    prior_mean: Tensor  # [theta]
    scales: m_step.Scales
    place: Tensor  # [sc] pilots in the band, from -1 to 1


def prepare(
    observation: Observation, deployment: Deployment, geometry: Geometry, dtype: torch.dtype
) -> tuple[Problem, State]:
    """Problem and first state of a start geometry.

    Args:
        observation: batch of observations.
        deployment: the stations.
        geometry: where to start.
        dtype: complex type of the products with the observation; all else is double.
    """
    precision, mean = m_step.prior_precision(deployment, geometry.node_mask.shape[-1])
    noise_var = observation.noise_var.double()
    first, last = deployment.pilot_freq[0], deployment.pilot_freq[-1]
    place = (2.0 * deployment.pilot_freq - first - last) / torch.where(
        last > first, last - first, torch.ones_like(last)
    )
    scales = m_step.natural_scales(deployment)
    problem = Problem(observation.y.to(dtype), noise_var, deployment, precision, mean, scales, place)
    entries = observation.y.shape[-2] * observation.y.shape[-1]
    energy = observation.y.real.double().square().sum((-2, -1)) + observation.y.imag.double().square().sum((-2, -1))
    count = (geometry.member & geometry.node_mask[..., None, :]).sum(-1) + geometry.free_mask.sum(-1)
    power = received_power(energy, entries, noise_var, count)
    return problem, State(geometry, power, torch.ones_like(geometry.ue_position[..., 0]))


def columns(geometry: Geometry, deployment: Deployment) -> tuple[Tensor, Tensor, Tensor]:
    """Range [* bs col], direction [* bs col xyz] and mask [* bs col] of all columns: located nodes, then free paths."""
    range_m, direction, _, _ = bounce_ranges(
        geometry.node_position, geometry.ue_position, deployment.bs_position, geometry.offset_m
    )
    mask = geometry.node_mask[..., None, :].expand(range_m.shape)
    return (
        torch.cat([range_m, geometry.free_range_m], -1),
        torch.cat([direction, geometry.free_direction], -2),
        torch.cat([mask, geometry.free_mask], -1),
    )


def column_operator(geometry: Geometry, deployment: Deployment) -> PathOperator:
    """Sensing matrix of a geometry, without derivatives."""
    range_m, direction, mask = columns(geometry, deployment)
    return extended_operator(range_m, direction, deployment, mask).plain


class Iteration(nn.Module):
    """E-step, guard, M-step; learned corrections as scalar parameters that are neutral at zero.

    Args:
        kind: `gauss_newton` or `gradient` (the paper's plain gradient).
        inner: rounds of the turbo loop.
        turbo_damping: share of the new message in the turbo loop, in (0, 1).
        step: relaxation factor of the M-step.
        lm: Levenberg-Marquardt damping relative to the diagonal of the curvature.
        missing: weight of the missing information in the curvature: 0 is EM, 1 eliminates the gains; both ends are
            exact and not learned, as sigmoid(+-inf + delta) does not move.
        activity: prior probability that a located node exists.
        visibility: prior probability that a station sees a node.
        free_activity: prior probability that a free path exists.
        noise_scale: factor on the noise variance assumed by the E-step.
        power_scale: factor on the gains' variance assumed by the E-step.
        cap: largest step in units of c / bandwidth (beamwidths for directions).
        taper: how fast the trust in pilots falls off towards the edges of the band; 0 uses all alike.
        tolerance: drop of the objective, in nats, that is still accepted.
        guard: reject proposals that lower the objective.

    Raises:
        ConfigError: a value lies outside its domain.
    """

    def __init__(
        self,
        kind: str = "gauss_newton",
        inner: int = 2,
        turbo_damping: float = 0.7,
        step: float = 1.0,
        lm: float = 1e-4,
        missing: float = 0.5,
        activity: float = 0.5,
        visibility: float = 0.8,
        free_activity: float = 0.5,
        noise_scale: float = 1.0,
        power_scale: float = 1.0,
        cap: float = 0.5,
        taper: float = 0.0,
        tolerance: float = 1.0,
        guard: bool = True,
    ) -> None:
        super().__init__()
        if kind not in ("gauss_newton", "gradient"):
            raise ConfigError(f"kind must be gauss_newton or gradient, got {kind!r}")
        if inner < 1:
            raise ConfigError(f"inner must be >= 1, got {inner}")
        positive = {"step": step, "lm": lm, "noise_scale": noise_scale, "power_scale": power_scale, "cap": cap}
        for name, value in positive.items():
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} must be positive, got {value}")
        shares = {
            "turbo_damping": turbo_damping,
            "activity": activity,
            "visibility": visibility,
            "free_activity": free_activity,
        }
        for name, value in shares.items():
            if not 0 < value < 1:
                raise ConfigError(f"{name} must lie in (0, 1), got {value}")
        if not (taper >= 0 and math.isfinite(taper)):
            raise ConfigError(f"taper must be >= 0, got {taper}")
        if not 0 <= missing <= 1:
            raise ConfigError(f"missing must lie in [0, 1], got {missing}")
        self.kind, self.inner, self.tolerance, self.guard = kind, inner, tolerance, guard
        self.factors = {**{f"step_{block}": step for block in BLOCKS}, **positive}
        del self.factors["step"]
        self.shares, self.base_taper = {**shares, "missing": missing}, taper
        self.corrections = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros((), dtype=torch.float64))
                for name in (*self.factors, *self.shares, "taper")
            }
        )

    def factor(self, name: str) -> Tensor:
        """`base * exp(delta)`."""
        return self.factors[name] * self.corrections[name].exp()

    def log_odds(self, name: str) -> Tensor:
        """`logit(base) + delta`."""
        base = self.shares[name]
        logit = math.inf if base == 1 else -math.inf if base == 0 else math.log(base / (1.0 - base))
        return logit + self.corrections[name]

    def taper(self) -> Tensor:
        """`base + 10 delta`."""
        return self.base_taper + TAPER_UNIT * self.corrections["taper"]

    def pilot_weights(self, deployment: Deployment) -> Tensor:
        """`exp(-TAPER_UNIT * delta * (2 f / bandwidth)^2)`, [sc]; one when untrained."""
        freq = deployment.pilot_freq
        centred = freq - 0.5 * (freq[0] + freq[-1])
        return torch.exp(-TAPER_UNIT * self.corrections["taper"] * (2.0 * centred / deployment.bandwidth).square())

    def values(self) -> dict[str, float]:
        """Effective value of every learned quantity, for logs."""
        factors = {name: float(self.factor(name)) for name in self.factors}
        factors["taper"] = TAPER_UNIT * float(self.corrections["taper"])
        shares = {name: float(self.log_odds(name).sigmoid()) for name in self.shares}
        return factors | shares | {"taper": float(self.taper())}

    def forward(self, state: State, problem: Problem) -> State:
        """Evaluate the proposal, keep the better point, propose the next."""
        return self.propose(self.evaluate(state, problem), problem)

    def evaluate(self, state: State, problem: Problem) -> State:
        """E-step at the proposal and the guard: afterwards `accepted` is the best point so far."""
        new = self._at(state.proposal, state.power, problem, self.taper())
        return self._judge(state, new, problem)

    def conclude(self, state: State, problem: Problem) -> State:
        """Last E-step, on all pilots alike, and guard."""
        if state.accepted is not None and bool((state.accepted.taper != 0.0).any()):
            nominal = self._at(
                state.accepted.geometry, state.power, problem, torch.zeros_like(self.corrections["taper"])
            )
            state = state._replace(accepted=nominal)
        new = self._at(state.proposal, state.power, problem, torch.zeros_like(self.corrections["taper"]))
        return self._judge(state, new, problem)

    def propose(self, state: State, problem: Problem) -> State:
        """M-step from the accepted point."""
        assert state.accepted is not None
        geometry, system = state.accepted.geometry, state.accepted.system
        if self.kind == "gauss_newton":
            factors = m_step.factorise(system, problem.scales, self.factor("lm") * state.damping)
            step, free = m_step.solve(factors, system)
            shrink = torch.ones_like(state.damping)
        else:
            step, free = m_step.gradient_step(system)
            shrink = 1.0 / state.damping
        steps = m_step.Steps(*(shrink * self.factor(f"step_{block}") for block in BLOCKS))
        step, free = m_step.capped(step, free, geometry.offset_m.shape[-1], problem.scales, self.factor("cap"), steps)
        return state._replace(proposal=m_step.moved(geometry, step, free, m_step.free_tangents(geometry)))

    def _judge(self, state: State, new: Evaluation, problem: Problem) -> State:
        """Accept or reject an evaluation, scene by scene."""
        clipped = new.expectation.clipped
        if state.accepted is None:
            return state._replace(
                accepted=new, power=new.expectation.power, clipped=clipped, rejected=torch.zeros_like(clipped)
            )
        keep = torch.isfinite(new.objective)
        if self.guard:
            keep = keep & (new.objective >= _objective(state.accepted, new.taper, problem) - self.tolerance)
        damping = torch.where(keep, state.damping * ACCEPTED, state.damping * REJECTED).clamp(1.0, MOST_DAMPED)
        accepted = select(keep, new, state.accepted)
        assert state.clipped is not None
        assert state.rejected is not None
        return State(
            state.proposal,
            accepted.expectation.power,
            damping,
            accepted,
            state.clipped + clipped,
            state.rejected + (~keep).long(),
        )

    def _at(self, geometry: Geometry, power: Tensor, problem: Problem, taper: Tensor) -> Evaluation:
        """E-step and normal equations at a geometry."""
        gram, matched, basis, mask = _products(geometry, problem, taper)
        prior = SupportPrior(self.log_odds("activity"), self.log_odds("visibility"), self.log_odds("free_activity"))
        nodes = geometry.node_mask.shape[-1]
        noise_scale = self.factor("noise_scale")
        posterior = expectation(
            gram[..., :, 0, :, 0],
            matched[..., 0],
            problem.noise_var,
            power,
            prior,
            mask,
            nodes,
            self.inner,
            self.log_odds("turbo_damping").sigmoid(),
            noise_scale,
            self.factor("power_scale"),
        )
        missing = self.log_odds("missing").sigmoid()
        system = normal_equations(
            geometry, posterior, gram, matched, basis, problem.noise_var * noise_scale, problem, missing
        )
        objective = posterior.log_evidence + m_step.log_prior(geometry, problem.precision, problem.prior_mean)
        return Evaluation(geometry, posterior, system, objective, taper.detach().expand(objective.shape))


def _products(geometry: Geometry, problem: Problem, taper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gram [* bs col 4 col 4] and `rmatvec(y)` [* bs col 4] in double, tangents [* bs col xyz 2], mask [* bs col]."""
    range_m, direction, mask = columns(geometry, problem.deployment)
    basis = tangent_basis(direction)
    operator = extended_operator(range_m, direction, problem.deployment, mask, basis, problem.y.dtype)
    weight = _weight(problem, taper)
    operator = operator._replace(delay=operator.delay * weight[:, None, None])
    return operator.gram().to(torch.complex128), operator.rmatvec(problem.y * weight).to(torch.complex128), basis, mask


def _objective(evaluation: Evaluation, taper: Tensor, problem: Problem) -> Tensor:
    """Objective of an evaluated point on pilots of another taper, [*]."""
    if bool((evaluation.taper == taper).all()):
        return evaluation.objective
    operator, weight = column_operator(evaluation.geometry, problem.deployment), _weight(problem, taper.reshape(-1)[0])
    operator = operator._replace(delay=operator.delay * weight[:, None])
    gram, matched = operator.gram(), operator.rmatvec(problem.y.to(torch.complex128) * weight)
    evidence = log_evidence(gram, matched, problem.noise_var, evaluation.expectation.deviation).sum(-1)
    return evidence + m_step.log_prior(evaluation.geometry, problem.precision, problem.prior_mean)


def _weight(problem: Problem, taper: Tensor) -> Tensor:
    """Amplitude by which a taper scales each pilot of data and model, [sc]; exactly one at taper zero."""
    return torch.exp(-0.5 * taper * problem.place.square()).to(problem.y.real.dtype)


def normal_equations(
    geometry: Geometry,
    posterior: Expectation,
    gram: Tensor,
    matched: Tensor,
    basis: Tensor,
    noise_var: Tensor,
    problem: Problem,
    missing: Tensor | float,
) -> System:
    """Gradient and curvature over (u, c * offsets, nodes; free paths), priors included."""
    gradient = path_gradient(gram, matched, posterior.mean, posterior.covariance, noise_var)
    curvature = path_curvature(gram, posterior.mean, posterior.covariance, noise_var, missing)
    nodes = geometry.node_mask.shape[-1]
    _, direction, station_leg, user_direction = bounce_ranges(
        geometry.node_position, geometry.ue_position, problem.deployment.bs_position, geometry.offset_m
    )
    jacobian = location_jacobian(direction, basis[..., :nodes, :, :], station_leg, user_direction, geometry.node_mask)
    system = location_system(gradient, curvature, jacobian)
    return m_step.with_priors(system, geometry, problem.precision, problem.prior_mean)


def final_system(evaluation: Evaluation, problem: Problem) -> System:
    """Normal equations with the gains eliminated, at the nominal noise: the information that the result reports."""
    gram, matched, basis, _ = _products(evaluation.geometry, problem, torch.zeros_like(problem.scales.metre))
    return normal_equations(
        evaluation.geometry, evaluation.expectation, gram, matched, basis, problem.noise_var, problem, 1.0
    )


def select(condition: Tensor, new: T, old: T) -> T:
    """`torch.where` over all tensors of a nested NamedTuple; the condition has the batch axes [*]."""
    if isinstance(new, Tensor):
        assert isinstance(old, Tensor)
        return torch.where(condition.reshape(condition.shape + (1,) * (new.ndim - condition.ndim)), new, old)  # type: ignore
    return type(new)(*(select(condition, a, b) for a, b in zip(new, old, strict=True)))  # type: ignore


__all__ = [
    "Evaluation",
    "Iteration",
    "Problem",
    "State",
    "column_operator",
    "columns",
    "final_system",
    "prepare",
    "select",
]
