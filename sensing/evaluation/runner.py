"""Runs several estimators on one batch with one shared front end, and times them."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from sensing.baselines import Detector
from sensing.containers import Deployment, Estimate, Example
from sensing.errors import ConfigError, DomainError


class Timed(NamedTuple):
    """An estimate and what it cost."""

    estimate: Estimate
    seconds: float  # per scene, the shared front end included where the estimator uses it


class Runner:
    """Estimators that share a front end.

    An estimator that needs a truth which the data do not hold raises DomainError; it is left out from then on, and
    `left_out` says why. Every other error is a defect and is not caught.

    Args:
        estimators: by the name in the tables.
        detector: front end, `detector(observation, deployment) -> PathEstimates`; None: estimators run their own.
        deployment: on the device on which the estimators run.
    """

    def __init__(self, estimators: Mapping[str, Any], detector: Detector | None, deployment: Deployment) -> None:
        if not estimators:
            raise ConfigError("an evaluation needs at least one estimator, got none")
        self.estimators, self.detector, self.deployment = dict(estimators), detector, deployment
        self.left_out: dict[str, str] = {}

    def __call__(self, example: Example) -> dict[str, Timed]:
        """Estimates of a batch by name. No gradients are recorded, but an estimator may enable them inside."""
        scenes, paths, shared = len(example.observation.y), None, 0.0
        with torch.no_grad():
            if self.detector is not None and any(map(_uses_paths, self.estimators.values())):
                paths, shared = self._timed(self.detector, example.observation, self.deployment)
            results = {}
            for name, estimator in list(self.estimators.items()):
                arguments = {
                    "paths": paths if _uses_paths(estimator) else None,
                    "truth": example if _needs_truth(estimator) else None,
                }
                try:
                    estimate, own = self._timed(estimator, example.observation, self.deployment, **arguments)
                except DomainError as error:
                    if not _needs_truth(estimator):
                        raise
                    self.left_out[name] = str(error)
                    del self.estimators[name]
                    continue
                results[name] = Timed(estimate, (own + (shared if _uses_paths(estimator) else 0.0)) / scenes)
        return results

    def _timed(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
        device = self.deployment.bs_position.device
        _synchronize(device)
        start = time.perf_counter()
        result = function(*arguments, **named)
        _synchronize(device)
        return result, time.perf_counter() - start


def _uses_paths(estimator: Any) -> bool:
    return getattr(estimator, "uses_paths", True)


def _needs_truth(estimator: Any) -> bool:
    return getattr(estimator, "needs_truth", False)


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, whose calls return before the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
