"""What the TensorBoard log shows beside the losses: the learned parameters by layer, and a scene."""

from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from sensing.containers import Estimate, map_tensors
from sensing.data.scenes import SceneDataModule, Task
from sensing.evaluation.result import SceneSketch
from sensing.evaluation.scene_map import scene_map
from sensing.inference.outcome import to_estimate
from sensing.learning.learner import Learner

T = TypeVar("T")


class ParameterLog(Callback):
    """Effective value of every learned quantity, by layer, after each epoch."""

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log `parameters/NAME/layer_T`, and the taper with which the schedule of all layers starts."""
        assert isinstance(pl_module, Learner)
        unrolled = pl_module.estimator.unrolled
        pl_module.log("parameters/coarse_to_fine_taper", unrolled.schedule(0).detach())
        layers: Any = unrolled.layers
        for number, layer in enumerate(layers):
            for name, value in layer.values().items():
                pl_module.log(f"parameters/{name}/layer_{number}", value)


class SceneFigure(Callback):
    """Map of one validation scene with truth, estimate and 95 % ellipse.

    Args:
        scene: number of the validation scene.
        every: epochs between figures.
    """

    def __init__(self, scene: int = 0, every: int = 5) -> None:
        self.scene, self.every = scene, max(every, 1)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the figure into the TensorBoard log; nothing without one."""
        assert isinstance(pl_module, Learner)
        experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
        writers: list[Any] = [experiment for experiment in experiments if hasattr(experiment, "add_figure")]
        if not writers or not trainer.is_global_zero or trainer.current_epoch % self.every:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, SceneDataModule):
            return
        task = _single(data, self.scene, pl_module.device)
        refined, _ = pl_module.run(task)
        sketch = _sketch(task, to_estimate(refined.final, refined.problem), self.scene)
        for writer in writers:
            writer.add_figure("scene", scene_map(sketch), global_step=trainer.global_step)


def _single(data: SceneDataModule, scene: int, device: torch.device) -> Task:
    """The batch of one validation scene."""
    draw = torch.utils.data.default_collate([data.datasets["val"][scene]])
    return data.task(map_tensors(draw, lambda field: field.to(device)), "val")


def _sketch(task: Task, estimate: Estimate, index: int) -> SceneSketch:
    def first(container: T) -> T:
        return map_tensors(container, lambda field: field[0].cpu())

    return SceneSketch(
        deployment=map_tensors(task.deployment, lambda field: field.cpu()),
        index=index,
        snr_db=float(task.snr_db[0]),
        scene=first(task.example.scene),
        estimates={"unfolded": first(estimate)},
    )
