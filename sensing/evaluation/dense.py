"""Task `dense_dictionary`: sparse gains in a dictionary of nearly collinear columns, method against method over SNR.

Every classical method takes, at each SNR, the setting that is best on validation problems. Test problems, and their
noise but for its level, are the same for all methods and SNR.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensing.baselines.gibbs import gibbs
from sensing.baselines.sparse import genie
from sensing.data.dictionary import SparseBlocks, SparseTask
from sensing.errors import ConfigError
from sensing.evaluation.dense_methods import Method, Solver, classical, turbo
from sensing.evaluation.dense_output import write_dense
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.inference.dense_turbo import DenseTurbo, Recovered
from sensing.simulation.dictionary import DictionarySampler

GENIE, BAYES = "genie", "bayes"
"""The floor, and the posterior mean of a sampler, on fewer problems."""


class DenseResult(NamedTuple):
    """One method at one SNR."""

    method: str
    snr_db: float
    setting: str  # the chosen one
    nmse: NDArray[np.float64]  # [problem], the first ones of the split; mean over the seeds
    of_seeds: NDArray[np.float64]  # [seed problem], of each training seed
    parameters: int  # learned
    training_samples: int
    runtime_ms: float  # processor time per problem
    fallback: float  # share of problems that fell back to sparse Bayesian learning


def dense_dictionary(
    build: Build,
    folder: str | Path,
    sampler: DictionarySampler,
    methods: Sequence[str] = ("fista_10", "omp_10", "ols_10", "em_sbl_10", "oamp_10", "turbo_10"),
    checkpoints: Mapping[str, Sequence[str]] | None = None,
    snr_db: Sequence[float] = (-5, 0, 5, 10, 15, 20, 25, 30),
    num_problems: int = 512,
    tuning_problems: int = 32,
    limit_problems: int = 64,
    depth: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[DenseResult]:
    """Run all methods; write results.csv, paired.csv, per_problem.npz, the figure and report.html.

    Args:
        build: reads checkpoints.
        folder: run folder, made if absent.
        sampler: law of the problems.
        methods: classical ones, out of those of `sensing.evaluation.dense_methods`.
        checkpoints: of trained estimators, by the name of their row: one per training seed, all at the same depth.
        snr_db: mean received power over the noise power [dB].
        num_problems: of the split `test`.
        tuning_problems: of the split `val`, on which settings are chosen for each SNR.
        limit_problems: of the split `test`, for the posterior mean; 0: left out.
        depth: iterations of all classical methods, columns of pursuits.
        batch_size: problems that share a dictionary and are solved at once.
        seed: of all draws.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    counts = {"num_problems": num_problems, "tuning_problems": tuning_problems, "batch_size": batch_size}
    for name, value in {**counts, "depth": depth}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")
    known = classical(depth, sampler.active)
    if unknown := sorted(set(methods) - set(known)):
        raise ConfigError(f"methods must be out of {sorted(known)}, got {unknown}")
    if not snr_db or not 0 <= limit_problems <= num_problems:
        raise ConfigError(f"need an SNR and 0 <= limit_problems <= num_problems, got {snr_db}, {limit_problems}")
    trained = {name: [build.dense(path) for path in paths] for name, paths in (checkpoints or {}).items()}
    if empty := sorted(name for name, models in trained.items() if not models):
        raise ConfigError(f"task.checkpoints must name at least one file for each row, got none for {empty}")
    test, tuning = (
        SparseBlocks(sampler, seed, split, batch_size, -(-count // batch_size), 0.0)
        for split, count in (("test", num_problems), ("val", tuning_problems))
    )
    found = []
    with progress_bar(progress, "methods") as bar, torch.no_grad():
        shown = bar.add_task("solving", total=len(snr_db) * (len(methods) + len(trained) + 2))
        for snr in map(float, snr_db):
            solvers: dict[str, tuple[str, list[Solver]]] = {GENIE: ("", [_genie])}
            for name in methods:
                bar.update(shown, description=f"{name}, {snr:g} dB")
                chosen = _best(known[name], tuning, snr)
                solvers[name] = (chosen, [known[name].settings[chosen]])
            solvers |= {name: ("trained", [turbo(each) for each, _ in models]) for name, models in trained.items()}
            if limit_problems:
                solvers[BAYES] = ("", [_sampled(seed)])
            for name, (chosen, seeds) in solvers.items():
                bar.update(shown, description=f"{name}, {snr:g} dB")
                count = limit_problems if name == BAYES else num_problems
                solved = [_solve(solve, test, snr, count) for solve in seeds]
                nmse = np.stack([each.nmse for each in solved])
                runtime, fallback = (float(np.mean(each)) for each in list(zip(*solved, strict=True))[1:])
                model, samples = trained[name][0] if name in trained else (None, 0)
                size = 0 if model is None else sum(p.numel() for p in model.parameters())
                found.append(DenseResult(name, snr, chosen, nmse.mean(0), nmse, size, samples, runtime, fallback))
                bar.advance(shown)
    write_dense(found, Path(folder), settings, command, notes)
    return found


def _best(method: Method, blocks: SparseBlocks, snr: float) -> str:
    """The setting with the least mean error on validation problems."""
    count = len(blocks) * blocks.size
    errors = {name: float(np.mean(_solve(solve, blocks, snr, count).nmse)) for name, solve in method.settings.items()}
    return min(errors, key=lambda name: errors[name])


class _Solved(NamedTuple):
    nmse: NDArray[np.float64]  # [problem]
    runtime_ms: float  # processor time per problem
    fallback: float  # share of problems


def _solve(solve: Solver, blocks: SparseBlocks, snr: float, count: int) -> _Solved:
    """Errors of the first `count` problems."""
    errors, fallen, spent, solved = [], 0, 0.0, 0
    for number in range(-(-count // blocks.size)):
        task = blocks.task(number, snr)
        begun = time.process_time()
        found = solve(task)
        spent += time.process_time() - begun
        if isinstance(found, Recovered):
            fallen += int(found.fallback.sum())
            found = found.mean
        solved += len(found)
        errors.append(task.nmse(found))
    return _Solved(torch.cat(errors)[:count].numpy(), 1e3 * spent / solved, fallen / solved)


def _genie(task: SparseTask) -> Tensor:
    return genie(task.dictionary.gram, task.matched, task.problems.noise_var, task.problems.support)


def _sampled(seed: int) -> Solver:
    """Posterior mean by sampling, from the support that the classical turbo estimator finds."""
    start = DenseTurbo(hidden=0).eval()

    def solve(task: SparseTask) -> Tensor:
        noise_var, active = task.problems.noise_var, int(task.problems.support[0].sum())
        begun = start(task.dictionary, task.matched, task.energy, task.entries, noise_var).log_odds
        generator = torch.Generator().manual_seed((seed << 32) + task.number)
        return gibbs(task.dictionary.gram, task.matched, noise_var, begun, generator, active, slots=2 * active)

    return solve
