"""Unrolled EM: one class for the classical estimator (tied, neutral) and the unfolded one (untied, learned)."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sensing.containers import Deployment, Geometry, Observation
from sensing.errors import ConfigError
from sensing.inference.basin import check_shares, distance, unexplained
from sensing.inference.conditioning import NO_SHIFT, Conditioner, Shift
from sensing.inference.iteration import COMPONENTS, TAPER_UNIT, Iteration
from sensing.inference.memory import Memory
from sensing.inference.parts import chosen, joined, put
from sensing.inference.state import Evaluation, Problem, State, prepare, select

SCHEDULE = "schedule"
"""Name of the learned start of the falling taper that all layers share."""


class Refined(NamedTuple):
    """Result of the iterations."""

    final: Evaluation  # the best geometry, its posterior gains and objective
    history: list[Evaluation]  # after each iteration, the last being `final`; empty unless asked for
    problem: Problem  # what `outcome.to_estimate` needs beside the final evaluation
    clipped: Tensor  # [*] int64, guards of the E-step that acted
    rejected: Tensor  # [*] int64, proposals dropped
    fallback: Tensor  # [*] bool, scenes that the classical iterations have redone
    near: Tensor  # [*] bool, scenes that had no need of the layers


class Start(NamedTuple):
    """What a look at the start tells of it."""

    objective: Tensor  # [*]
    fit: Tensor  # [* bs]
    distance: Tensor  # [*] share of the falling taper that the scene needs (`basin`)
    near: Tensor  # [*] bool, it explains the observation but for noise


class Unrolled(nn.Module):
    """A fixed number of iterations from a start geometry.

    Args:
        num_iterations: iterations (layers); each costs one E-step and one M-step, and one more E-step ends the loop.
        tied: all iterations share their corrections.
        polish: further iterations, never learned, with the gains eliminated from the curvature (`missing=1`) and
            neutral corrections: at the end they turn a good guess into the optimum.
        falling_taper: taper of the first iteration, falling to zero in the last, on top of that of the iterations.
        far: unexplained shares of the signal at the start (`basin`) between which the falling taper sets in, scene by
            scene: a start in the basin needs no wider one, and could leave it; None: whole in all scenes.
        near: classical iterations that a scene whose start explains the observation gets instead of the layers; 0: the
            layers. Not where a history is asked for.
        learned: components whose corrections are learned, out of `COMPONENTS` and `schedule`; None: all.
        condition: corrections depend on the scene (`conditioning`), in the components that are learned.
        fallback: a scene whose objective ends below that of its start is redone by classical iterations. Costs one
            E-step without derivatives, and the classical iterations of such scenes. Not where a history is asked for.
        memory: what training keeps of every layer: `full`, `checkpoint`, `truncated` or `implicit` (`memory`).
        window: layers through which gradients pass in the mode `truncated`.
        dtype: complex type of the products with the observation (complex64 halves their time); the rest is double.
        settings: base values of `Iteration`; if untied, a sequence gives one value per iteration.

    Raises:
        ConfigError: a count, a name or a base value does not fit.
    """

    def __init__(
        self,
        num_iterations: int = 8,
        tied: bool = True,
        polish: int = 0,
        falling_taper: float = 0.0,
        far: Sequence[float] | None = None,
        near: int = 0,
        learned: Sequence[str] | None = None,
        condition: bool = False,
        fallback: bool = False,
        memory: str = "full",
        window: int = 2,
        dtype: torch.dtype | str = "complex128",
        **settings: Any,
    ) -> None:
        super().__init__()
        if num_iterations < 1 or polish < 0:
            raise ConfigError(f"need num_iterations >= 1 and polish >= 0, got {num_iterations}, {polish}")
        names = {"complex128": torch.complex128, "complex64": torch.complex64}
        if dtype not in (*names, *names.values()):
            raise ConfigError(f"dtype must be complex128 or complex64, got {dtype}")
        if not (falling_taper >= 0 and math.isfinite(falling_taper)):
            raise ConfigError(f"falling_taper must be >= 0, got {falling_taper}")
        if near < 0:
            raise ConfigError(f"near must be >= 0, got {near}")
        self.num_iterations, self.tied, self.polish = num_iterations, tied, polish
        self.falling_taper, self.near = falling_taper, near
        self.far = None if far is None else check_shares(far)
        self.dtype = names[dtype] if isinstance(dtype, str) else dtype
        per_layer = {k: v for k, v in settings.items() if isinstance(v, Sequence) and not isinstance(v, str)}
        for name, values in per_layer.items():
            if tied or len(values) != num_iterations:
                raise ConfigError(
                    f"{name} must be one value, or {num_iterations} values if untied, got {list(values)}, tied={tied}"
                )
        self.layers = nn.ModuleList(
            Iteration(**(settings | {name: values[t] for name, values in per_layer.items()}))
            for t in range(1 if tied else num_iterations)
        )
        self.coarse_to_fine = nn.Parameter(torch.zeros((), dtype=torch.float64))
        base = {name: values[-1] if name in per_layer else values for name, values in settings.items()} | {"taper": 0.0}
        self.polisher = _frozen(Iteration(**(base | {"missing": 1.0, "step": 1.0}))) if polish else None
        looks = fallback or condition or near > 0 or far is not None
        self.classical = _frozen(Iteration(**(base | {"guard": True}))) if looks else None
        self.fallback, self.memory = fallback, Memory(memory, window, tied)
        self.conditioner = self._learn(learned, condition)

    def _learn(self, learned: Iterable[str] | None, condition: bool) -> Conditioner | None:
        """Let the named components be learned and freeze all others."""
        known = (*COMPONENTS, SCHEDULE)
        wanted = known if learned is None else tuple(learned)
        if unknown := sorted(set(wanted) - set(known)):
            raise ConfigError(f"learned must name some of {', '.join(known)}, got {', '.join(unknown)}")
        corrections = [name for component in wanted if component != SCHEDULE for name in COMPONENTS[component]]
        for layer in self.layers:
            for name, parameter in layer.corrections.items():  # type: ignore[union-attr,operator]
                parameter.requires_grad_(name in corrections)
        self.coarse_to_fine.requires_grad_(SCHEDULE in wanted)
        if condition and not corrections:
            raise ConfigError(f"condition must have something to correct, got learned={list(wanted)}")
        return Conditioner(corrections) if condition else None

    def forward(
        self, observation: Observation, deployment: Deployment, geometry: Geometry, history: bool = False
    ) -> Refined:
        """Refine a geometry.

        Args:
            observation: y [* bs ant sc] and noise_var [* bs].
            deployment: the stations.
            geometry: start, batch axes as y; the user within about c / (4 bandwidth), EM does not repair more.
            history: return the evaluation after every iteration, for deep supervision.
        """
        problem, state = prepare(observation, deployment, geometry, self.dtype)
        start = self.look(state, problem)
        none = torch.zeros_like(start.near)
        near = none if history or not self.near else start.near
        if not bool(near.any()):
            state, seen = self._iterate(state, problem, start, history)
        elif bool(near.all()):
            state, seen = self._classical(state, problem, self.near), []
        else:
            by_layers, _ = self._iterate(*self._part(~near, observation, problem, geometry), chosen(start, ~near))
            classical = self._classical(*self._part(near, observation, problem, geometry), self.near)
            state, seen = joined(near, classical, by_layers), []
        assert state.clipped is not None
        assert state.rejected is not None
        final = _accepted(state)
        refined = Refined(final, [*seen, final] if history else [], problem, state.clipped, state.rejected, none, near)
        return self._fall_back(refined, start, observation, geometry) if self.fallback and not history else refined

    def look(self, state: State, problem: Problem) -> Start:
        """What a start is like, where something depends on it."""
        one = torch.ones_like(state.damping)
        if self.classical is None:
            return Start(one, torch.ones_like(state.power), one, one > 1.0)
        with torch.no_grad():
            objective, fit = self.classical.look(state, problem)
            share = unexplained(problem, fit)
            return Start(objective, fit, one if self.far is None else distance(share, *self.far), share <= 0.0)

    def _iterate(
        self, state: State, problem: Problem, start: Start, history: bool = False
    ) -> tuple[State, list[Evaluation]]:
        """All layers, and the evaluations after all but the last if asked for."""

        def iterate(state: State, step: int) -> State:
            layer = self.schedule_of_layers[step]
            shift = self.shift(state, problem, start.fit, step)
            state = layer.evaluate(state, problem, self.schedule(step) * start.distance, shift)
            return layer.propose(state, problem, self.shift(state, problem, start.fit, step))

        seen: list[Evaluation] = []
        last = len(self.schedule_of_layers) - 1
        for step in range(last + 1):
            before, state = state, self.memory(iterate, state, step, last)
            if history and step > 0:
                seen.append(_attached(_accepted(state), before.proposal))
        return self.schedule_of_layers[-1].conclude(state, problem, self.shift(state, problem, start.fit, last)), seen

    def _classical(self, state: State, problem: Problem, iterations: int) -> State:
        """Classical iterations with their guard, on all pilots alike."""
        assert self.classical is not None
        for _ in range(iterations):
            state = self.classical(state, problem)
        return self.classical.conclude(state, problem)

    def _part(
        self, where: Tensor, observation: Observation, problem: Problem, geometry: Geometry
    ) -> tuple[State, Problem]:
        """Some of the scenes."""
        part = prepare(chosen(observation, where), problem.deployment, chosen(geometry, where), self.dtype)
        return part[1], part[0]

    @property
    def schedule_of_layers(self) -> list[Iteration]:
        """The layer of every iteration, polishing ones included."""
        layers: list[Iteration] = [self.layers[min(t, len(self.layers) - 1)] for t in range(self.num_iterations)]  # type: ignore
        return layers + [self.polisher] * self.polish if self.polisher is not None else layers

    def shift(self, state: State, problem: Problem, fit: Tensor, step: int) -> Shift:
        """What the scene adds to the corrections of an iteration."""
        if self.conditioner is None or step >= self.num_iterations:
            return NO_SHIFT
        fit = fit if state.accepted is None else state.accepted.fit
        shift: Shift = self.conditioner(state, problem, fit, step / max(self.num_iterations - 1, 1))
        return shift

    def _fall_back(self, refined: Refined, start: Start, observation: Observation, geometry: Geometry) -> Refined:
        """Classical iterations, which never lower the objective, for the scenes where the learned ones have."""
        assert self.classical is not None
        worse = ~refined.near & ~(refined.final.objective >= start.objective - self.classical.tolerance)
        if not bool(worse.any()):
            return refined
        part = self._part(worse, observation, refined.problem, geometry)
        redone = _accepted(self._classical(*part, self.num_iterations))
        return refined._replace(final=put(refined.final, worse, redone), fallback=worse)

    def schedule(self, step: int) -> Tensor:
        """Taper that falls from `base + 20 delta` to zero in the last iteration: coarse first, fine afterwards.

        One number for all layers, because the gradient of a single layer's taper is mostly noise.
        """
        share = max(0.0, 1.0 - step / max(self.num_iterations - 1, 1))
        return share * (self.falling_taper + TAPER_UNIT * self.coarse_to_fine)

    def evaluate_at(self, observation: Observation, deployment: Deployment, geometry: Geometry) -> Evaluation:
        """E-step at a geometry without moving it."""
        problem, state = prepare(observation, deployment, geometry, self.dtype)
        last = self.polisher if self.polisher is not None else self.layers[-1]
        return _accepted(last.evaluate(state, problem))  # type: ignore[operator]


def _frozen(layer: Iteration) -> Iteration:
    return layer.requires_grad_(False)


def _accepted(state: State) -> Evaluation:
    assert state.accepted is not None
    return state.accepted


def _attached(evaluation: Evaluation, proposal: Geometry) -> Evaluation:
    """The evaluation with the geometry as it was proposed, where it was accepted: a cut lies behind it."""
    same = (evaluation.geometry.ue_position == proposal.ue_position).all(-1)
    return evaluation._replace(geometry=select(same, proposal, evaluation.geometry))
