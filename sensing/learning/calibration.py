"""Self-calibration as a training: every epoch is one EM update of the element gains over the same scenes.

Needs observations only: neither positions nor channels. Where the user's position is known all the same, the E-step
holds it there. See `sensing.inference.calibration` for the update.
"""

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from sensing.containers import Geometry, Observation
from sensing.data.scenes import SceneDataModule, Task
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator
from sensing.inference.calibration import Anderson, ArrayCalibration, GainStatistics
from sensing.inference.unrolled import Refined
from sensing.learning.learner import Learner, channel_of
from sensing.learning.updates import take_update, unit_steps
from sensing.metrics import nmse_db
from sensing.simulation import Simulator


class CalibrationLearner(Learner):
    """The classical estimator with a calibration of its arrays, fitted to observations without labels.

    An uncalibrated array leaves a residual in proportion to the power, in which a detector at the nominal noise finds
    any number of paths. The first epochs therefore assume more noise, and a few scenes are enough for them. Later ones
    go on from the geometries of the epoch before; from time to time the paths are detected anew.

    Args:
        estimator: arguments of `build_estimator`, with a `calibration`.
        loss: not used; validation reports the negative log evidence.
        optimizer: `model_error`, power of what the model does not explain over the mean power in each of the first
            epochs; `early_scenes` that these see per process; `detect_every`, epochs from one detection of the paths
            to the next; `memory` of the Anderson mixing; `num_labels`, training scenes, the first ones, whose user's
            position may be used.
        trained_on: recorded in checkpoints.

    Raises:
        ConfigError: no calibration to be learned, or a value outside its range.
    """

    def build(self, estimator: dict[str, Any], loss: dict[str, Any]) -> None:
        """See `TrainedModule`."""
        if not estimator.get("calibration"):
            raise ConfigError("estimator.calibration must name num_stations and num_antennas, got none")
        super().build(estimator, loss)
        self.automatic_optimization = False
        self.estimator.requires_grad_(False)
        self.calibration.requires_grad_(True)  # it is what is learned, though not by gradients
        self.starts: dict[tuple[int, ...], Geometry] = {}  # by the numbers of a batch's scenes
        self.build_optimizer()

    def build_optimizer(self) -> None:  # type: ignore[override]
        """Read and check the settings of EM, which takes the place of an optimizer."""
        settings = {
            "model_error": (0.03, 0.01, 0.003),
            "early_scenes": 32,
            "detect_every": 5,
            "memory": 5,
            "num_labels": 0,
        }
        unknown = set(self.hparams["optimizer"]) - set(settings)
        if unknown:
            raise ConfigError(
                f"optimizer of a calibration must have {', '.join(settings)} (optimizer=em), got {unknown}"
            )
        settings |= self.hparams["optimizer"]
        self.model_error: list[float] = [float(share) for share in settings["model_error"]]  # type: ignore[attr-defined]
        counts = {name: int(value) for name, value in settings.items() if name != "model_error"}  # type: ignore[call-overload]
        self.detect_every, memory = counts["detect_every"], counts["memory"]
        self.early_scenes, self.num_labels = counts["early_scenes"], counts["num_labels"]
        if not all(0 <= share < 1 for share in self.model_error):
            raise ConfigError(f"optimizer.model_error must hold shares in [0, 1), got {self.model_error}")
        least = {"early_scenes": 1, "detect_every": 1, "memory": 0, "num_labels": 0}
        for name, value in counts.items():
            if value < least[name]:
                raise ConfigError(f"optimizer.{name} must be >= {least[name]}, got {value}")
        self.anderson = Anderson(memory)

    @property
    def calibration(self) -> ArrayCalibration:
        """What is learned."""
        assert self.estimator.calibration is not None
        return self.estimator.calibration

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See `take_update`."""
        return unit_steps(self.calibration)

    def on_train_epoch_start(self) -> None:
        """Empty sums; forget starts and mixing where the paths are detected anew."""
        self.statistics, self.taken = GainStatistics(self.calibration), 0
        late = self.current_epoch - len(self.model_error)
        if late < 0 or late % self.detect_every == 0:
            self.starts.clear()
            self.anderson.restart()

    @torch.no_grad()
    def training_step(self, task: Task, batch_idx: int) -> None:  # type: ignore[override]
        """Sums of one batch; after the last one the M-step."""
        early = self.current_epoch < len(self.model_error)
        if not early or self.taken < self.early_scenes:
            self._take_in(task, self.model_error[self.current_epoch] if early else 0.0)
        if self.trainer.is_last_batch:
            self._update()

    def _take_in(self, task: Task, share: float) -> None:
        """Add a batch to the sums; `share` of the power is taken for the model's error."""
        observation = self.calibration(task.example.observation)
        noise = observation.noise_var + share * observation.y.abs().square().mean((-2, -1))
        refined = self._refined(Observation(observation.y, noise), task)
        self.statistics.add(observation, channel_of(refined))
        self.log(
            "train/loss", _loss(refined).mean(), prog_bar=True, batch_size=len(task.index), on_step=False, on_epoch=True
        )
        self.taken += len(task.index)

    def _update(self) -> None:
        """The M-step, mixed with those of earlier epochs."""
        statistics = self.statistics
        match, energy = self.all_gather((torch.view_as_real(statistics.match), statistics.energy))
        if self.trainer.world_size > 1:
            match, energy = match.sum(0), energy.sum(0)
        statistics.match, statistics.energy = torch.view_as_complex(match.contiguous()), energy
        point = self.calibration.vector()
        following = self.anderson.step(point, statistics.updated())
        take_update(
            self, self.calibration, lambda: self.calibration.assign(following)
        )  # checks it, and fixes the gauge
        self.log("train/change_rms", (following - point).square().mean().sqrt(), prog_bar=True)

    def on_after_backward(self) -> None:
        """There is no gradient."""

    def run(self, task: Task, history: bool = False) -> tuple[Refined, Geometry]:
        """From the front end: starts near the truth would not show what an uncalibrated array does."""
        return super().run(task._replace(start=None), history)

    def validation_step(self, task: Task, batch_idx: int) -> None:
        """The negative log evidence per entry, and errors where the truth is known."""
        refined, _ = self.run(task)
        kept = {"loss": _loss(refined)}
        if task.example.scene is not None and task.example.channel is not None:
            kept["error"] = (refined.final.geometry.ue_position - task.example.scene.ue_position).norm(dim=-1)
            kept["nmse"] = nmse_db(self.estimator.observed(channel_of(refined)), task.example.channel)
            kept["peb"] = task.peb
        self.seen.append(kept)

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """As for every learner; the loss alone where there is no truth."""
        return super().measures(seen) if "error" in seen else {"loss": seen["loss"].mean()}

    def _refined(self, observation: Observation, task: Task) -> Refined:
        block = tuple(task.index.tolist())
        if block not in self.starts:
            observation, paths = self.estimator.detect(observation, task.deployment)
            self.starts[block] = self.estimator.localizer(paths, task.deployment).geometry
        if self.num_labels:
            assert task.example.scene is not None
            labelled = (task.index < self.num_labels)[:, None]
            known = torch.where(labelled, task.example.scene.ue_position, torch.nan)
            observation = observation._replace(known_user=known)
        refined = self.estimator.unrolled(observation, task.deployment, self.starts[block])
        self.starts[block] = refined.final.geometry
        return refined


def _loss(refined: Refined) -> Tensor:
    """Negative log evidence per entry of the observation, up to a constant, [*]."""
    return -refined.final.objective / refined.problem.y[0].numel()


def self_calibrated(
    simulator: Simulator,
    estimator: Mapping[str, Any],
    num_scenes: int = 200,
    snr_db: float = 10.0,
    epochs: int = 13,
    batch_size: int = 16,
    progress: bool = True,
    num_labels: int = 0,
) -> LocationEstimator:
    """An estimator whose arrays are calibrated by scenes of the split `train`.

    Args:
        simulator: with element errors.
        estimator: arguments of `build_estimator` without the calibration.
        num_scenes: scenes to learn from.
        snr_db: their SNR [dB].
        epochs: EM updates.
        batch_size: scenes at once.
        progress: show a progress bar.
        num_labels: scenes of these whose user's position is known.

    Raises:
        ConfigError: a count below one, or more labels than scenes.
    """
    if not 0 <= num_labels <= num_scenes:
        raise ConfigError(f"need 0 <= num_labels <= num_scenes, got {num_labels} of {num_scenes}")
    data = SceneDataModule(
        simulator,
        batch_size=batch_size,
        scenes_per_epoch=num_scenes,
        num_train_scenes=num_scenes,
        snr_db=[snr_db, snr_db],
        detected_every=0,
    )
    deployment = simulator.deployment
    shape = {"num_stations": len(deployment.bs_position), "num_antennas": len(deployment.antenna_local)}
    learner = CalibrationLearner({**estimator, "calibration": shape}, {}, {"num_labels": num_labels})
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=progress, limit_val_batches=0, num_sanity_val_steps=0,
        callbacks=[RichProgressBar(leave=False)] if progress else [],
    )  # fmt: skip
    trainer.fit(learner, data)
    return learner.estimator.eval()
