"""Unrolled EM: one class for the classical estimator (tied, neutral) and the unfolded one (untied, learned)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sensing.containers import Deployment, Geometry, Observation
from sensing.errors import ConfigError
from sensing.inference.iteration import TAPER_UNIT, Iteration
from sensing.inference.state import Evaluation, Problem, State, prepare


class Refined(NamedTuple):
    """Result of the iterations."""

    final: Evaluation  # the best geometry, its posterior gains and objective
    history: list[Evaluation]  # after each iteration, the last being `final`; empty unless asked for
    problem: Problem  # what `outcome.to_estimate` needs beside the final evaluation
    clipped: Tensor  # [*] int64, guards of the E-step that acted
    rejected: Tensor  # [*] int64, proposals dropped


class Unrolled(nn.Module):
    """A fixed number of iterations from a start geometry.

    Args:
        num_iterations: iterations (layers); each costs one E-step and one M-step, and one more E-step ends the loop.
        tied: all iterations share their corrections.
        polish: further iterations, never learned, with the gains eliminated from the curvature (`missing=1`) and
            neutral corrections: at the end they turn a good guess into the optimum.
        dtype: complex type of the products with the observation (complex64 halves their time); the rest is double.
        settings: base values of `Iteration`; if untied, a sequence gives one value per iteration.

    Raises:
        ConfigError: a count or a base value does not fit.
    """

    def __init__(
        self,
        num_iterations: int = 8,
        tied: bool = True,
        polish: int = 0,
        dtype: torch.dtype | str = "complex128",
        **settings: Any,
    ) -> None:
        super().__init__()
        if num_iterations < 1 or polish < 0:
            raise ConfigError(f"need num_iterations >= 1 and polish >= 0, got {num_iterations}, {polish}")
        names = {"complex128": torch.complex128, "complex64": torch.complex64}
        if dtype not in (*names, *names.values()):
            raise ConfigError(f"dtype must be complex128 or complex64, got {dtype}")
        self.num_iterations, self.tied, self.polish = num_iterations, tied, polish
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
        base = {name: values[-1] if name in per_layer else values for name, values in settings.items()}
        self.polisher = (
            Iteration(**(base | {"missing": 1.0, "step": 1.0, "taper": 0.0})).requires_grad_(False) if polish else None
        )

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
        schedule: list[Iteration] = [self.layers[min(t, len(self.layers) - 1)] for t in range(self.num_iterations)]  # type: ignore
        if self.polisher is not None:
            schedule += [self.polisher] * self.polish
        seen: list[Evaluation] = []
        for step, layer in enumerate(schedule):
            state = layer.evaluate(state, problem, self.schedule(step))
            if history and step > 0:
                seen.append(_accepted(state))
            state = layer.propose(state, problem)
        state = schedule[-1].conclude(state, problem)
        assert state.clipped is not None
        assert state.rejected is not None
        final = _accepted(state)
        return Refined(final, [*seen, final] if history else [], problem, state.clipped, state.rejected)

    def schedule(self, step: int) -> Tensor:
        """Taper that falls from `20 delta` in the first iteration to zero in the last: coarse first, fine afterwards.

        One number for all layers, because the gradient of a single layer's taper is mostly noise.
        """
        share = max(0.0, 1.0 - step / max(self.num_iterations - 1, 1))
        return TAPER_UNIT * share * self.coarse_to_fine

    def evaluate_at(self, observation: Observation, deployment: Deployment, geometry: Geometry) -> Evaluation:
        """E-step at a geometry without moving it."""
        problem, state = prepare(observation, deployment, geometry, self.dtype)
        last = self.polisher if self.polisher is not None else self.layers[-1]
        return _accepted(last.evaluate(state, problem))  # type: ignore[operator]


def _accepted(state: State) -> Evaluation:
    assert state.accepted is not None
    return state.accepted
