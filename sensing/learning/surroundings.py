"""Surroundings as a training: every epoch is one pass over the same unlabelled scenes.

All epochs but the last detect the paths and fit noise and tail to what they leave over; the last one locates the scenes
under a flat prior and takes the deviation of the clocks from the offsets. See `sensing.surroundings_fit`.
"""

from typing import Any

import torch
from torch import Tensor

from sensing.adapted_estimator import AdaptedEstimator, build_adapted
from sensing.data.scenes import Task
from sensing.errors import ConfigError
from sensing.learning.learner import scene_measures
from sensing.learning.module import TrainedModule
from sensing.learning.updates import take_update, unit_steps
from sensing.metrics import nmse_db
from sensing.surroundings_fit import OffsetStatistics, ResidualStatistics, log_likelihood


class SurroundingsLearner(TrainedModule):
    """The classical estimator with surroundings, fitted to observations without labels.

    Settings are arguments of `build_adapted`, no loss (validation reports the negative log likelihood per entry), and
    in place of an optimizer `clock`: whether the last epoch learns the deviation of the clocks, which needs a prior.
    """

    def build(self, estimator: dict[str, Any], loss: dict[str, Any]) -> None:
        """See `TrainedModule`.

        Raises:
            ConfigError: no surroundings to be learned, or another setting.
        """
        if not estimator.get("surroundings"):
            raise ConfigError("estimator.surroundings must name the stations, got none (estimator=adapted)")
        self.estimator: AdaptedEstimator = build_adapted(**estimator)
        self.automatic_optimization = False
        self.estimator.requires_grad_(False)
        self.estimator.surroundings.requires_grad_(True)  # it is what is learned, though not by gradients of a loss
        self.build_optimizer()

    def build_optimizer(self) -> None:  # type: ignore[override]
        """Read and check the one setting."""
        settings = {"clock": True, **self.hparams["optimizer"]}
        if settings.keys() != {"clock"} or not isinstance(settings["clock"], bool):
            raise ConfigError(
                f"optimizer of surroundings must have clock, true or false (optimizer=likelihood), got {settings}"
            )
        self.clock = settings["clock"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See `take_update`."""
        return unit_steps(self.estimator.surroundings)

    def on_train_epoch_start(self) -> None:
        """Empty sums."""
        self.statistics: ResidualStatistics | OffsetStatistics | None = None

    def training_step(self, task: Task, batch_idx: int) -> None:
        """Sums of one batch; after the last one the update."""
        if self.statistics is None:
            last = self.clock and self.current_epoch == (self.trainer.max_epochs or 0) - 1
            self.statistics = (
                OffsetStatistics(self.estimator, task.deployment)
                if last
                else ResidualStatistics(self.estimator, task.deployment, first=self.current_epoch == 0)
            )
        self.statistics.add(task.example.observation)
        if self.trainer.is_last_batch:
            take_update(self, self.estimator.surroundings, self.statistics.learn)

    def on_after_backward(self) -> None:
        """There is no gradient."""

    def validation_step(self, task: Task, batch_idx: int) -> None:
        """The negative log likelihood per entry, and errors."""
        observation, paths = self.estimator.detect(task.example.observation, task.deployment)
        estimate = self.estimator.located(observation, task.deployment, paths)
        likelihood = log_likelihood(observation, paths, task.deployment)
        assert task.example.scene is not None
        assert task.example.channel is not None
        assert estimate.ue_position is not None
        error = (estimate.ue_position - task.example.scene.ue_position).norm(dim=-1)
        nmse = nmse_db(estimate.channel, task.example.channel)
        self.seen.append({"loss": -likelihood, "error": error, "peb": task.peb, "nmse": nmse})

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss, error over PEB and NMSE, as for every learner of scenes."""
        return scene_measures(seen)
