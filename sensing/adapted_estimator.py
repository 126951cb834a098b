"""The estimator with learned surroundings; `sensing.surroundings_fit` learns them."""

from collections.abc import Mapping
from typing import Any

import torch

from sensing.coarse.surroundings import Surroundings
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates, in_double
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator, build_estimator, check_batch


class AdaptedEstimator(LocationEstimator):
    """`LocationEstimator` that corrects what it is told, and finds paths under coloured noise.

    Args:
        surroundings: learned corrections; untrained the estimator is the classical one, bit for bit.
        settings: of `LocationEstimator`.
    """

    front_end = None  # paths found under white noise are of no use

    def __init__(self, surroundings: Surroundings, name: str = "adapted", **settings: Any) -> None:
        super().__init__(name=name, **settings)
        self.surroundings = surroundings

    def detect(self, observation: Observation, deployment: Deployment) -> tuple[Observation, PathEstimates]:
        """Paths, and the observation with the learned noise variance and whitener."""
        return self.surroundings.detect(observation, deployment, self.detector)

    def forward(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """See `Estimator`; the caller's paths are ignored. The channel holds the tail's linear MMSE estimate too."""
        check_batch(observation, deployment)
        self.surroundings.check(deployment)
        with torch.no_grad():
            observation, paths = self.detect(observation, in_double(deployment))
        return self.located(observation, deployment, paths)

    def located(self, observation: Observation, deployment: Deployment, paths: PathEstimates | None = None) -> Estimate:
        """Estimate under the noise variance and whitener that an observation holds.

        Args:
            observation: as `detect` returns it.
            deployment: as told.
            paths: found under that noise; found here when None.
        """
        deployment = self.surroundings.told(in_double(deployment))
        if paths is None:
            with torch.no_grad():
                paths = self.detector(observation, deployment)
        return with_tail(super().forward(observation, deployment, paths), observation)


def adapted(base: LocationEstimator, surroundings: Surroundings) -> AdaptedEstimator:
    """An estimator with learned surroundings and the parts of another."""
    parts: dict[str, Any] = {"detector": base.detector, "localizer": base.localizer, "unrolled": base.unrolled}
    return AdaptedEstimator(surroundings, joint_false_alarm=base.joint_false_alarm, **parts)


def build_adapted(surroundings: Mapping[str, Any], name: str = "adapted", **settings: Any) -> AdaptedEstimator:
    """Estimator with untrained surroundings from plain settings, the form in which a checkpoint stores them.

    Args:
        surroundings: arguments of `Surroundings`.
        name: label in tables.
        settings: of `build_estimator`; the noise is known up to its correction, and the arrays are ideal.

    Raises:
        ConfigError: an argument that the part does not know, or a value that it refuses.
    """
    if settings.get("calibration") or settings.get("noise", "known") != "known":
        raise ConfigError("estimator=adapted corrects a known noise and no arrays: noise=known, calibration=null")
    try:
        learned = Surroundings(**surroundings)
    except TypeError as error:
        raise ConfigError(f"estimator.surroundings must hold arguments of Surroundings, got: {error}") from error
    estimator = adapted(build_estimator(**settings), learned)
    estimator.name = name
    return estimator


def with_tail(estimate: Estimate, observation: Observation) -> Estimate:
    """Adds to the channel the linear MMSE estimate of the tail, `(I - W^H W) (y - channel)` over the pilots."""
    if observation.whitener is None:
        return estimate
    rest = observation.y - estimate.channel
    noise = rest @ (observation.whitener.mT @ observation.whitener.conj()).to(rest.dtype)
    return estimate._replace(channel=estimate.channel + rest - noise)
