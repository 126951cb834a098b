"""Runs several estimators on one batch, each front end in use once, and times them."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from sensing.baselines import Detector
from sensing.coarse.detection import PathDetector
from sensing.coarse.noise import check_noise, detect
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates
from sensing.errors import ConfigError, MissingTruthError


class Timed(NamedTuple):
    """An estimate and what it cost."""

    estimate: Estimate
    seconds: float  # per scene, the time of its front end included


class Runner:
    """Estimators that share front ends.

    An estimator names its front end by the attribute `front_end` (`nomp` where it has none); None: it needs no paths.
    An estimator that needs a truth which the data do not hold raises MissingTruthError: it is left out from then on,
    and `left_out` says why. Every other error is a defect and is not caught.

    Args:
        estimators: by the name in the tables.
        front_ends: by name, `detector(observation, deployment) -> PathEstimates`; an estimator whose front end is not
            among them runs its own.
        deployment: on the device on which the estimators run.
        noise: `known`, or `estimated` by the front end for all estimators but those that know the truth anyway.
    """

    def __init__(
        self,
        estimators: Mapping[str, Any],
        front_ends: Mapping[str, Detector],
        deployment: Deployment,
        noise: str = "known",
    ) -> None:
        if not estimators:
            raise ConfigError("an evaluation needs at least one estimator, got none")
        self.noise = check_noise(noise)
        self.estimators, self.front_ends, self.deployment = dict(estimators), dict(front_ends), deployment
        self.left_out: dict[str, str] = {}

    def __call__(self, example: Example) -> dict[str, Timed]:
        """Estimates of a batch by name. No gradients are recorded, but an estimator may enable them inside."""
        scenes, results = len(example.observation.y), {}
        with torch.no_grad():
            wanted = {front_end(each) for each in self.estimators.values() if not _is_genie(each)}
            shared = {name: self._timed(self._front, name, example.observation) for name in wanted}
            for name, estimator in list(self.estimators.items()):
                untouched = (example.observation, None), 0.0
                (observation, paths), before = untouched if _is_genie(estimator) else shared[front_end(estimator)]
                arguments = {"paths": paths, "truth": example if _needs_truth(estimator) else None}
                try:
                    estimate, own = self._timed(estimator, observation, self.deployment, **arguments)
                except MissingTruthError as error:
                    self.left_out[name] = str(error)
                    del self.estimators[name]
                    continue
                results[name] = Timed(estimate, (before + own) / scenes)
        return results

    def _front(self, name: str | None, observation: Observation) -> tuple[Observation, PathEstimates | None]:
        """Observation, with the noise variance to be used, and paths of a front end; None where it is not shared."""
        if name in self.front_ends:
            return detect(observation, self.deployment, self.front_ends[name], self.noise)
        if self.noise == "estimated":
            return detect(observation, self.deployment, PathDetector(), self.noise)[0], None
        return observation, None

    def _timed(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
        device = self.deployment.bs_position.device
        _synchronize(device)
        start = time.perf_counter()
        result = function(*arguments, **named)
        _synchronize(device)
        return result, time.perf_counter() - start


def front_end(estimator: Any) -> str | None:
    """Name of the front end whose paths an estimator takes; None where it needs none."""
    name: str | None = getattr(estimator, "front_end", "nomp")
    return name


def _needs_truth(estimator: Any) -> bool:
    return getattr(estimator, "needs_truth", False)


def _is_genie(estimator: Any) -> bool:
    """It knows the truth and takes no paths: neither front end nor noise estimate are for it."""
    return _needs_truth(estimator) and front_end(estimator) is None


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, whose calls return before the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
