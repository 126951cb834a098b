"""The estimators that the task `mismatch` compares: tuned with labels, learned without them, and told the truth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sensing.adapted_estimator import AdaptedEstimator, adapted
from sensing.channel import channel_response, scene_paths
from sensing.coarse.surroundings import Surroundings, whitener
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates
from sensing.estimator import LocationEstimator
from sensing.evaluation.task import Build
from sensing.ofdm import profile_covariance
from sensing.simulation import Simulator
from sensing.surroundings_fit import learn_clock, learn_surroundings
from sensing.units import SPEED_OF_LIGHT


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


def tuned(
    build: Build, candidates: Sequence[Mapping[str, Any]], error: Callable[[LocationEstimator], float]
) -> tuple[LocationEstimator, str]:
    """The candidate with the least error, and what it is; the estimator as it is comes first.

    Args:
        build: builds the estimator.
        candidates: settings of each, see `candidate`.
        error: of an estimator on validation scenes.
    """
    tried = [candidate(build, each) for each in ({}, *candidates)]
    errors = [error(each) for each in tried]
    best = int(np.argmin(errors))
    return tried[best], ", ".join(f"{key}={value}" for key, value in ({}, *candidates)[best].items()) or "as it is"


def candidate(build: Build, settings: Mapping[str, Any]) -> LocationEstimator:
    """The classical estimator with other settings.

    Args:
        build: builds it.
        settings: `noise: estimated`; `noise_factor` and `clock_factor` on what it is told; or values of the
            configuration by dotted key.
    """
    told = {key: float(settings[key]) for key in ("noise_factor", "clock_factor") if key in settings}
    varied = {key: value for key, value in settings.items() if key not in told}
    plan = build.varied(varied) if varied else build
    base = plan.classical()
    if not told:
        return base
    surroundings = Surroundings(len(plan.simulator().deployment.bs_position))
    with torch.no_grad():
        surroundings.noise.fill_(float(np.log(told.get("noise_factor", 1.0))))
        surroundings.clock.fill_(float(np.log(told.get("clock_factor", 1.0))))
    return adapted(base, surroundings)


def learned(
    base: LocationEstimator, simulator: Simulator, snr_db: float, batches: Sequence[range]
) -> tuple[AdaptedEstimator, str]:
    """Surroundings learned from observations of training scenes, and what they are."""
    deployment = simulator.deployment
    estimator = adapted(base, Surroundings(len(deployment.bs_position)))
    observations = [simulator.examples("train", each, snr_db).observation for each in batches]
    learn_surroundings(estimator, observations, deployment)
    learn_clock(estimator, observations, deployment)
    return estimator, estimator.surroundings.described()
