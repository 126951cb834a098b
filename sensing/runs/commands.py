"""Command lines that a run prints and records: its own, and the one that evaluates what it trained."""

import re
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_SHAPES_THE_SCENE = re.compile(r"(scene\.|impairments[=.]|array[=.]|ofdm[=.]|detector[=.]|prior[=.]|noise=)")
"""Overrides of train.py that evaluate.py needs too, beside the choice of the scene."""


def own_command(name: str) -> str:
    """The command line of this run; empty from a notebook."""
    if not HydraConfig.initialized():
        return ""
    return shlex.join([*_program(name), *HydraConfig.get().overrides.task])


def same_in_all_jobs(key: str) -> bool:
    """Whether the jobs of a sweep share an override's value, which then is no name for what each of them writes."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    written = Path(HydraConfig.get().sweep.dir) / "multirun.yaml"  # as they were typed; a job sees its own values
    typed = OmegaConf.to_container(OmegaConf.load(written).hydra.overrides.task, resolve=False)
    assert isinstance(typed, list)
    return any(text.split("=", 1)[0] == key and "${" not in text and "," not in text for text in map(str, typed))


def evaluate_command(checkpoint: str, config: DictConfig) -> str:
    """The command that evaluates a checkpoint on the scenes or drops that it was trained for."""
    path = Path(checkpoint).resolve()
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if config.get("drops") is not None:
        name = "learned" if config.estimator.correct_bias else "learned_weights"
        law = [f"drops.{key}={config.drops[key]}" for key in ("bias", "bias_scale_m", "random_scale")]
        chosen = [f"task.methods=[equal,{name},bayes]", f"task.checkpoints.{name}={shown}"]
        return shlex.join([*_program("evaluate"), "task=fusion", *law, *chosen])
    if (data := config.data).get("path") is not None:
        other = {"even": ["data.half=odd"], "odd": ["data.half=even"]}.get(data.half, [])
        told = [f"data.{key}={data[key]}" for key in ("model_error", "multi_bounce", "line_of_sight")]
        noise = ["noise=estimated"] if config.noise == "estimated" else []
        chosen = ["data=file", f"data.path={data.path}", *other, *told, *noise, "estimators=[classical,unfolded]"]
        return shlex.join([*_program("evaluate"), *chosen, f"checkpoint={shown}"])
    if config.get("dictionary") is not None:
        return shlex.join(
            [*_program("evaluate"), "experiment=dense_dictionary", f"task.checkpoints.unfolded_10=[{shown}]"]
        )
    arguments = []
    if HydraConfig.initialized():
        choices, overrides = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
        arguments = [f"scene={choices['scene']}", *(text for text in overrides if _SHAPES_THE_SCENE.match(text))]
    weights = [f"checkpoint={shown}"]
    if config.estimator.get("calibration"):
        weights = ["estimators=[classical,calibrated]", f"calibration={shown}", f"seed={config.seed}"]
    elif config.estimator.get("surroundings"):
        weights = ["estimators=[classical,adapted]", f"surroundings={shown}", f"seed={config.seed}"]
    elif config.seed:
        weights.append(f"seed={config.seed}")  # of the hardware, where there are impairments
    return shlex.join([*_program("evaluate"), *arguments, *weights])


def _program(name: str) -> list[str]:
    """How a command is called: by its script in a checkout, by its name where the console scripts were used."""
    return [f"sensing-{name}"] if Path(sys.argv[0]).name.startswith("sensing-") else ["python", f"{name}.py"]
