"""The LightningModule that trains the learned fusion end to end."""

from typing import Any

from torch import Tensor

from sensing.data.drops import DropTask
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.solve import Solution
from sensing.fusion.start import start_position
from sensing.learning.blocks import BlockLearner
from sensing.losses import FusionLoss


class FusionLearner(BlockLearner):
    """Settings are arguments of `LearnedFusion` and of `FusionLoss`; see `TrainedModule`."""

    def build(self, estimator: dict[str, Any], loss: dict[str, Any]) -> None:
        """See `TrainedModule`."""
        self.fusion = LearnedFusion(**estimator)
        self.loss = FusionLoss(**loss)

    def run(self, task: DropTask) -> list[Solution]:
        """Solutions after each correction."""
        start = start_position(task.drops.measured, task.domain)
        return [each[0] for each in self.fusion.iterates(task.drops.measured, task.domain, start)[1:]]

    def validation_step(self, task: DropTask, batch_idx: int) -> None:
        """Collect errors per drop."""
        solutions = self.run(task)
        error = (solutions[-1].position - task.drops.position).norm(dim=-1)
        self.seen.append({"loss": self.losses(task, solutions), "error": error})

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and errors."""
        quantiles = {f"error_m_{level}": seen["error"].quantile(level / 100) for level in (50, 80, 90)}
        return {"loss": seen["loss"].mean(), "error_m_rms": seen["error"].square().mean().sqrt()} | quantiles

    def losses(self, task: DropTask, solutions: list[Solution]) -> Tensor:
        """See `BlockLearner`."""
        positions, informations = zip(*[(each.position, each.information) for each in solutions], strict=True)
        return self.loss(positions, informations, task.drops.position, task.domain.unknown)
