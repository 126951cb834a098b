"""What learners share whose batches are blocks of problems that need no layers in their error messages."""

from typing import Any

import torch
from torch import Tensor

from sensing.errors import NumericalError
from sensing.learning.module import TrainedModule


class BlockLearner(TrainedModule):
    """Minimises the mean over a block of `losses` of what `run` makes of it."""

    def run(self, task: Any) -> Any:
        """What is estimated in a block."""
        raise NotImplementedError

    def losses(self, task: Any, found: Any) -> Tensor:
        """Loss of each problem of a block, [*]."""
        raise NotImplementedError

    def training_step(self, task: Any, batch_idx: int) -> Tensor:
        """Loss of one block."""
        losses = self.losses(task, self.run(task))
        loss = losses.mean()
        if not torch.isfinite(loss):
            raise NumericalError(f"loss must be finite, got {float(loss)} in block {task.number}")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(losses))
        return loss
