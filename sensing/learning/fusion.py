"""The LightningModule that trains the learned fusion end to end."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensing.data.drops import DropTask
from sensing.errors import NumericalError
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.solve import Solution
from sensing.fusion.start import start_position
from sensing.learning.learner import arguments
from sensing.learning.module import TrainedModule
from sensing.losses import FusionLoss


class FusionLearner(TrainedModule):
    """Learned fusion, its loss and optimizer.

    Args:
        estimator: arguments of `LearnedFusion`.
        loss: arguments of `FusionLoss`.
        optimizer: as for `Learner`.
        trained_on: law of its drops, as plain containers; recorded in checkpoints and otherwise unused.
    """

    def __init__(
        self,
        estimator: Mapping[str, Any],
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        trained_on: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.fusion = LearnedFusion(**arguments(estimator))
        self.loss = FusionLoss(**arguments(loss))

    def run(self, task: DropTask) -> list[Solution]:
        """Solutions after each correction."""
        start = start_position(task.drops.measured, task.domain)
        return [each[0] for each in self.fusion.iterates(task.drops.measured, task.domain, start)[1:]]

    def training_step(self, task: DropTask, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss = self._losses(task, self.run(task)).mean()
        if not torch.isfinite(loss):
            raise NumericalError(f"loss must be finite, got {float(loss)} in block {task.number}")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(task.drops.position))
        return loss

    def validation_step(self, task: DropTask, batch_idx: int) -> None:
        """Collect errors per drop."""
        solutions = self.run(task)
        error = (solutions[-1].position - task.drops.position).norm(dim=-1)
        self.seen.append({"loss": self._losses(task, solutions), "error": error})

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and errors."""
        quantiles = {f"error_m_{level}": seen["error"].quantile(level / 100) for level in (50, 80, 90)}
        return {"loss": seen["loss"].mean(), "error_m_rms": seen["error"].square().mean().sqrt()} | quantiles

    def _losses(self, task: DropTask, solutions: list[Solution]) -> Tensor:
        positions, informations = zip(*[(each.position, each.information) for each in solutions], strict=True)
        return self.loss(positions, informations, task.drops.position, task.domain.unknown)
