"""The LightningModule that trains an unfolded estimator end to end."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensing.containers import Geometry
from sensing.data.scenes import Task
from sensing.estimator import LocationEstimator, build_estimator
from sensing.inference.iteration import column_operator
from sensing.inference.unrolled import Refined
from sensing.learning.module import TrainedModule
from sensing.losses import BoundNormalisedLoss
from sensing.metrics import nmse_db


class Learner(TrainedModule):
    """Settings are arguments of `build_estimator` and of `BoundNormalisedLoss`; see `TrainedModule`."""

    def build(self, estimator: dict[str, Any], loss: dict[str, Any]) -> None:
        """See `TrainedModule`."""
        self.estimator: LocationEstimator = build_estimator(**estimator)
        self.loss = BoundNormalisedLoss(**loss)
        self.scenes_seen: Tensor
        self.register_buffer("scenes_seen", torch.zeros((), dtype=torch.float64))

    def run(self, task: Task, history: bool = False) -> tuple[Refined, Geometry]:
        """Refine a batch from its start, or from the front end's where it has none; returns that start too."""
        start, observation = task.start, self.estimator.calibrated(task.example.observation)
        if start is None:
            with torch.no_grad():
                observation, paths = self.estimator.detect(observation, task.deployment)
            start = self.estimator.localizer(paths, task.deployment).geometry
        return self.estimator.unrolled(observation, task.deployment, start, history), start

    def training_step(self, task: Task, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        refined, start = self.run(task, history=True)
        channel = self.estimator.observed(channel_of(refined))
        iterates = [each.geometry.ue_position for each in refined.history]
        coarse = start.ue_position if task.start is None else None
        epochs = self.loss.layerwise_epochs
        progress = min(1.0, (self.current_epoch + 1) / epochs) if epochs else 1.0
        terms = self.loss(iterates, channel, task.example, task.peb, coarse, progress, scatterers_of(refined))
        if not torch.isfinite(terms["total"]):
            bad = [name for name, value in terms.items() if not torch.isfinite(value)]
            where = _not_finite(refined) or ["in no layer"]
            raise self.diverged(f"loss must be finite, got {bad} not finite for scenes {task.index.tolist()}", where)
        size = len(task.peb)
        self.scenes_seen += size * (1 if self._trainer is None else self._trainer.world_size)
        self.log("train/loss", terms["total"], prog_bar=True, batch_size=size)
        self.log_dict(
            {f"train/loss_{name}": value for name, value in terms.items() if name != "total"}, batch_size=size
        )
        return terms["total"]

    def validation_step(self, task: Task, batch_idx: int) -> None:
        """Collect per-scene errors; the metrics are taken over all scenes at once."""
        refined, _ = self.run(task, history=True)
        channel = self.estimator.observed(channel_of(refined))
        iterates = [each.geometry.ue_position for each in refined.history]
        terms = self.loss(iterates, channel, task.example, task.peb, scatterers=scatterers_of(refined))
        assert task.example.scene is not None
        assert task.example.channel is not None
        error = (iterates[-1] - task.example.scene.ue_position).norm(dim=-1)
        nmse = nmse_db(channel, task.example.channel)
        loss = terms["total"].expand_as(error)
        self.seen.append({"loss": loss, "error": error, "peb": task.peb, "nmse": nmse})

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss, error over PEB and NMSE."""
        return scene_measures(seen)


def scene_measures(seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Metrics from `loss`, `error` and `peb` [m] and `nmse` [dB] of scenes."""
    observable = torch.isfinite(seen["peb"])
    ratio = seen["error"][observable] / seen["peb"][observable]
    linear = 10.0 ** (seen["nmse"] / 10.0)
    return {
        "loss": seen["loss"].mean(),
        "error_over_peb_rms": ratio.square().mean().sqrt(),
        "error_over_peb_median": ratio.median(),
        "converged": (ratio < 3.0).double().mean(),
        "error_m_rms": seen["error"].square().mean().sqrt(),
        "nmse_db": 10.0 * torch.log10(linear.mean()),
    }


def _not_finite(refined: Refined) -> list[str]:
    """Layer and quantity of what is not finite, the first layer first."""
    found = []
    for number, each in enumerate(refined.history):
        quantities = {
            "ue_position": each.geometry.ue_position,
            "offset_m": each.geometry.offset_m,
            "node_position": each.geometry.node_position,
            "gain": torch.view_as_real(each.expectation.mean),
            "power": each.expectation.power,
            "curvature": each.system.curvature,
            "objective": each.objective,
        }
        found += [f"{name} of layer {number}" for name, value in quantities.items() if not torch.isfinite(value).all()]
    return found


def channel_of(refined: Refined) -> Tensor:
    """Channel of the final evaluation, [* bs ant sc]."""
    final = refined.final
    return column_operator(final.geometry, refined.problem.deployment).matvec(final.expectation.mean)


def scatterers_of(refined: Refined) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [* node xyz] [m], probabilities [* node] and mask [* node] of the located nodes."""
    geometry, posterior = refined.final.geometry, refined.final.expectation
    return geometry.node_position, posterior.node_log_odds.sigmoid(), geometry.node_mask
