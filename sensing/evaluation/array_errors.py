"""Task `array_errors`: arrays with errors of their elements, as they are and calibrated by a few scenes.

A calibration learns from observations alone (self-supervised), from those and the known users of some of their scenes
(semi-supervised) or of all (supervised).
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sensing.containers import Deployment, Estimate, Example, Observation
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator, build_estimator
from sensing.evaluation.array_errors_output import write_array_errors
from sensing.evaluation.statistics import Floats
from sensing.evaluation.sweep import run_sweep
from sensing.evaluation.task import Build

IDEAL = "ideal_array"
"""Row of the classical estimator on arrays without errors: the same scenes and the same noise."""


class Cautious:
    """An estimator that is told more noise: errors of the model are in proportion to the power.

    Args:
        estimator: what locates.
        share: added noise variance over the mean power of a station's observation.
    """

    needs_truth, front_end = False, None

    def __init__(self, estimator: LocationEstimator, share: float) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"noise_share must lie in [0, 1), got {share}")
        self.estimator, self.share = estimator, share

    def __call__(
        self, observation: Observation, deployment: Deployment, paths: None = None, truth: Example | None = None
    ) -> Estimate:
        """See `sensing.estimator.Estimator`."""
        more = self.share * observation.y.abs().square().mean((-2, -1))
        return self.estimator(observation._replace(noise_var=observation.noise_var + more), deployment)


class Measured(NamedTuple):
    """What a method did at one severity, on the scenes of all seeds."""

    severity: float
    method: str
    error_m: Floats  # [seed scene]
    over_peb: Floats  # [seed scene]
    flagged: Floats  # [seed scene]
    seconds: float  # per scene
    num_train_scenes: int  # scenes that it was calibrated with; 0: not at all
    num_labels: int  # of these with a known user
    fit_seconds: float  # processor time of the calibration
    parameters: int


def array_errors(
    build: Build,
    folder: str | Path,
    methods: Mapping[str, Mapping[str, Any]] | None,
    calibrations: Sequence[Sequence[int]] = ((200, 0),),
    severities: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0, 1, 2),
    num_scenes: int = 200,
    snr_db: float = 10.0,
    batch_size: int = 16,
    split: str = "test",
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[Measured]:
    """Locate with uncalibrated and with calibrated arrays; write results.csv, per_scene.npz, a figure and report.html.

    Args:
        build: builds the scenes, their `impairments` included.
        folder: run folder, made if absent.
        methods: estimators without calibration by name: arguments of `build_estimator`, and `noise_share`, the noise
            variance that they add over the mean power; None: none.
        calibrations: training scenes of each, and how many of these have a known user; a row for each pair.
        severities: of the impairments; a part of the table for each.
        seeds: of scenes and hardware.
        num_scenes: test scenes of each seed.
        snr_db: SNR in training and test [dB].
        batch_size: scenes at once.
        split: which stream of scenes is the test.
        progress: show progress bars.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    for name, values in (("severities", severities), ("seeds", seeds)):
        if len(set(values)) != len(values) or not all(value >= 0 for value in values):
            raise ConfigError(f"task.{name} must hold distinct numbers >= 0, got {list(values)}")
    pairs = [tuple(pair) for pair in calibrations]
    if len(set(pairs)) != len(pairs) or not all(len(pair) == 2 and 0 <= pair[1] <= pair[0] > 0 for pair in pairs):
        raise ConfigError(
            f"task.calibrations must hold distinct pairs [scenes >= 1, labels <= scenes], got {list(calibrations)}"
        )
    if not severities or not seeds or num_scenes < 1:
        raise ConfigError("task.severities, seeds and num_scenes must not be empty or zero")
    if split not in ("val", "test"):
        raise ConfigError(f"task.split must be val or test, got {split!r}")
    plain = {name: _estimator(name, **each) for name, each in (methods or {}).items()}
    plans = {
        (severity, seed): build.varied({"impairments.severity": float(severity), "seed": int(seed)})
        for severity in (0.0, *severities)
        for seed in seeds
    }
    parts: dict[tuple[float, str], list[Measured]] = {}
    for (severity, _), plan in plans.items():
        estimators: dict[str, Any] = dict(plain) if severity else {IDEAL: build_estimator()}
        spent: dict[str, tuple[int, int, float, int]] = {}
        for count, labels in pairs if severity else ():
            name, began = calibrated_name(count, labels), time.process_time()
            estimators[name] = plan.calibrated(count, snr_db, progress, labels)
            size = sum(p.numel() for p in estimators[name].calibration.parameters())
            spent[name] = count, labels, time.process_time() - began, size
        for name, estimator in estimators.items():  # apart: each has its own idea of the noise
            found = run_sweep(
                plan.simulator(), {name: estimator}, {}, [snr_db], num_scenes, split, batch_size, progress,
                noise=getattr(estimator, "noise", "known"),
            )  # fmt: skip
            scores, (count, labels, fit, size) = found.scores[name], spent.get(name, (0, 0, 0.0, 0))
            error, bound = scores["ue_error_m"][0], found.bounds["peb"]["ue_error_m"][0]
            part = Measured(
                severity, name, error, error / bound, scores["flags"][0] != 0, float(np.mean(scores["time_s"])),
                count, labels, fit, size,
            )  # fmt: skip
            parts.setdefault((severity, name), []).append(part)
    results = [_joined(each) for each in parts.values()]
    write_array_errors(results, Path(folder), settings, command, notes)
    return results


def calibrated_name(scenes: int, labels: int) -> str:
    """Row of a calibration by so many scenes, so many of them with a known user."""
    return f"self_calibrated_{scenes}" if labels == 0 else f"calibrated_{scenes}_labels_{labels}"


def _estimator(name: str, noise_share: float = 0.0, **settings: Any) -> Any:
    estimator = build_estimator(**{"name": name, **settings})
    return Cautious(estimator, noise_share) if noise_share else estimator


def _joined(parts: Sequence[Measured]) -> Measured:
    """The seeds of one method together."""
    return parts[0]._replace(
        error_m=np.stack([part.error_m for part in parts]),
        over_peb=np.stack([part.over_peb for part in parts]),
        flagged=np.stack([part.flagged for part in parts]),
        seconds=float(np.mean([part.seconds for part in parts])),
        fit_seconds=float(np.mean([part.fit_seconds for part in parts])),
    )
