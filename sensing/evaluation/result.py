"""What an evaluation found: every error of every estimator in every scene, and the bounds beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensing.containers import Deployment, Estimate, Example, Scene, map_tensors
from sensing.evaluation.scores import CUTOFF_M
from sensing.evaluation.statistics import Floats
from sensing.metrics import converged


@dataclass(frozen=True)
class SceneSketch:
    """One scene with what each estimator made of it, for the map. Everything without batch axes, on the CPU."""

    deployment: Deployment
    scene: Scene | None
    estimates: dict[str, Estimate]
    index: int
    snr_db: float | None
    remark: str = ""  # why this scene


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Errors per scene for one law of the clock offsets.

    A scene set read from a file is a sweep with one SNR, which may be unknown (None).

    Attributes:
        snr_db: SNR points [dB].
        scenes: scene numbers.
        scores: estimator to quantity to [snr, scene]; quantities are named in `sensing.evaluation.scores`.
        bounds: `peb` and `peb_sync` to quantity to [snr, scene]; empty where the truth does not give the bound.
        reference: estimator to the bound that its error is divided by.
        left_out: estimator to the reason why it did not run.
        seed: of the scenes and the noise; None for a file.
        split: train, val, test, or the name of a file.
        sigma_over_bandwidth: deviation of the prior of the clock offsets [1 / bandwidth]; inf: flat.
        num_stations: of the deployment.
        cutoff_m: distance at which a scatterer counts as missed [m].
        sketch: one scene for the map.
    """

    snr_db: list[float | None]
    scenes: list[int]
    scores: dict[str, dict[str, Floats]]
    bounds: dict[str, dict[str, Floats]] = field(default_factory=dict)
    reference: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    split: str = "test"
    sigma_over_bandwidth: float = math.nan
    num_stations: int = 0
    cutoff_m: float = CUTOFF_M
    sketch: SceneSketch | None = None

    @property
    def names(self) -> list[str]:
        """Estimators that ran, in the order in which they were asked for."""
        return list(self.scores)

    def over_bound(self, estimator: str) -> Floats | None:
        """User error over the position error bound of the problem that the estimator solves, [snr, scene]."""
        error = self.scores[estimator].get("ue_error_m")
        bound = self.bounds.get(self.reference.get(estimator, "peb"), {}).get("ue_error_m")
        if error is None or bound is None:
            return None
        return np.divide(error, bound, out=np.full_like(error, np.nan), where=np.isfinite(bound) & (bound > 0))

    def converged(self, estimator: str) -> NDArray[np.bool_] | None:
        """Error below three times that bound, [snr, scene]; a failed scene (NaN) did not converge."""
        ratio = self.over_bound(estimator)
        if ratio is None:
            return None
        return converged(torch.from_numpy(ratio), torch.ones(())).numpy()

    def flagged(self, estimator: str) -> NDArray[np.bool_] | None:
        """The estimator doubts its own solution, [snr, scene]."""
        flags = self.scores[estimator].get("flags")
        return None if flags is None else flags != 0


class ScoreTable:
    """Collects per-scene values of a run batch by batch into [snr, scene] arrays; what never came stays NaN."""

    def __init__(self, num_snr: int, num_scenes: int) -> None:
        self.shape = (num_snr, num_scenes)
        self.values: dict[str, dict[str, Floats]] = {}

    def put(self, name: str, row: int, columns: slice, values: Mapping[str, Tensor | float]) -> None:
        """Store the values of a batch: name to quantity to [scene]."""
        entry = self.values.setdefault(name, {})
        for quantity, value in values.items():
            array = entry.setdefault(quantity, np.full(self.shape, np.nan))
            array[row, columns] = value.detach().cpu().numpy() if isinstance(value, Tensor) else value

    def drop(self, name: str) -> None:
        """Forget an estimator that turned out not to apply."""
        self.values.pop(name, None)


def sketch_scene(
    deployment: Deployment,
    example: Example,
    estimates: dict[str, Estimate],
    errors: dict[str, Tensor],
    numbers: Sequence[int],
    snr_db: float | None,
    scene: int | None = None,
) -> SceneSketch:
    """Keep one scene of a batch for the map.

    Args:
        deployment: the stations.
        example: the batch.
        estimates: of the batch, by estimator.
        errors: user error [scene] of those that have one.
        numbers: of the batch's scenes.
        snr_db: of the batch.
        scene: which one; the default is one that is typical, with the median error of the first estimator.
    """
    remark, at = "", 0 if scene is None else min(scene, len(example.observation.y) - 1)
    if scene is None and errors:
        name, error = next(iter(errors.items()))
        remark, at = f", median error of {name}", int(error.nan_to_num(torch.inf).argsort()[(len(error) - 1) // 2])

    def pick(tensor: Tensor) -> Tensor:
        return tensor[at].detach().cpu()

    picked = {name: map_tensors(estimate, pick) for name, estimate in estimates.items()}
    plan = map_tensors(deployment, lambda tensor: tensor.detach().cpu())
    truth = None if example.scene is None else map_tensors(example.scene, pick)
    return SceneSketch(plan, truth, picked, numbers[at], snr_db, remark)
