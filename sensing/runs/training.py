"""Trains an estimator as a configuration says."""

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from sensing.about import SCENE_KEYS, about_training
from sensing.errors import ConfigError
from sensing.evaluation.csv_file import write_csv
from sensing.preflight import check_training
from sensing.runs.build import build_simulator
from sensing.runs.commands import evaluate_command, own_command, same_in_all_jobs
from sensing.runs.nodes import make, plain, set_threads
from sensing.runs.weights import check_resume, start_from, trained_for

log = logging.getLogger(__name__)


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
    if settings["export"] is not None and same_in_all_jobs("export"):
        example = "export='w_${seed}.safetensors'"
        raise ConfigError(f"export must differ from job to job of a sweep, say {example}, got {settings['export']}")
    set_threads(settings)
    import lightning  # takes seconds, hence not at the top: evaluate needs it only with a checkpoint

    _quiet_lightning()
    lightning.seed_everything(settings["seed"], workers=True, verbose=False)
    scenes = {"simulator": build_simulator(config)} if "simulator" in config.data else {}
    data = make(config.data, "data", **scenes)
    law = SCENE_KEYS if scenes else {"drops", "dictionary"} & set(settings)
    trained_on = {key: settings[key] for key in (*law, "data", "seed")}
    if settings["init_from"] is not None:
        trained_on["init_from"] = Path(settings["init_from"]).name
    learner_class = get_class(settings["learner"])
    learner = learner_class(settings["estimator"], settings["loss"], settings["optimizer"], trained_on)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise ConfigError("estimator must have something to learn (try estimator=unfolded), got no learnable parameter")
    learner.build_optimizer()  # its mistakes show now, not after the test of the untrained estimator
    if settings["init_from"] is not None:
        start_from(settings["init_from"], learner)
        found = getattr(data, "file", None) or getattr(data, "simulator", None)  # of scenes; drops have no arrays
        if found is not None and (difference := trained_for(settings["init_from"], found.deployment)):
            log.warning("init_from was trained elsewhere: here are %s", difference)
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
        count = sum(parameter.numel() for parameter in learner.parameters() if parameter.requires_grad)
        _write_measures(Path(settings["output_dir"]), before, {**after, "test/parameters": count}, chosen)
        print_comparison(before, after, "untrained" if settings["init_from"] is None else "before")
        if settings["export"] is not None:
            learner.export(settings["export"], **about_training(settings, own_command("train")))
            print(f"exported: {settings['export']}")
        print(f"evaluate it: {evaluate_command(best, config)}" if best else "no checkpoint was saved")
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


def print_comparison(before: Mapping[str, float], after: Mapping[str, float], start: str = "untrained") -> None:
    """Print the test metrics before and after training, side by side; `start` names the column before it."""
    table = Table(title=f"test scenes, {start} against trained", title_justify="left")
    for head in ("metric", start, "trained"):
        table.add_column(head, justify="left" if head == "metric" else "right")
    for name, value in after.items():
        table.add_row(name, f"{before.get(name, float('nan')):.4g}", f"{value:.4g}")
    Console().print(table)


def _write_measures(folder: Path, *measured: Mapping[str, float]) -> None:
    """Write training.csv: test metrics before and after training, and those of the validation of the chosen weights."""
    rows = [
        [name.split("/", 1)[-1], statistic, value]
        for statistic, values in zip(("before", "trained", "validation"), measured, strict=True)
        for name, value in values.items()
    ]
    write_csv(folder / "training.csv", ("metric", "statistic", "value"), rows)


def _quiet_lightning() -> None:
    """Lightning logs every line twice under Hydra, lists absent devices, advertises, and warns of its own code.

    And of a resumed epoch's data, which `FreshSampler` goes on with.
    """
    logging.getLogger("lightning").handlers.clear()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        message=".*(treespec, LeafSpec|does not have many workers|recommended to use `self.log|logging interval|"
        "dataloader is not resumable).*",
    )
