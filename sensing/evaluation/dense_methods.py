"""Estimators of sparse gains with the settings among which each is tuned, all at the same depth."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.baselines.sparse import ista, oamp
from sensing.data.dictionary import SparseTask
from sensing.inference.dense_sbl import sbl
from sensing.inference.dense_turbo import DenseTurbo, Recovered
from sensing.inference.omp import DenseGram, omp
from sensing.inference.turbo import received_power

Solver = Callable[[SparseTask], Tensor | Recovered]
"""Gains [* col] of a batch, or those and more."""


class Method(NamedTuple):
    """A classical estimator."""

    settings: dict[str, Solver]  # by what they are called in the results


def classical(depth: int, active: int) -> dict[str, Method]:
    """All classical estimators at a depth: iterations, or columns of a pursuit.

    Args:
        depth: of all of them.
        active: true number of active columns, which all that can use it are told.
    """

    def pursuit(rule: str, peak: float) -> Solver:
        def solve(task: SparseTask) -> Tensor:
            stop = peak * task.problems.noise_var
            found = omp(DenseGram(task.dictionary.gram), task.matched, task.energy, depth, stop_peak=stop, rule=rule)
            return found.scatter(task.matched.shape[-1])[0]

        return solve

    def bayes(update: str, sparsity: float) -> Solver:
        return lambda task: sbl(
            task.dictionary, task.matched, task.energy, task.problems.noise_var, depth, update, sparsity
        )

    def shrinkage(weight: float, accelerated: bool) -> Solver:
        return lambda task: ista(task.dictionary, task.matched, task.problems.noise_var, depth, weight, accelerated)

    def scalar(damping: float) -> Solver:
        def solve(task: SparseTask) -> Tensor:
            noise_var, size = task.problems.noise_var, task.matched.shape[-1]
            power = received_power(task.energy, task.entries, noise_var, torch.full_like(noise_var, active))
            odds = math.log(active / (size - active))
            return oamp(task.dictionary, task.matched, noise_var, power, odds, depth, damping)

        return solve

    def vector(damping: float, noise_scale: float) -> Solver:
        return turbo(DenseTurbo(depth, active, damping, noise_scale, hidden=0).eval())

    weights = (0.25, 0.5, 1.0, 2.0, 4.0)
    updates = [(update, sparsity) for update in ("mackay", "convex") for sparsity in (0.1, 0.25, 0.5, 1.0)] + [
        ("em", 1.0)
    ]
    return {
        f"ista_{depth}": Method({f"weight={w}": shrinkage(w, False) for w in weights}),
        f"fista_{depth}": Method({f"weight={w}": shrinkage(w, True) for w in weights}),
        f"omp_{depth}": Method({f"peak={peak}": pursuit("omp", peak) for peak in (0.0, 4.0, 6.0, 8.0, 12.0)}),
        f"ols_{depth}": Method({f"peak={peak}": pursuit("ols", peak) for peak in (0.0, 4.0, 6.0, 8.0, 12.0)}),
        f"em_sbl_{depth}": Method({f"update={u} sparsity={s}": bayes(u, s) for u, s in updates}),
        f"oamp_{depth}": Method({f"damping={d}": scalar(d) for d in (0.1, 0.15, 0.2, 0.3, 0.5, 1.0)}),
        f"turbo_{depth}": Method(
            {f"damping={d} noise_scale={n}": vector(d, n) for d in (0.2, 0.3, 0.4, 0.55, 0.7) for n in (0.5, 0.7, 1.0)}
        ),
    }


def turbo(model: DenseTurbo) -> Solver:
    """An instance of the turbo estimator, trained or not."""

    def solve(task: SparseTask) -> Recovered:
        found: Recovered = model(task.dictionary, task.matched, task.energy, task.entries, task.problems.noise_var)
        return found

    return solve
