"""Fine-tuning of an unfolded estimator on an observation file: by its truth, if any, and by pilots held out."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from sensing.coarse.localization import CoarseLocalizer
from sensing.coarse.rays import take
from sensing.containers import Deployment, Geometry, Observation, PathEstimates, map_tensors
from sensing.data.file_scenes import FileTask
from sensing.errors import NumericalError
from sensing.inference.iteration import column_operator
from sensing.inference.unrolled import Refined
from sensing.learning.learner import Learner
from sensing.losses import location_term
from sensing.units import SPEED_OF_LIGHT


class FileLearner(Learner):
    """A `Learner` of scenes whose bound nobody knows.

        loss = mean of labelled scenes (location error over `scale_m`, as in `BoundNormalisedLoss`)
             + mean of all scenes of log mean |y - h|^2 / noise over pilots held out
             + mean of all scenes (distance over `scale_m` of the user found without a station from that of all)

    with h the channel that the estimator makes of the other pilots; the second part is the negative log likelihood of a
    Gaussian error of unknown power, the third, left out unless asked for, has no gradient through the user of all
    stations. The paths of the front end, which learns nothing, are detected once per scene. The
    walls of the site, if the localizer has room for them, are learned from the labelled scenes before the first step.
    """

    exported_as: ClassVar[str] = "Learner"

    def build(self, estimator: dict[str, Any], loss: dict[str, Any]) -> None:
        """See `TrainedModule`."""
        super().build(estimator, loss)
        self.detected: dict[int, tuple[Tensor, PathEstimates]] = {}

    def on_fit_start(self) -> None:
        """Learn the walls of the site from all labelled training scenes."""
        localizer, data = self.estimator.localizer, self.trainer.datamodule  # type: ignore[attr-defined]
        labelled = [number for number in data.scenes["train"] if data.labelled[number]]
        if not isinstance(localizer, CoarseLocalizer) or len(localizer.planes) == 0 or len(labelled) < 2:
            return
        task = data.task(torch.tensor(labelled, device=self.device))
        _, paths = self.front_end(task)
        scene = task.example.scene
        localizer.learn_site(paths, scene.ue_position, SPEED_OF_LIGHT * scene.clock_offset, task.deployment)

    def front_end(self, task: FileTask) -> tuple[Observation, PathEstimates]:
        """Observation with its noise variance, and the paths detected in it."""
        numbers = task.index.tolist()
        for row, number in enumerate(numbers):
            if number not in self.detected:
                one = take(task.example.observation, torch.tensor([row]))
                with torch.no_grad():
                    seen, paths = self.estimator.detect(self.estimator.calibrated(one), task.deployment)
                self.detected[number] = seen.noise_var, paths
        found = [self.detected[number] for number in numbers]
        noise = torch.cat([variance for variance, _ in found])
        return task.example.observation._replace(noise_var=noise), _together([paths for _, paths in found])

    def terms(self, task: FileTask) -> dict[str, Tensor]:
        """Terms of the loss and what belongs to single scenes."""
        observation, paths = self.front_end(task)
        start = self.estimator.localizer(paths, task.deployment).geometry
        kept, pilots = _pilots(observation, task.deployment, ~task.held_out)
        refined = self.estimator.unrolled(self.estimator.calibrated(kept), pilots, start, True)
        judged = self.held_out_log(refined, *_pilots(observation, task.deployment, task.held_out))
        terms = {"held_out": judged.mean(), "held_out_log": judged}
        if task.left_out is not None:
            terms["stations"] = self.disagreement(task, observation, paths, refined.final.geometry).mean()
        if bool(task.labelled.any()):
            assert task.example.scene is not None
            true = torch.where(task.labelled[:, None], task.example.scene.ue_position, 0.0)
            scale = torch.where(task.labelled, task.scale_m, torch.inf).to(true)
            share = len(true) / task.labelled.sum()
            iterates = [location_term(each.geometry.ue_position, true, scale).mean() for each in refined.history]
            weight = torch.ones(len(iterates), dtype=true.dtype, device=true.device)
            weight[-1] = self.loss.final_weight * max(len(iterates) - 1, 1)
            terms["location"] = share * (weight * torch.stack(iterates)).sum() / weight.sum()
            coarse = location_term(start.ue_position, true, scale).mean()
            terms["coarse"] = self.loss.coarse_weight * share * coarse
        parts = [terms[name] for name in ("held_out", "stations", "location", "coarse") if name in terms]
        return terms | {"total": torch.stack(parts).sum()}

    def held_out_log(self, refined: Refined, observation: Observation, deployment: Deployment) -> Tensor:
        """`log mean |y - h|^2 / noise` [*] over pilots that the refinement has not seen."""
        final = refined.final
        channel = column_operator(final.geometry, deployment).matvec(final.expectation.mean)
        misfit = (observation.y - self.estimator.observed(channel)).abs().square().mean((-2, -1))
        return (misfit / observation.noise_var).mean(-1).log()

    def disagreement(self, task: FileTask, observation: Observation, paths: PathEstimates, whole: Geometry) -> Tensor:
        """Pseudo-Huber of the distance over `scale_m` [*] of the user found without a station from that of all."""
        kept = torch.arange(len(task.deployment.bs_position), device=whole.ue_position.device) != task.left_out
        seen = map_tensors(self.estimator.calibrated(observation), lambda field: field[:, kept])
        others = task.deployment._replace(
            bs_position=task.deployment.bs_position[kept], bs_rotation=task.deployment.bs_rotation[kept]
        )
        start = self.estimator.localizer(map_tensors(paths, lambda field: field[:, kept]), others).geometry
        found = self.estimator.unrolled(seen, others, start).final.geometry.ue_position
        return location_term(found, whole.ue_position.detach(), torch.full_like(found[..., 0], task.scale_m))

    def training_step(self, task: FileTask, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Loss of one batch."""
        terms = self.terms(task)
        if not torch.isfinite(terms["total"]):
            bad = [name for name, value in terms.items() if not torch.isfinite(value).all()]
            raise NumericalError(f"loss must be finite, got {bad} not finite for scenes {task.index.tolist()}")
        self.log("train/loss", terms["total"], prog_bar=True, batch_size=len(task.index))
        return terms["total"]

    def validation_step(self, task: FileTask, batch_idx: int) -> None:  # type: ignore[override]
        """Collect per-scene errors; those of the user are those of the whole estimator with all pilots."""
        terms = self.terms(task)
        observation, paths = self.front_end(task)
        estimate = self.estimator(observation, task.deployment, paths)
        error = torch.full_like(terms["held_out_log"], math.nan)
        if task.example.scene is not None:
            assert estimate.ue_position is not None
            error = (estimate.ue_position - task.example.scene.ue_position).norm(dim=-1)
        loss = terms["total"].expand_as(error)
        self.seen.append({"loss": loss, "held_out": terms["held_out_log"], "error": error})

    def measures(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss, held-out pilots over the noise, and errors of the user (NaN without truth)."""
        error = seen["error"]
        return {
            "loss": seen["loss"].mean(),
            "held_out_over_noise_db": 10.0 / math.log(10.0) * seen["held_out"].mean(),
            "error_m_rms": error.square().nanmean().sqrt(),
            "error_m_median": error.nanmedian(),
            "below_3_m": torch.where(error.isnan(), torch.nan, (error < 3.0).to(error)).nanmean(),
        }


def _pilots(observation: Observation, deployment: Deployment, chosen: Tensor) -> tuple[Observation, Deployment]:
    """The same on a part of the pilots [sc] bool."""
    part = observation._replace(y=observation.y[..., chosen])
    return part, deployment._replace(pilot_freq=deployment.pilot_freq[chosen])


def _together(paths: list[PathEstimates]) -> PathEstimates:
    """Paths of single scenes as a batch, padded by absent ones."""
    width = max(each.mask.shape[-1] for each in paths)

    def padded(field: Tensor) -> Tensor:
        missing = width - field.shape[2]
        return torch.cat([field, field.new_zeros(*field.shape[:2], missing, *field.shape[3:])], 2)

    return PathEstimates(*(torch.cat([padded(field) for field in fields]) for fields in zip(*paths, strict=True)))
