"""Task `mismatch`: what a wrong model costs over its severity, and how much of it learning brings back.

Four estimators on the same scenes: `classical` as it is; `classical_tuned`, the best of the candidates on scenes of the
split `val` with their labels; `learned`, from scenes of the split `train` without labels: noise, tail and clocks, or
the gains of the elements; and `matched`, which is told the truth.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sensing.bounds import uplink_bound
from sensing.containers import Example
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator
from sensing.evaluation.mismatch_methods import Matched, learned, tuned
from sensing.evaluation.mismatch_output import write_mismatch
from sensing.evaluation.statistics import Floats
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.metrics import nmse_db, position_error
from sensing.simulation import Simulator

METHODS = ("classical", "classical_tuned", "learned", "matched")
LEARNED = ("surroundings", "gains")
"""What is learned: noise, tail and clocks, or the gains of all elements."""


class Found(NamedTuple):
    """What an estimator did in one case at one severity."""

    case: str
    severity: float
    method: str
    error_m: Floats  # [seed scene] of the user
    over_peb: Floats  # [seed scene] the same over the bound, which knows noise and clocks and nothing else of the truth
    nmse_db: Floats  # [seed scene]
    seconds: float  # CPU time per scene
    setting: str  # what was chosen or learned, seed by seed
    parameters: int
    training_scenes: int  # of each seed


class Case(NamedTuple):
    """What differs in one case, and what can be known of it."""

    values: Mapping[str, Any]  # of the configuration, by dotted key
    candidates: Sequence[Mapping[str, Any]] = ()  # of the tuning, see `mismatch_methods.candidate`
    matched: Mapping[str, Any] | None = None  # values that the matched estimator is told, as above; None: it is absent
    learned: str = LEARNED[0]  # what is learned


class Counts(NamedTuple):
    """Scenes, and their SNR."""

    snr_db: float
    test: int
    train: int
    val: int
    batch_size: int

    def batches(self, count: int) -> list[range]:
        """Numbers of `count` scenes."""
        return [range(first, min(first + self.batch_size, count)) for first in range(0, count, self.batch_size)]


def mismatch(
    build: Build,
    folder: str | Path,
    cases: Mapping[str, Mapping[str, Any] | None],
    severities: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    methods: Sequence[str] = METHODS,
    snr_db: float = 10.0,
    num_scenes: int = 500,
    train_scenes: int = 24,
    val_scenes: int = 32,
    batch_size: int = 8,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[Found]:
    """Run all; write results.csv, gaps.csv, per_scene.npz, the figure and report.html.

    Args:
        build: builds scenes and estimators.
        folder: run folder, made if absent.
        cases: by name, fields of `Case`; None leaves one out.
        severities: of the impairments; other values of a case are the same at each.
        seeds: of scenes and hardware.
        methods: out of `METHODS`.
        snr_db: of the nominal noise [dB].
        num_scenes: test scenes of each case, severity and seed.
        train_scenes: scenes of each seed that are learned from, without labels.
        val_scenes: scenes of each seed that candidates are compared on, with labels.
        batch_size: scenes at once.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    chosen = {name: _case(name, fields) for name, fields in cases.items() if fields is not None}
    if not chosen:
        raise ConfigError("task.cases must hold a case, got none")
    if not methods or not set(methods) <= set(METHODS):
        raise ConfigError(f"task.methods must be out of {list(METHODS)}, got {list(methods)}")
    for name, count in (("num_scenes", num_scenes), ("train_scenes", train_scenes), ("val_scenes", val_scenes)):
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"task.{name} must be a whole number >= 1, got {count!r}")
    for name, numbers in (("severities", severities), ("seeds", seeds)):
        if not numbers or len(set(numbers)) != len(numbers) or not all(number >= 0 for number in numbers):
            raise ConfigError(f"task.{name} must hold distinct numbers >= 0, got {list(numbers)}")
    counts = Counts(snr_db, num_scenes, train_scenes, val_scenes, batch_size)
    plans = {
        (name, float(severity), seed): build.varied(
            {**case.values, "impairments.severity": float(severity), "seed": int(seed)}
        )
        for name, case in chosen.items()
        for severity in severities
        for seed in seeds
    }
    for plan in plans.values():
        plan.simulator()  # refuses what does not fit
    parts: dict[tuple[str, float, str], list[Found]] = {}
    alike: dict[str, list[Found]] = {}  # without impairments most cases are one
    with progress_bar(progress) as bar:
        work = bar.add_task("mismatch", total=len(plans))
        for (name, severity, seed), plan in plans.items():
            bar.update(work, description=f"{name} at severity {severity:g}, seed {seed}")
            case = chosen[name]
            others = {key: value for key, value in case.values.items() if not key.startswith("impairments.")}
            key = repr((plan.simulator().impairments, seed, others, case[1:]))
            if key not in alike:
                alike[key] = _measured(plan, case, methods, counts)
            for each in alike[key]:
                found = each._replace(case=name, severity=severity)
                parts.setdefault((name, severity, found.method), []).append(found)
            bar.advance(work)
    results = [_joined(each) for each in parts.values()]
    write_mismatch(results, Path(folder), settings, command, notes)
    return results


def _case(name: str, fields: Mapping[str, Any]) -> Case:
    """A case from its fields; raises ConfigError for one that does not exist."""
    key = f"task.cases.{name}"
    if not set(fields) <= set(Case._fields) or "values" not in fields:
        raise ConfigError(f"{key} must have values and may have {', '.join(Case._fields[1:])}, got {sorted(fields)}")
    case = Case(**fields)
    if case.learned not in LEARNED:
        raise ConfigError(f"{key}.learned must be one of {list(LEARNED)}, got {case.learned!r}")
    return case


def _measured(plan: Build, case: Case, methods: Sequence[str], counts: Counts) -> list[Found]:
    """What the methods do in a case, at its severity and seed."""
    simulator, base = plan.simulator(), plan.classical()
    built: dict[str, tuple[LocationEstimator, str]] = {}
    if "classical" in methods:
        built["classical"] = base, "as it is"
    if "classical_tuned" in methods:
        built["classical_tuned"] = tuned(plan, case.candidates, _validation_error(simulator, counts))
    if "learned" in methods and case.learned == "gains":
        built["learned"] = plan.calibrated(counts.train, counts.snr_db, False), "gains of the elements"
    elif "learned" in methods:
        built["learned"] = learned(base, simulator, counts.snr_db, counts.batches(counts.train))
    if "matched" in methods and case.matched is not None:
        built["matched"] = Matched(simulator, plan.varied(case.matched).classical()), "truth"
    parts: dict[str, list[tuple[Floats, Floats, Floats]]] = {name: [] for name in built}
    seconds = dict.fromkeys(built, 0.0)
    for indices in counts.batches(counts.test):
        example = simulator.examples("test", indices, counts.snr_db)
        for name, (estimator, _) in built.items():
            began = time.process_time()
            parts[name].append(_scores(estimator, example, simulator))
            seconds[name] += (time.process_time() - began) / counts.test
    found = []
    for name, (estimator, setting) in built.items():
        error, ratio, nmse = (np.concatenate(each)[None] for each in zip(*parts[name], strict=True))
        part = getattr(estimator, "calibration" if case.learned == "gains" else "surroundings", None)
        size = sum(p.numel() for p in part.parameters()) if name == "learned" and part is not None else 0
        scenes = {"learned": counts.train, "classical_tuned": counts.val}.get(name, 0)
        found.append(Found("", 0.0, name, error, ratio, nmse, seconds[name], setting, size, scenes))
    return found


def _joined(parts: Sequence[Found]) -> Found:
    """The seeds of one method together."""
    return parts[0]._replace(
        error_m=np.concatenate([part.error_m for part in parts]),
        over_peb=np.concatenate([part.over_peb for part in parts]),
        nmse_db=np.concatenate([part.nmse_db for part in parts]),
        seconds=float(np.mean([part.seconds for part in parts])),
        setting=" | ".join(dict.fromkeys(part.setting for part in parts)),
    )


def _validation_error(simulator: Simulator, counts: Counts) -> Callable[[LocationEstimator], float]:
    def error(estimator: LocationEstimator) -> float:
        found = [
            _scores(estimator, simulator.examples("val", indices, counts.snr_db), simulator)[0]
            for indices in counts.batches(counts.val)
        ]
        return float(np.concatenate(found).mean())

    return error


@torch.no_grad()
def _scores(estimator: LocationEstimator, example: Example, simulator: Simulator) -> tuple[Floats, Floats, Floats]:
    """Error [m], error over the bound, NMSE [dB], [scene] each."""
    scene, deployment = example.scene, simulator.deployment
    assert scene is not None
    assert example.channel is not None
    estimate = estimator(example.observation, deployment, truth=example)
    assert estimate.ue_position is not None
    true = deployment._replace(clock_offset_std=deployment.clock_offset_std * simulator.impairments.clock_factor)
    error = position_error(estimate.ue_position, scene.ue_position)
    bound = uplink_bound(scene, example.true_noise_var, true).ue_position_m
    return error.numpy(), (error / bound).numpy(), nmse_db(estimate.channel, example.channel).numpy()
