"""One iteration: E-step at the proposed geometry, accept or reject it, M-step to the next proposal.

The log evidence (gains integrated out) plus the log prior is the objective. A proposal that lowers it is dropped: the
step is taken again from the last accepted geometry with more Levenberg-Marquardt damping, which costs no further
evaluation, because its normal equations travel in the state. All is selected with `torch.where`, hence differentiable.

Every learned quantity is a correction of a configured base value and neutral at zero: `base * exp(delta)`,
`sigmoid(logit(base) + delta)`, or for the taper `base + 20 delta`. A shift, one per scene, may be added to delta
(`conditioning`).

The taper widens the basin: a layer may trust pilot f as if its noise were `exp(taper x^2)` times larger, x in [-1, 1]
the place of f in the band. Less bandwidth means a wider main lobe in delay. Objectives at different tapers do not
compare, so the accepted point's is computed anew then. The last E-step always uses all pilots alike.

Without the guard every finite proposal is taken; `unrolled` then compares the end with the start.
"""

import math

import torch
from torch import Tensor, nn

from sensing.containers import Geometry
from sensing.errors import ConfigError
from sensing.inference import m_step
from sensing.inference.ascent import ascend
from sensing.inference.clouds import merge
from sensing.inference.conditioning import NO_SHIFT, Shift
from sensing.inference.linearisation import per_scene
from sensing.inference.prior import SupportPrior
from sensing.inference.state import (
    Evaluation,
    Problem,
    State,
    column_operator,
    fit_of,
    log_prior,
    normal_equations,
    objective_at,
    plain_products,
    products,
    select,
    with_walls,
)
from sensing.inference.turbo import Expectation, expectation

__all__ = ["Iteration", "column_operator", "select"]

REJECTED, ACCEPTED = 10.0, 1.0 / 3.0
"""Factors on the damping of a scene after a rejected and an accepted step."""

MOST_DAMPED = 1e9
"""Damping saturates: such a scene stands still."""

BLOCKS = ("ue", "offset", "node", "free")

COMPONENTS = {
    "step": tuple(f"step_{block}" for block in BLOCKS),
    "lm": ("lm",),
    "cap": ("cap",),
    "missing": ("missing",),
    "turbo_damping": ("turbo_damping",),
    "prior": ("activity", "visibility", "free_activity"),
    "noise_scale": ("noise_scale",),
    "power_scale": ("power_scale",),
    "taper": ("taper",),
}
"""What can be learned, by the name under which it is switched, and the corrections it consists of."""

TAPER_UNIT = 20.0
"""Change of the taper per unit of its correction: useful tapers are of this size."""


class Iteration(nn.Module):
    """E-step, guard, M-step; learned corrections as scalar parameters that are neutral at zero.

    Args:
        kind: `gauss_newton` or `gradient` (the paper's plain gradient with backtracking).
        inner: rounds of the turbo loop.
        turbo_damping: share of the new message in the turbo loop, in (0, 1).
        step: relaxation factor of the M-step.
        lm: Levenberg-Marquardt damping relative to the diagonal of the curvature.
        missing: weight of the missing information in the curvature: 0 is EM, 1 eliminates the gains; both ends are
            exact and not learned, as sigmoid(+-inf + delta) does not move.
        activity: prior probability that a located node exists.
        visibility: prior probability that a station sees a node.
        free_activity: prior probability that a free path exists where it was found: the detector looked at some ten
            thousand resolution cells, and a located node at one.
        noise_scale: factor on the noise variance assumed by the E-step.
        power_scale: factor on the gains' variance assumed by the E-step.
        cap: largest step in units of c / bandwidth (beamwidths for directions).
        taper: how fast the trust in pilots falls off towards the edges of the band; 0 uses all alike.
        ascents: gradient steps of one M-step of kind `gradient`.
        merge: located nodes closer than this, in units of c / bandwidth, become one after the M-step; 0: never.
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
        missing: float = 0.9,
        activity: float = 0.5,
        visibility: float = 0.8,
        free_activity: float = 1e-4,
        noise_scale: float = 1.0,
        power_scale: float = 1.0,
        cap: float = 1.0,
        taper: float = 0.0,
        ascents: int = 1,
        merge: float = 0.0,
        tolerance: float = 1.0,
        guard: bool = True,
    ) -> None:
        super().__init__()
        if kind not in ("gauss_newton", "gradient"):
            raise ConfigError(f"kind must be gauss_newton or gradient, got {kind!r}")
        if inner < 1 or ascents < 1:
            raise ConfigError(f"inner and ascents must be >= 1, got {inner}, {ascents}")
        if not (merge >= 0 and math.isfinite(merge)):
            raise ConfigError(f"merge must be >= 0, got {merge}")
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
        self.ascents, self.merge = ascents, merge
        self.factors = {**{f"step_{block}": step for block in BLOCKS}, **positive}
        del self.factors["step"]
        self.shares, self.base_taper = {**shares, "missing": missing}, taper
        self.corrections = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros((), dtype=torch.float64))
                for name in (*self.factors, *self.shares, "taper")
            }
        )

    def delta(self, name: str, shift: Shift = NO_SHIFT) -> Tensor:
        """Correction of a quantity, [] or [*]."""
        correction: Tensor = self.corrections[name]
        return correction + shift[name] if name in shift else correction

    def factor(self, name: str, shift: Shift = NO_SHIFT) -> Tensor:
        """`base * exp(delta)`."""
        return self.factors[name] * self.delta(name, shift).exp()

    def log_odds(self, name: str, shift: Shift = NO_SHIFT) -> Tensor:
        """`logit(base) + delta`."""
        base = self.shares[name]
        logit = math.inf if base == 1 else -math.inf if base == 0 else math.log(base / (1.0 - base))
        return logit + self.delta(name, shift)

    def taper(self, shift: Shift = NO_SHIFT, further: Tensor | float = 0.0) -> Tensor:
        """`base + 20 delta`, never below zero; there the gradient passes, or no scene would ever leave it."""
        free = self.base_taper + TAPER_UNIT * self.delta("taper", shift) + further
        return free + (free.clamp(min=0.0) - free).detach()

    def values(self) -> dict[str, float]:
        """Effective value of every learned quantity, for logs."""
        factors = {name: float(self.factor(name).detach()) for name in self.factors}
        shares = {name: float(self.log_odds(name).detach().sigmoid()) for name in self.shares}
        return factors | shares | {"taper": float(self.taper().detach())}

    def forward(self, state: State, problem: Problem) -> State:
        """Evaluate the proposal, keep the better point, propose the next."""
        return self.propose(self.evaluate(state, problem), problem)

    def evaluate(
        self, state: State, problem: Problem, further_taper: Tensor | float = 0.0, shift: Shift = NO_SHIFT
    ) -> State:
        """E-step at the proposal and the guard: afterwards `accepted` is the best point so far."""
        new = self._at(state.proposal, state.power, problem, self.taper(shift, further_taper), shift)
        return self._judge(state, new, problem)

    def conclude(self, state: State, problem: Problem, shift: Shift = NO_SHIFT) -> State:
        """Last E-step, on all pilots alike, and guard."""
        alike = torch.zeros_like(self.corrections["taper"])
        if self.guard and state.accepted is not None and bool((state.accepted.taper != 0.0).any()):
            nominal = self._at(state.accepted.geometry, state.power, problem, alike, shift)
            state = state._replace(accepted=nominal)
        return self._judge(state, self._at(state.proposal, state.power, problem, alike, shift), problem)

    def look(self, state: State, problem: Problem) -> tuple[Tensor, Tensor]:
        """Objective [*] and fit [* bs] of the proposal on all pilots alike, without what a step would need."""
        geometry, alike = state.proposal, torch.zeros_like(self.corrections["taper"])
        gram, matched = plain_products(geometry, problem, alike)
        posterior = self._expect(gram, matched, geometry, state.power, problem, NO_SHIFT)
        objective = posterior.log_evidence + log_prior(geometry, problem)
        return objective, fit_of(posterior.mean, gram, matched, problem, alike)

    def propose(self, state: State, problem: Problem, shift: Shift = NO_SHIFT) -> State:
        """M-step from the accepted point."""
        assert state.accepted is not None
        geometry, system = state.accepted.geometry, state.accepted.system
        steps = m_step.Steps(*(self.factor(f"step_{block}", shift) for block in BLOCKS))
        cap = self.factor("cap", shift)
        if self.kind == "gauss_newton":
            factors = m_step.factorise(system, problem.scales, self.factor("lm", shift) * state.damping)
            step, free = m_step.solve(factors, system)
            step, free = m_step.capped(step, free, geometry.offset_m.shape[-1], problem.scales, cap, steps)
            proposal = m_step.moved(geometry, step, free, m_step.free_tangents(geometry))
        else:
            noise_scale = self.factor("noise_scale", shift)
            proposal = ascend(state.accepted, problem, noise_scale, steps, cap / state.damping, self.ascents)
        if self.merge > 0:
            nodes = geometry.node_mask.shape[-1]
            energy = state.accepted.expectation.mean[..., :nodes].abs().square().sum(-2)
            proposal = merge(proposal, energy, self.merge * problem.scales.metre)
        return state._replace(proposal=proposal)

    def _judge(self, state: State, new: Evaluation, problem: Problem) -> State:
        """Accept or reject an evaluation, scene by scene."""
        clipped = new.expectation.clipped
        if state.accepted is None:
            return state._replace(
                accepted=new, power=new.expectation.power, clipped=clipped, rejected=torch.zeros_like(clipped)
            )
        keep = torch.isfinite(new.objective)
        if self.guard:
            keep = keep & (new.objective >= objective_at(state.accepted, new.taper, problem) - self.tolerance)
        damping = torch.where(keep, state.damping * ACCEPTED, state.damping * REJECTED).clamp(1.0, MOST_DAMPED)
        accepted = new if bool(keep.all()) else select(keep, new, state.accepted)
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

    def _at(
        self, geometry: Geometry, power: Tensor, problem: Problem, taper: Tensor, shift: Shift = NO_SHIFT
    ) -> Evaluation:
        """E-step and normal equations at a geometry."""
        gram, matched, basis, _ = products(geometry, problem, taper)
        plain = gram[..., :, 0, :, 0], matched[..., 0]
        posterior = self._expect(*plain, geometry, power, problem, shift)
        noise_var = problem.noise_var * per_scene(self.factor("noise_scale", shift), problem.noise_var)
        missing = self.log_odds("missing", shift).sigmoid()
        system = normal_equations(geometry, posterior, gram, matched, basis, noise_var, problem, missing)
        system = with_walls(system, geometry, problem)
        objective = posterior.log_evidence + log_prior(geometry, problem)
        fit = fit_of(posterior.mean, *plain, problem, taper)
        return Evaluation(geometry, posterior, system, objective, taper.detach().expand(objective.shape), fit)

    def _expect(
        self, gram: Tensor, matched: Tensor, geometry: Geometry, power: Tensor, problem: Problem, shift: Shift
    ) -> Expectation:
        """E-step with this layer's quantities."""
        nodes = geometry.node_mask.shape[-1]
        located = geometry.node_mask[..., None, :].expand(*power.shape, nodes)
        return expectation(
            gram,
            matched,
            problem.noise_var,
            power,
            SupportPrior(*(self.log_odds(name, shift) for name in SupportPrior._fields)),
            torch.cat([located, geometry.free_mask], -1),
            nodes,
            self.inner,
            self.log_odds("turbo_damping", shift).sigmoid(),
            self.factor("noise_scale", shift),
            self.factor("power_scale", shift),
        )
