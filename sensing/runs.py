"""Builds objects from a configuration, trains and evaluates: the only file, besides the command line, that knows Hydra.

A `_target_` in a YAML file names the function or class that is called with the keys beside it; there is no registry.
"""

import logging
import math
import re
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from sensing import options
from sensing.about import SCENE_KEYS, about_run, about_training
from sensing.baselines import Detector
from sensing.containers import Deployment
from sensing.errors import CheckpointError, ConfigError, SensingError
from sensing.evaluation.files import evaluate_file
from sensing.evaluation.output import write_evaluation
from sensing.evaluation.runner import front_end
from sensing.evaluation.summary import print_summary
from sensing.evaluation.sweep import run_sweep
from sensing.fusion.learned import LearnedFusion
from sensing.preflight import check_evaluation, check_scene, check_training
from sensing.simulation import Simulator

_SHAPES_THE_SCENE = re.compile(r"(scene\.|array[=.]|ofdm[=.]|detector[=.]|prior[=.]|noise=)")
"""Overrides of train.py that evaluate.py needs too, beside the choice of the scene."""


def make(config: Any, key: str, **values: Any) -> Any:
    """Instantiate a node of the configuration.

    Args:
        config: node with a `_target_`.
        key: its dotted name, for messages.
        values: further arguments of the target, or replacements.

    Returns:
        What the target returns.

    Raises:
        SensingError: the target's own, or ConfigError where the target does not exist or refuses its arguments.
    """
    try:
        return instantiate(config, _convert_="all", **values)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, SensingError):
            raise type(cause)(f"{cause} (in {key})") from error
        what = str(error if cause is None else cause).splitlines()[0]
        raise ConfigError(f"{key} must fit {config.get('_target_')}, got: {what}") from error


def build_deployment(config: DictConfig) -> Deployment:
    """Stations of a configuration. Offsets are in units of 1 / bandwidth, which is that of all subcarriers."""
    grid = {name: value for name, value in config.ofdm.items() if name != "carrier_hz"}
    return make(
        config.scene.deployment,
        "scene.deployment",
        array=make(config.array, "array"),
        pilot_freq=make(grid, "ofdm"),
        carrier_hz=config.ofdm.carrier_hz,
        clock_offset_std=config.scene.clock_offset_std_over_bandwidth / _bandwidth(config),
    )


def build_simulator(config: DictConfig) -> Simulator:
    """Seeded synthetic scenes of a configuration.

    Raises:
        SensingError: a value does not fit; names its key.
    """
    check_scene(plain(config))
    drawn = config.scene.true_clock_offset_std_over_bandwidth
    std = None if drawn is None else drawn / _bandwidth(config)
    sampler = make(config.scene.sampler, "scene.sampler", clock_offset_std=std)
    return Simulator(build_deployment(config), sampler, config.seed)


def build_simulators(config: DictConfig) -> list[Simulator]:
    """One simulator for each deviation of the clock offsets in `eval.sigma_over_bandwidth`; the scene's own for null.

    The scenes and their noise are the same in all, with the offsets scaled. Under a flat prior (inf) they are drawn
    with the largest finite deviation of the list, unless the scene says with which.
    """
    sigmas = config.eval.sigma_over_bandwidth
    if sigmas is None:
        return [build_simulator(config)]
    largest = max((sigma for sigma in sigmas if math.isfinite(sigma)), default=None)
    simulators = []
    for sigma in sigmas:
        varied = config.copy()
        varied.scene.clock_offset_std_over_bandwidth = sigma
        if math.isinf(sigma) and varied.scene.true_clock_offset_std_over_bandwidth is None:
            varied.scene.true_clock_offset_std_over_bandwidth = largest
        simulators.append(build_simulator(varied))
    return simulators


def build_estimators(config: DictConfig) -> dict[str, Any]:
    """The estimators asked for, by the name under which they appear in the results.

    An unfolded estimator without a checkpoint is labelled `unfolded_untrained`: the classical one at a fixed depth.
    """
    settings = plain(config)
    chosen = options.names(settings, "estimators", config.available)
    checkpoint = options.checkpoint(settings, "checkpoint")
    estimators = {}
    for name in chosen:
        if name == "unfolded" and checkpoint is not None:
            from sensing.learning import Learner  # pulls lightning, which takes seconds to import

            estimators[name] = Learner.load(checkpoint).estimator
        else:
            label = "unfolded_untrained" if name == "unfolded" else name
            estimators[label] = make(config.available[name], f"available.{name}")
    return estimators


def build_front_ends(config: DictConfig, estimators: Mapping[str, Any]) -> dict[str, Detector]:
    """The front ends that the estimators name, and no others; raises ConfigError for one that is not configured."""
    built: dict[str, Detector] = {}
    for name, estimator in estimators.items():
        wanted = front_end(estimator)
        if wanted is not None and wanted not in built:
            if wanted not in config.front_ends:
                raise ConfigError(f"front_ends must hold the {wanted!r} of {name}, got {sorted(config.front_ends)}")
            built[wanted] = make(config.front_ends[wanted], f"front_ends.{wanted}")
    return built


class Builder:
    """Builds what a task needs, from the run's configuration or a variation of it.

    Args:
        config: as composed from `conf/evaluate.yaml`.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config

    def varied(self, values: Mapping[str, Any]) -> "Builder":
        """The same with other values, by dotted key; raises ConfigError for a key that does not exist."""
        config = self.config.copy()
        for key, value in values.items():
            self.value(key)
            OmegaConf.update(config, key, value)
        return Builder(config)

    def value(self, key: str) -> Any:
        """Configured value of a dotted key, in plain containers; raises ConfigError for a key that does not exist."""
        found = OmegaConf.select(self.config, key, default=self)
        if found is self:
            raise ConfigError(f"a varied key must be one of the configuration, got {key!r}")
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found

    def simulator(self) -> Simulator:
        """Seeded scenes of `scene`."""
        return build_simulator(self.config)

    def fusion(self, checkpoint: str) -> LearnedFusion:
        """The learned fusion of a checkpoint."""
        from sensing.learning import FusionLearner  # pulls lightning, which takes seconds to import

        return FusionLearner.load(checkpoint).fusion

    def network(self) -> Any:
        """Bound of `network`, a `sensing.bounds.radar.BoundModel`."""
        node = self.config.network
        scenes = {"simulator": self.simulator()} if "simulator" in node else {}
        return make(node, "network", **scenes)


def evaluate(config: DictConfig) -> dict[str, str]:
    """Run estimators on synthetic scenes or on a file, and write tables, figures and a report.

    Args:
        config: as composed from `conf/evaluate.yaml`.

    Returns:
        `folder` and `report`: the run folder and the report in it.

    Raises:
        SensingError: before any work is done, if a key does not fit.
    """
    settings = plain(config)
    path = check_evaluation(settings)
    _set_threads(settings)
    task = settings.get("task")
    estimators = {} if task is not None else build_estimators(config)
    folder, about = Path(settings["output_dir"]), about_run(settings, estimators, _command("evaluate"))
    report = folder / "report.html"
    if task is not None:
        text = {"settings": about["config"], "command": about["command"], "notes": about["notes"]}
        make(config.task, "task", build=Builder(config), folder=folder, **text)
        print(f"report: {report}")
        return {"folder": str(folder), "report": str(report)}
    front_ends = build_front_ends(config, estimators)
    common: dict[str, Any] = {
        "batch_size": config.eval.batch_size,
        "progress": config.eval.progress,
        "noise": config.noise,
    }
    if path is not None:
        half = settings["data"]["half"]
        results = [evaluate_file(path, estimators, front_ends, folder, half=half, **common, **about)]
    else:
        snr_db, count, cutoff_m = (settings["eval"][key] for key in ("snr_db", "num_scenes", "scatterer_cutoff_m"))
        split = settings["data"]["split"]
        results = [
            run_sweep(simulator, estimators, front_ends, snr_db, count, split, cutoff_m=cutoff_m, **common)
            for simulator in build_simulators(config)
        ]
        write_evaluation(results, folder, **about)
    print_summary(results)
    print(f"report: {report}")
    return {"folder": str(folder), "report": str(report)}


def _command(name: str) -> str:
    """The command line of this run; empty from a notebook."""
    if not HydraConfig.initialized():
        return ""
    return shlex.join([*_program(name), *HydraConfig.get().overrides.task])


def train(config: DictConfig) -> float:
    """Train an estimator; print untrained against trained, and the command that evaluates the checkpoint.

    Args:
        config: as composed from `conf/train.yaml`.

    Returns:
        The logged number that `objective` names, of the best checkpoint: what a sweep minimises.

    Raises:
        SensingError: before any work is done, if a key does not fit or there is nothing to learn.
    """
    settings = plain(config)
    check_training(settings)
    _set_threads(settings)
    import lightning  # takes seconds, hence not at the top: evaluate needs it only with a checkpoint

    _quiet_lightning()
    lightning.seed_everything(settings["seed"], workers=True, verbose=False)
    scenes = {"simulator": build_simulator(config)} if "simulator" in config.data else {}
    data = make(config.data, "data", **scenes)
    law = SCENE_KEYS if scenes else ("drops",)
    trained_on = {key: settings[key] for key in (*law, "data", "seed")}
    learner_class = get_class(settings["learner"])
    learner = learner_class(settings["estimator"], settings["loss"], settings["optimizer"], trained_on)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise ConfigError("estimator must have something to learn (try estimator=unfolded), got no learnable parameter")
    learner.build_optimizer()  # its mistakes show now, not after the test of the untrained estimator
    if settings["ckpt_path"] is not None:
        check_resume(settings["ckpt_path"], learner)
    trainer = build_trainer(config)
    before = trainer.test(learner, data, verbose=False)[0]
    if not math.isfinite(before.get("test/error_over_peb_rms", 0.0)):
        raise ConfigError(
            "scene must make the user observable (four shared scatterers, or a prior), "
            "got no test scene with a finite bound"
        )
    trainer.fit(learner, data, ckpt_path=settings["ckpt_path"])
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    chosen = trainer.validate(learner, data, ckpt_path=best, verbose=False)[0]
    after = trainer.test(learner, data, verbose=False)[0]
    if trainer.is_global_zero:
        print_comparison(before, after)
        if settings["export"] is not None:
            learner.export(settings["export"], **about_training(settings, _command("train")))
            print(f"exported: {settings['export']}")
        print(f"evaluate it: {_evaluate_command(best, config)}" if best else "no checkpoint was saved")
    return float(chosen[settings["objective"]])


def build_trainer(config: DictConfig) -> Any:
    """The Trainer with callbacks and loggers; entries that are null, or that the Trainer switches off, are left out."""
    trainer = config.trainer
    saves = trainer.enable_checkpointing and not trainer.fast_dev_run
    off = {"progress": not trainer.enable_progress_bar, "checkpoint": not saves, "last": not saves}
    callbacks = [
        make(node, f"callbacks.{name}")
        for name, node in (config.get("callbacks") or {}).items()
        if node is not None and not off.get(str(name), False)
    ]
    loggers = [make(node, f"logger.{name}") for name, node in (config.get("logger") or {}).items() if node is not None]
    return make(trainer, "trainer", callbacks=callbacks, logger=loggers or False)


def check_resume(path: str, learner: torch.nn.Module) -> None:
    """Raise CheckpointError unless the file is a checkpoint of a model with the same parameters."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # whatever torch raises, depending on what is broken
        raise CheckpointError(
            f"ckpt_path must be a checkpoint of train.py, got {path}: {type(error).__name__}: {error}"
        ) from error
    wanted = {name: list(value.shape) for name, value in learner.state_dict().items()}
    found = {name: list(value.shape) for name, value in state.items()}
    if found != wanted:
        name = next(key for key in [*wanted, *found] if wanted.get(key) != found.get(key))
        raise CheckpointError(
            f"ckpt_path must belong to the configured estimator: {name} is {wanted.get(name, 'absent')} there, "
            f"got {found.get(name, 'absent')} in {path}"
        )


def print_comparison(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Print the test metrics of the untrained and of the trained estimator, side by side."""
    table = Table(title="test scenes, untrained against trained", title_justify="left")
    for head in ("metric", "untrained", "trained"):
        table.add_column(head, justify="left" if head == "metric" else "right")
    for name, value in after.items():
        table.add_row(name, f"{before.get(name, float('nan')):.4g}", f"{value:.4g}")
    Console().print(table)


def _evaluate_command(checkpoint: str, config: DictConfig) -> str:
    """The command that evaluates a checkpoint on the scenes or drops that it was trained for."""
    path = Path(checkpoint).resolve()
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if config.get("drops") is not None:
        name = "learned" if config.estimator.correct_bias else "learned_weights"
        law = [f"drops.{key}={config.drops[key]}" for key in ("bias", "bias_scale_m", "random_scale")]
        chosen = [f"task.methods=[equal,{name},bayes]", f"task.checkpoints.{name}={shown}"]
        return shlex.join([*_program("evaluate"), "task=fusion", *law, *chosen])
    arguments = []
    if HydraConfig.initialized():
        choices, overrides = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
        arguments = [f"scene={choices['scene']}", *(text for text in overrides if _SHAPES_THE_SCENE.match(text))]
    return shlex.join([*_program("evaluate"), *arguments, f"checkpoint={shown}"])


def _program(name: str) -> list[str]:
    """How a command is called: by its script in a checkout, by its name where the console scripts were used."""
    return [f"sensing-{name}"] if Path(sys.argv[0]).name.startswith("sensing-") else ["python", f"{name}.py"]


def _quiet_lightning() -> None:
    """Lightning logs every line twice under Hydra, lists absent devices, advertises, and warns of its own code."""
    logging.getLogger("lightning").handlers.clear()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        message=".*(treespec, LeafSpec|does not have many workers|recommended to use `self.log|logging interval).*",
    )


def _set_threads(config: options.Config) -> None:
    if config["torch_threads"] is not None:
        torch.set_num_threads(config["torch_threads"])


def _bandwidth(config: DictConfig) -> float:
    return float(config.ofdm.num_subcarriers * config.ofdm.spacing_hz)


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, the form in which checks, checkpoints and reports take it."""
    containers = OmegaConf.to_container(config, resolve=True)
    assert isinstance(containers, dict)
    return {str(key): value for key, value in containers.items() if key != "hydra"}
