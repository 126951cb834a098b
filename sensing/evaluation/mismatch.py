"""Task `mismatch`: what wrong noise, priors and a diffuse tail cost, and how much of it learning brings back.

Four estimators on the same scenes: `classical` as it is; `classical_tuned`, the best of the candidates on scenes of the
split `val` with their labels; `learned`, whose surroundings come from scenes of the split `train` without labels; and
`matched`, which knows the law of the impairment, and onset and power of the tail in each scene.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sensing.adapted_estimator import AdaptedEstimator, adapted, learn_clock, learn_surroundings
from sensing.bounds import uplink_bound
from sensing.channel import channel_response, scene_paths
from sensing.coarse.surroundings import Surroundings, whitener
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator, build_estimator
from sensing.evaluation.mismatch_output import write_mismatch
from sensing.evaluation.statistics import Floats
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.metrics import nmse_db, position_error
from sensing.ofdm import profile_covariance
from sensing.simulation import Simulator
from sensing.units import SPEED_OF_LIGHT

METHODS = ("classical", "classical_tuned", "learned", "matched")


class Found(NamedTuple):
    """What an estimator did in one case at one severity."""

    case: str
    severity: float
    method: str
    error_m: Floats  # [scene] of the user
    over_peb: Floats  # [scene] the same over the bound, which knows noise and clocks and no tail
    nmse_db: Floats  # [scene]
    seconds: float  # CPU time per scene
    setting: str  # what was chosen or learned
    parameters: int
    training_scenes: int


class Matched(AdaptedEstimator):
    """Knows the true noise and clock deviation, and the power, decay and onset of the tail in every scene."""

    needs_truth = True

    def __init__(self, simulator: Simulator, base: LocationEstimator) -> None:
        parts: dict[str, Any] = {"detector": base.detector, "localizer": base.localizer, "unrolled": base.unrolled}
        surroundings = Surroundings(len(simulator.deployment.bs_position))
        super().__init__(surroundings, "matched", joint_false_alarm=base.joint_false_alarm, **parts)
        self.simulator = simulator
        with torch.no_grad():
            self.surroundings.clock.fill_(float(np.log(simulator.impairments.clock_factor)))

    def forward(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """See `Estimator`."""
        assert truth is not None
        assert truth.scene is not None
        known, sizes = observation._replace(noise_var=truth.true_noise_var), self.simulator.impairments
        if sizes.diffuse:
            specular = scene_paths(truth.scene, deployment)
            channel = channel_response(specular, deployment)
            tail = sizes.diffuse * channel.abs().square().mean((-2, -1)) / known.noise_var
            delay = torch.where(specular.mask, specular.delay, torch.inf).amin(-1)
            onset_m = SPEED_OF_LIGHT * torch.where(delay.isfinite(), delay, torch.zeros_like(delay))
            power, basis = torch.linalg.eigh(profile_covariance(sizes.diffuse_decay_m, deployment.pilot_freq))
            spectrum = 1.0 + tail[..., None] * power.clamp_min(0.0)
            known = known._replace(whitener=whitener(spectrum, basis, onset_m, deployment))
        return self.located(known, deployment)


def mismatch(
    build: Build,
    folder: str | Path,
    cases: Mapping[str, Mapping[str, Any]],
    candidates: Mapping[str, Sequence[Mapping[str, Any]]],
    severities: Sequence[float] = (1.0,),
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
        build: builds scenes.
        folder: run folder, made if absent.
        cases: by name, values of the configuration that differ, by dotted key.
        candidates: by case, settings that the tuning tries beside the estimator as it is: `noise: estimated`,
            `noise_factor` and `clock_factor` on what the estimator is told.
        severities: of the impairments.
        methods: out of `METHODS`.
        snr_db: of the nominal noise [dB].
        num_scenes: test scenes of each case and severity.
        train_scenes: scenes that surroundings are learned from, without labels.
        val_scenes: scenes that candidates are compared on, with labels.
        batch_size: scenes at once.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    if not cases or set(cases) != set(candidates):
        raise ConfigError(f"task.candidates must hold those of task.cases {sorted(cases)}, got {sorted(candidates)}")
    if not methods or not set(methods) <= set(METHODS):
        raise ConfigError(f"task.methods must be out of {list(METHODS)}, got {list(methods)}")
    for name, count in (("num_scenes", num_scenes), ("train_scenes", train_scenes), ("val_scenes", val_scenes)):
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"task.{name} must be a whole number >= 1, got {count!r}")
    severity_key = "impairments.severity"
    plans = [
        (case, float(severity), build.varied({**values, severity_key: severity}))
        for case, values in cases.items()
        for severity in severities
    ]
    simulators = [plan.simulator() for _, _, plan in plans]
    classical = {key: value for key, value in build.value("available.classical").items() if key != "_target_"}
    found: list[Found] = []
    with progress_bar(progress) as bar:
        steps = num_scenes + ("classical_tuned" in methods) * val_scenes + ("learned" in methods) * train_scenes
        task = bar.add_task("mismatch", total=steps * len(plans))
        for (case, severity, _), simulator in zip(plans, simulators, strict=True):
            bar.update(task, description=f"{case} at severity {severity:g}")
            base = build_estimator(**classical)
            built: dict[str, tuple[LocationEstimator, str]] = {}
            if "classical" in methods:
                built["classical"] = base, "as it is"
            if "classical_tuned" in methods:
                built["classical_tuned"] = _tuned(base, simulator, candidates[case], snr_db, val_scenes, batch_size)
                bar.advance(task, val_scenes)
            if "learned" in methods:
                built["learned"] = _learned(base, simulator, snr_db, train_scenes, batch_size)
                bar.advance(task, train_scenes)
            if "matched" in methods:
                built["matched"] = Matched(simulator, base), "true law"
            parts: dict[str, list[tuple[Floats, Floats, Floats]]] = {name: [] for name in built}
            seconds = dict.fromkeys(built, 0.0)
            for indices in _batches(num_scenes, batch_size):
                example = simulator.examples("test", indices, snr_db)
                for name, (estimator, _) in built.items():
                    began = time.process_time()
                    parts[name].append(_scores(estimator, example, simulator))
                    seconds[name] += (time.process_time() - began) / num_scenes
                bar.advance(task, len(indices))
            for name, (estimator, setting) in built.items():
                error, ratio, nmse = (np.concatenate(each) for each in zip(*parts[name], strict=True))
                learned = sum(p.numel() for p in estimator.surroundings.parameters()) if name == "learned" else 0  # type: ignore
                scenes = {"learned": train_scenes, "classical_tuned": val_scenes}.get(name, 0)
                found.append(Found(case, severity, name, error, ratio, nmse, seconds[name], setting, learned, scenes))
    write_mismatch(found, Path(folder), settings, command, notes)
    return found


def _batches(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


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


def _tuned(
    base: LocationEstimator,
    simulator: Simulator,
    candidates: Sequence[Mapping[str, Any]],
    snr_db: float,
    scenes: int,
    batch_size: int,
) -> tuple[LocationEstimator, str]:
    """The candidate with the least mean error on validation scenes, and what it is."""
    tried: list[tuple[float, LocationEstimator, str]] = []
    for candidate in ({}, *candidates):
        estimator = _candidate(base, simulator, candidate)
        errors = [
            _scores(estimator, simulator.examples("val", indices, snr_db), simulator)[0]
            for indices in _batches(scenes, batch_size)
        ]
        text = ", ".join(f"{key} {value}" for key, value in candidate.items()) or "as it is"
        tried.append((float(np.concatenate(errors).mean()), estimator, text))
    _, estimator, text = min(tried, key=lambda each: each[0])
    return estimator, text


def _candidate(base: LocationEstimator, simulator: Simulator, candidate: Mapping[str, Any]) -> LocationEstimator:
    if unknown := set(candidate) - {"noise", "noise_factor", "clock_factor"}:
        raise ConfigError(f"task.candidates must hold noise, noise_factor, clock_factor, got {sorted(unknown)}")
    if candidate.get("noise") == "estimated":
        parts = base.detector, base.localizer, base.unrolled
        return LocationEstimator(*parts, noise="estimated", joint_false_alarm=base.joint_false_alarm)
    surroundings = Surroundings(len(simulator.deployment.bs_position))
    with torch.no_grad():
        surroundings.noise.fill_(float(np.log(candidate.get("noise_factor", 1.0))))
        surroundings.clock.fill_(float(np.log(candidate.get("clock_factor", 1.0))))
    return adapted(base, surroundings)


def _learned(
    base: LocationEstimator, simulator: Simulator, snr_db: float, scenes: int, batch_size: int
) -> tuple[LocationEstimator, str]:
    """Surroundings learned from observations of training scenes, and what they are."""
    deployment = simulator.deployment
    estimator = adapted(base, Surroundings(len(deployment.bs_position)))
    observations = [simulator.examples("train", each, snr_db).observation for each in _batches(scenes, batch_size)]
    learn_surroundings(estimator, observations, deployment)
    learn_clock(estimator, observations, deployment)
    return estimator, estimator.surroundings.described()
