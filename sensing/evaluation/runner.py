"""Runs several estimators on one batch, each front end in use once, and times them."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from sensing.baselines import Detector
from sensing.containers import Deployment, Estimate, Example, PathEstimates
from sensing.errors import ConfigError, DomainError


class Timed(NamedTuple):
    """An estimate and what it cost."""

    estimate: Estimate
    seconds: float  # per scene, the time of its front end included


class Runner:
    """Estimators that share front ends.

    An estimator names its front end by the attribute `front_end` (`nomp` where it has none); None: it needs no paths.
    An estimator that needs a truth which the data do not hold raises DomainError; it is left out from then on, and
    `left_out` says why. Every other error is a defect and is not caught.

    Args:
        estimators: by the name in the tables.
        front_ends: by name, `detector(observation, deployment) -> PathEstimates`; an estimator whose front end is not
            among them runs its own.
        deployment: on the device on which the estimators run.
    """

    def __init__(
        self, estimators: Mapping[str, Any], front_ends: Mapping[str, Detector], deployment: Deployment
    ) -> None:
        if not estimators:
            raise ConfigError("an evaluation needs at least one estimator, got none")
        self.estimators, self.front_ends, self.deployment = dict(estimators), dict(front_ends), deployment
        self.left_out: dict[str, str] = {}

    def __call__(self, example: Example) -> dict[str, Timed]:
        """Estimates of a batch by name. No gradients are recorded, but an estimator may enable them inside."""
        scenes, results = len(example.observation.y), {}
        with torch.no_grad():
            wanted = {front_end(estimator) for estimator in self.estimators.values()}
            shared: dict[str | None, tuple[PathEstimates, float]] = {
                name: self._timed(detector, example.observation, self.deployment)
                for name, detector in self.front_ends.items()
                if name in wanted
            }
            for name, estimator in list(self.estimators.items()):
                paths, before = shared.get(front_end(estimator), (None, 0.0))
                arguments = {"paths": paths, "truth": example if _needs_truth(estimator) else None}
                try:
                    estimate, own = self._timed(estimator, example.observation, self.deployment, **arguments)
                except DomainError as error:
                    if not _needs_truth(estimator):
                        raise
                    self.left_out[name] = str(error)
                    del self.estimators[name]
                    continue
                results[name] = Timed(estimate, (before + own) / scenes)
        return results

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


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, whose calls return before the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
