"""What all learners share: checkpoints, the guard of their steps, metrics over whole splits, and the optimizer."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning
import torch
from torch import Tensor

from sensing.errors import CheckpointError, ConfigError, NumericalError
from sensing.pretrained import SUFFIX, checkpoint_path
from sensing.pretrained.files import Weights, read_weights, write_weights

MOST_SKIPPED = 10
"""So many steps in a row without a finite gradient end a training: it has diverged."""


class TrainedModule(lightning.LightningModule):
    """A model with its loss and optimizer, rebuilt from a checkpoint alone (its settings are plain containers).

    A subclass defines `build`, `training_step`, `validation_step`, which appends per-scene tensors to `seen`, and
    `measures`.

    Args:
        estimator: settings of what is trained.
        loss: settings of its loss.
        optimizer: `_target_`, a class of torch.optim, its arguments, `final_lr_fraction` of the cosine schedule, and
            `layer_lr_fraction`, the step size of corrections of single layers relative to that of all others.
        trained_on: what its scenes are made of, as plain containers; recorded in checkpoints and otherwise unused.
    """

    exported_as: ClassVar[str] = ""
    """Class under which weights are exported and read, where that is another one of the same parameters."""

    def __init__(
        self,
        estimator: Mapping[str, Any],
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        trained_on: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.skipped_steps = self.skipped_in_a_row = 0
        self.seen: list[dict[str, Tensor]] = []
        self.build(_arguments(estimator), _arguments(loss))

    def build(self, estimator: dict[str, Any], loss: dict[str, Any]) -> None:
        """Make what is trained, and `self.loss`, of their arguments."""
        raise NotImplementedError

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metrics over all scenes of a split, from what validation steps kept of each."""
        raise NotImplementedError

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Read trained weights, in evaluation mode.

        Args:
            name: a checkpoint of train.py, weights that it exported, or the name of shipped ones.

        Raises:
            CheckpointError: no such file or name, or not of this class and architecture.
        """
        path = checkpoint_path(name)
        try:
            learner = cls._exported(path) if path.suffix == SUFFIX else cls._saved(path)
        except CheckpointError:
            raise
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
        return learner.eval()

    @classmethod
    def _saved(cls, path: Path) -> Self:
        """From a checkpoint of Lightning."""
        saved = torch.load(path, map_location="cpu", weights_only=True).get("learner")
        if saved not in (None, cls._known_as()):
            raise CheckpointError(f"checkpoint must be of {cls._known_as()}, got one of {saved} in {path}")
        learner: Self = cls.load_from_checkpoint(str(path), map_location="cpu", weights_only=True)
        return learner

    @classmethod
    def _known_as(cls) -> str:
        return cls.exported_as or cls.__name__

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that the weights of another one are refused even where all shapes agree."""
        checkpoint["learner"] = self._known_as()

    @classmethod
    def _exported(cls, path: Path) -> Self:
        """From exported weights."""
        weights = read_weights(path)
        if weights.learner != cls._known_as():
            raise CheckpointError(f"checkpoint must be of {cls._known_as()}, got one of {weights.learner} in {path}")
        learner = cls(**weights.hyperparameters)
        learner.load_state_dict(weights.state)
        return learner

    def export(self, path: str | Path, **about: Any) -> None:
        """Write the weights as safetensors, with plain values that say what made them."""
        write_weights(path, Weights(self._known_as(), dict(self.hparams), self.state_dict(), about))

    def on_after_backward(self) -> None:
        """Leave out a step whose gradient is not finite; counted in train/skipped_steps.

        Raises:
            NumericalError: many in a row; names the parameters and the last good checkpoint.
        """
        bad = [name for name, p in self.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if bad else 0
        if bad:
            self.skipped_steps += 1
            self.zero_grad()  # None, not zero: a zero gradient would still move the parameters by their momentum
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise self.diverged(f"gradients must be finite, got {MOST_SKIPPED} steps in a row with others", bad)
        self.log("train/skipped_steps", float(self.skipped_steps))

    def diverged(self, fact: str, culprits: list[str]) -> NumericalError:
        """The error that ends a training: what is not finite, and where to go on from."""
        trainer = self._trainer
        good = getattr(trainer.checkpoint_callback, "best_model_path", "") if trainer is not None else ""
        shown = ", ".join(culprits[:4]) + (f" and {len(culprits) - 4} more" if len(culprits) > 4 else "")
        return NumericalError(f"{fact}: {shown}; last good checkpoint: {good or 'none was written'}")

    def on_validation_epoch_start(self) -> None:
        """Forget the scenes of the last epoch."""
        self.seen = []

    def on_validation_epoch_end(self) -> None:
        """Log loss, error over PEB and NMSE."""
        self._log_scenes("val")

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.seen = []

    def test_step(self, task: Any, batch_idx: int) -> None:
        """As for validation."""
        self.validation_step(task, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As for validation."""
        self._log_scenes("test")

    def _log_scenes(self, stage: str) -> None:
        """Metrics over all scenes of this process's share; a loss that is not finite is not saved as the best."""
        seen = {name: torch.cat([each[name] for each in self.seen]) for name in self.seen[0]}
        values = {f"{stage}/{name}": value for name, value in self.measures(seen).items()}
        if not torch.isfinite(loss := values[f"{stage}/loss"]):
            bad = [name for name, parameter in self.named_parameters() if not torch.isfinite(parameter).all()]
            raise self.diverged(f"{stage}/loss must be finite, got {float(loss)}", bad or ["with finite parameters"])
        self.log_dict(values, prog_bar=False, sync_dist=True)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the settings over the learnable parameters.

        Raises:
            ConfigError: torch.optim has no such class, it refuses its arguments, or a fraction is not finite and >= 0.
        """
        settings = dict(self.hparams["optimizer"])
        final, share = settings.pop("final_lr_fraction", 1.0), settings.pop("layer_lr_fraction", 1.0)
        for name, value in (("final_lr_fraction", final), ("layer_lr_fraction", share)):
            if not 0.0 <= value < math.inf:
                raise ConfigError(f"optimizer.{name} must be finite and >= 0, got {value}")
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
    """Settings without the name of what they belong to."""
    return {name: value for name, value in settings.items() if name != "_target_"}
