"""What a report says of its run beside the numbers: heading, command, and notes on what was tuned and trained where."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sensing import options
from sensing.baselines import GridEstimator
from sensing.preflight import LEARNED
from sensing.pretrained import checkpoint_path
from sensing.pretrained.files import read_hyperparameters

TUNED = ("paper", "paper_nomp", "paper_ideal", "music_ls", "omp", "ols", "em_sbl")
TUNED_ON = ("hall_hard", "urban")
"""Baselines, and the scenes on whose validation split `benchmarks/tune_baselines.py` chose their settings."""
SCENE_KEYS = ("scene", "array", "ofdm", "impairments")
"""What scenes are made of; a checkpoint records it."""
HARDWARE = {
    *("gain_db", "phase_deg", "element_wavelengths", "coupling", "station_m", "station_deg"),
    *("noise_db", "noise_spread_db"),
}
"""Impairments that a seed draws once and for all scenes."""
log = logging.getLogger(__name__)


def about_run(settings: options.Config, estimators: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Title, configuration, command and notes of a report."""
    name, data = settings["name"], settings["data"]
    of = Path(data["path"]).name if data["source"] == "file" else settings["scene"]["name"]
    return {
        "title": f"Evaluation of {of}" if name == "evaluate" else f"{name}: evaluation of {of}",
        "config": OmegaConf.to_yaml(OmegaConf.create(dict(settings))),
        "command": command,
        "notes": _notes(settings, estimators),
    }


def _notes(config: options.Config, estimators: Mapping[str, Any]) -> dict[str, str]:
    """What a reader of the report must know and the numbers do not say."""
    notes = {"noise variance": "estimated from the observation"} if config["noise"] == "estimated" else {}
    synthetic = config["data"]["source"] == "synthetic"
    for name, key in LEARNED.items():
        if name in estimators:
            weights = str(options.unfolded_weights(config) if name == "unfolded" else config[key])
            notes[name] = f"trained, {weights}"
            if difference := trained_elsewhere(weights, config):
                notes[f"{name} was trained elsewhere"] = difference
                log.warning("%s was trained elsewhere: %s", name, difference)
    if "unfolded_untrained" in estimators:
        notes["unfolded"] = (
            "untrained: checkpoint=null" if config["checkpoint"] is None else "untrained: no weights of this scene ship"
        )
    if tuned := [name for name in estimators if name in TUNED]:
        here = synthetic and config["scene"]["name"] in TUNED_ON
        notes["settings"] = (
            f"of {', '.join(tuned)}: chosen on validation scenes (split val) of {' and '.join(TUNED_ON)}"
            f"{'' if here else ', not on these scenes'}; see docs/baselines.md"
        )
    if borrowing := [name for name in estimators if isinstance(estimators[name], GridEstimator)]:
        notes["no location"] = f"of {', '.join(borrowing)}: their grid is built around the coarse stage of classical"
    return notes


def about_training(settings: options.Config, command: str) -> dict[str, Any]:
    """What exported weights say of the training that made them, without the folders of its machine."""
    words = [word for word in shlex.split(command) if not word.startswith(("hydra.", "export=", "output_dir="))]
    words = [f"init_from={Path(word).name}" if word.startswith("init_from=") else word for word in words]
    return {
        "command": shlex.join([*words, f"export={Path(settings['export']).name}"]),
        "config": _portable(settings, str(settings["output_dir"])),
        "seed": settings["seed"],
        "note": settings["note"],
    }


def _portable(node: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Nested mappings without the values that lie in a folder, and without where weights were read and written."""
    return {
        key: _portable(value, folder) if isinstance(value, Mapping) else value
        for key, value in node.items()
        if key not in ("export", "ckpt_path", "init_from") and not (isinstance(value, str) and value.startswith(folder))
    }


def trained_elsewhere(checkpoint: str, config: options.Config) -> str:
    """How the scenes that a checkpoint was trained on differ from those of a configuration; empty where they do not."""
    trained_on = read_hyperparameters(checkpoint_path(checkpoint)).get("trained_on")
    if not trained_on:
        return "on scenes that the checkpoint does not record"
    if "scene" not in trained_on:
        learned = trained_on["data"]
        half = f", {learned['half']} scenes" if learned.get("half") else ""
        return f"on the file {Path(learned['path']).name}{half}"
    there = f"on scene={trained_on['scene']['name']}"
    if config["data"]["source"] == "file":
        return f"{there}, evaluated on a file"
    recorded = [key for key in SCENE_KEYS if key in trained_on]
    if "seed" in trained_on and HARDWARE & {*options.impaired(config), *options.impaired(trained_on)}:
        recorded.append("seed")  # another seed is other hardware
    old, new = (_flat({key: each[key] for key in recorded}) for each in (trained_on, config))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and key != "scene.name")
    if not changed:
        return ""
    more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
    return f"{there}, evaluated on scene={config['scene']['name']}; different: {', '.join(changed[:6])}{more}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
