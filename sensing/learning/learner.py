"""The LightningModule that trains an unfolded estimator end to end."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from sensing.containers import Geometry
from sensing.data.scenes import Task
from sensing.errors import CheckpointError, ConfigError, NumericalError
from sensing.estimator import LocationEstimator, build_estimator
from sensing.inference.iteration import column_operator
from sensing.inference.unrolled import Refined
from sensing.losses import BoundNormalisedLoss
from sensing.metrics import nmse_db


class Learner(lightning.LightningModule):
    """Estimator, loss and optimizer, rebuilt from a checkpoint alone (the settings are plain containers).

    Args:
        estimator: arguments of `build_estimator`.
        loss: arguments of `BoundNormalisedLoss`.
        optimizer: `_target_`, a class of torch.optim, its arguments, `final_lr_fraction` of the cosine schedule, and
            `layer_lr_fraction`, the step size of corrections of single layers relative to that of all others.
        trained_on: what its scenes are made of, as plain containers; recorded in checkpoints and otherwise unused.
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
        self.estimator: LocationEstimator = build_estimator(**_arguments(estimator))
        self.loss = BoundNormalisedLoss(**_arguments(loss))
        self.skipped_steps = 0
        self._seen: list[dict[str, Tensor]] = []

    @classmethod
    def load(cls, path: str | Path) -> "Learner":
        """Read a checkpoint written by train.py, in evaluation mode.

        Raises:
            CheckpointError: not a checkpoint of this class, or of another architecture.
        """
        try:
            learner = cls.load_from_checkpoint(str(path), map_location="cpu", weights_only=True).eval()
        except FileNotFoundError as error:
            raise CheckpointError(f"checkpoint must be an existing file, got {path}") from error
        except Exception as error:  # whatever torch, pickle or zipfile raise, depending on what is broken
            lines = str(error).strip().splitlines()[:2]  # the second names the fields
            reason = " ".join(line.strip() for line in lines)
            raise CheckpointError(
                f"checkpoint must be written by train.py for this version's architecture, got {path}: "
                f"{type(error).__name__}: {reason[:300]}"
            ) from error
        bad = [name for name, value in learner.named_parameters() if not torch.isfinite(value).all()]
        if bad:
            raise CheckpointError(f"checkpoint must hold finite parameters, got non-finite {', '.join(bad)} in {path}")
        return learner

    def run(self, task: Task, history: bool = False) -> tuple[Refined, Geometry]:
        """Refine a batch from its start, or from the front end's where it has none; returns that start too."""
        start, observation = task.start, task.example.observation
        if start is None:
            with torch.no_grad():
                observation, paths = self.estimator.detect(observation, task.deployment)
            start = self.estimator.localizer(paths, task.deployment).geometry
        return self.estimator.unrolled(observation, task.deployment, start, history), start

    def training_step(self, task: Task, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        refined, start = self.run(task, history=True)
        channel = _channel(refined)
        iterates = [each.geometry.ue_position for each in refined.history]
        coarse = start.ue_position if task.start is None else None
        terms = self.loss(iterates, channel, task.example, task.peb, coarse)
        if not torch.isfinite(terms["total"]):
            bad = [name for name, value in terms.items() if not torch.isfinite(value)]
            raise NumericalError(f"loss must be finite, got {bad} not finite for scenes {task.index.tolist()}")
        size = len(task.peb)
        self.log("train/loss", terms["total"], prog_bar=True, batch_size=size)
        self.log_dict(
            {f"train/loss_{name}": value for name, value in terms.items() if name != "total"}, batch_size=size
        )
        return terms["total"]

    def on_after_backward(self) -> None:
        """Leave out a step whose gradient is not finite; counted in train/skipped_steps."""
        bad = [name for name, p in self.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        if bad:
            self.skipped_steps += 1
            self.zero_grad()  # None, not zero: a zero gradient would still move the parameters by their momentum
        self.log("train/skipped_steps", float(self.skipped_steps))

    def on_validation_epoch_start(self) -> None:
        """Forget the scenes of the last epoch."""
        self._seen = []

    def validation_step(self, task: Task, batch_idx: int) -> None:
        """Collect per-scene errors; the metrics are taken over all scenes at once."""
        refined, _ = self.run(task, history=True)
        channel = _channel(refined)
        iterates = [each.geometry.ue_position for each in refined.history]
        terms = self.loss(iterates, channel, task.example, task.peb)
        assert task.example.scene is not None
        assert task.example.channel is not None
        error = (iterates[-1] - task.example.scene.ue_position).norm(dim=-1)
        nmse = nmse_db(channel, task.example.channel)
        loss = terms["total"].expand_as(error)
        self._seen.append({"loss": loss, "error": error, "peb": task.peb, "nmse": nmse})

    def on_validation_epoch_end(self) -> None:
        """Log loss, error over PEB and NMSE."""
        self._log_scenes("val")

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self._seen = []

    def test_step(self, task: Task, batch_idx: int) -> None:
        """As for validation."""
        self.validation_step(task, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As for validation."""
        self._log_scenes("test")

    def _log_scenes(self, stage: str) -> None:
        """Metrics over all scenes of this process's share."""
        seen = {name: torch.cat([each[name] for each in self._seen]) for name in self._seen[0]}
        observable = torch.isfinite(seen["peb"])
        ratio = seen["error"][observable] / seen["peb"][observable]
        linear = 10.0 ** (seen["nmse"] / 10.0)
        values = {
            "loss": seen["loss"].mean(),
            "error_over_peb_rms": ratio.square().mean().sqrt(),
            "error_over_peb_median": ratio.median(),
            "converged": (ratio < 3.0).double().mean(),
            "error_m_rms": seen["error"].square().mean().sqrt(),
            "nmse_db": 10.0 * torch.log10(linear.mean()),
        }
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, prog_bar=False, sync_dist=True)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the settings over the learnable parameters.

        Raises:
            ConfigError: torch.optim has no such class, or it refuses its arguments.
        """
        settings = dict(self.hparams["optimizer"])
        settings.pop("final_lr_fraction", None)
        share = settings.pop("layer_lr_fraction", 1.0)
        name = str(settings.pop("_target_", "torch.optim.Adam")).rsplit(".", 1)[-1]
        kind = getattr(torch.optim, name, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise ConfigError(f"optimizer._target_ must be a class of torch.optim, got {name!r}")
        learned = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        lr = settings.get("lr", 1e-3)
        groups = [
            {"params": [p for name, p in learned if ".layers." not in name], "lr": lr},
            {"params": [p for name, p in learned if ".layers." in name], "lr": lr * share},
        ]
        try:
            return kind([group for group in groups if group["params"]], **settings)
        except Exception as error:  # whatever the class raises, depending on the argument
            raise ConfigError(f"optimizer must fit torch.optim.{name}, got {settings}: {error}") from error

    def configure_optimizers(self) -> Any:
        """The optimizer, its step size falling along a cosine."""
        optimizer, last = self.build_optimizer(), self.hparams["optimizer"].get("final_lr_fraction", 1.0)
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * min(step / total, 1.0)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "_target_"}


def _channel(refined: Refined) -> Tensor:
    """Channel of the final evaluation, [* bs ant sc]."""
    final = refined.final
    return column_operator(final.geometry, refined.problem.deployment).matvec(final.expectation.mean)
