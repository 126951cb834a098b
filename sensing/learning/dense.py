"""The LightningModule that trains the turbo estimator of dense dictionaries."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensing.baselines.sparse import genie
from sensing.data.dictionary import SparseTask
from sensing.inference.dense_turbo import DenseTurbo, Recovered
from sensing.learning.blocks import BlockLearner
from sensing.losses import GenieRatioLoss
from sensing.pretrained import SUFFIX, checkpoint_path
from sensing.pretrained.files import read_weights


class DenseLearner(BlockLearner):
    """Settings are arguments of `DenseTurbo` and of `GenieRatioLoss`; see `TrainedModule`."""

    def build(self, estimator: dict[str, Any], loss: dict[str, Any]) -> None:
        """See `TrainedModule`."""
        self.turbo = DenseTurbo(**estimator)
        self.loss = GenieRatioLoss(**loss)

    def run(self, task: SparseTask) -> Recovered:
        """Gains of a batch."""
        noise_var = task.problems.noise_var
        return self.turbo(task.dictionary, task.matched, task.energy, task.entries, noise_var)

    def validation_step(self, task: SparseTask, batch_idx: int) -> None:
        """Collect errors per problem."""
        found = self.run(task)
        nmse, floor = task.nmse(found.mean), self._floor(task)
        self.seen.append({"loss": self.losses(task, found), "nmse": nmse, "over_genie": nmse / floor})

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss, and how far above the genie in dB: mean of the decibels, and decibels of the mean ratio."""
        return {
            "loss": seen["loss"].mean(),
            "above_genie_db": 10.0 * seen["over_genie"].log10().mean(),
            "mean_above_genie_db": 10.0 * seen["over_genie"].mean().log10(),
        }

    def losses(self, task: SparseTask, found: Recovered) -> Tensor:
        """See `BlockLearner`."""
        return self.loss([task.nmse(mean) for mean in found.history], self._floor(task))

    @staticmethod
    def _floor(task: SparseTask) -> Tensor:
        """Error of the genie, [*]."""
        problems = task.problems
        return task.nmse(genie(task.dictionary.gram, task.matched, problems.noise_var, problems.support))


def training_samples(name: str | Path) -> int:
    """Problems that a checkpoint of `DenseLearner`, or weights that it exported, were trained on.

    Args:
        name: as for `DenseLearner.load`.
    """
    path = checkpoint_path(name)
    if path.suffix == SUFFIX:
        config: dict[str, Any] = read_weights(path).about["config"]
        data, epochs = config["data"], config["trainer"]["max_epochs"]
        return int(data["batch_size"] * data["batches_per_epoch"] * epochs)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return int(saved["global_step"] * saved["hyper_parameters"]["trained_on"]["data"]["batch_size"])
