"""Weights with which a training starts: a run that is resumed, or others that are fine-tuned."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sensing.containers import Deployment
from sensing.errors import CheckpointError
from sensing.pretrained import SUFFIX, checkpoint_path
from sensing.pretrained.files import read_hyperparameters
from sensing.runs.nodes import make

if TYPE_CHECKING:
    from sensing.learning.module import TrainedModule  # pulls lightning, which takes seconds to import

log = logging.getLogger(__name__)


def check_resume(path: str, learner: "TrainedModule") -> None:
    """Raise CheckpointError unless the file is a checkpoint of a model with the same parameters and optimizer."""
    refused = f"ckpt_path must be a checkpoint of train.py, got {path}"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = {name: value for name, value in saved["state_dict"].items() if isinstance(value, Tensor)}
    except Exception as error:  # whatever torch raises, depending on what is broken
        hint = " (weights alone are for init_from)" if Path(path).suffix == SUFFIX else ""
        raise CheckpointError(f"{refused}{hint}: {type(error).__name__}: {error}") from error
    _check_same("ckpt_path", path, state, learner.state_dict())
    needed = "pytorch-lightning_version", "loops", "optimizer_states", "hyper_parameters"
    if absent := [key for key in needed if key not in saved]:
        raise CheckpointError(f"{refused}: it holds no {', '.join(absent)}")
    there, here = (each["optimizer"].get("_target_") for each in (saved["hyper_parameters"], learner.hparams))
    if there != here:
        raise CheckpointError(f"ckpt_path must be of a training with {here}, got one with {there} in {path}")


def start_from(name: str | Path, learner: "TrainedModule") -> list[str]:
    """Copy trained weights into a learner.

    What the learner has and the weights have not starts neutral, so that a correction can be added to a trained
    estimator; what they have and the learner has not is refused.

    Args:
        name: a checkpoint of train.py, weights that it exported, or the name of shipped ones.
        learner: where they go.

    Returns:
        Names of the parameters that start neutral.

    Raises:
        CheckpointError: the weights are unreadable, of another learner or another architecture.
    """
    state, own = type(learner).load(name).state_dict(), learner.state_dict()
    neutral = [each for each in own if each not in state]
    _check_same("init_from", name, state, {each: value for each, value in own.items() if each in state})
    learner.load_state_dict(state, strict=False)
    if neutral:
        log.info("not in %s, hence neutral at the start: %s", name, ", ".join(neutral))
    return neutral


def trained_for(name: str | Path, deployment: Deployment) -> str:
    """How the array and pilots that weights were trained with differ from a deployment's; empty where they do not.

    Corrections of layers carry over to other arrays and pilot grids; what belongs to single elements has another shape,
    which `start_from` refuses.
    """
    trained_on = read_hyperparameters(checkpoint_path(name)).get("trained_on") or {}
    if not {"array", "ofdm"} <= trained_on.keys():
        return ""
    pilots = make({key: value for key, value in trained_on["ofdm"].items() if key != "carrier_hz"}, "trained_on.ofdm")
    antennas = make(trained_on["array"], "trained_on.array")
    there = [len(antennas), len(pilots), float(pilots.max() - pilots.min()) / 1e6]
    used = deployment.pilot_freq
    here = [len(deployment.antenna_local), len(used), float(used.max() - used.min()) / 1e6]
    words = ("{} antennas", "{} pilots", "{:.4g} MHz between the outer pilots")
    different = [
        f"{word.format(new)} instead of {word.format(old).split()[0]}"
        for word, old, new in zip(words, there, here, strict=True)
        if abs(old - new) > 1e-6 * old
    ]
    return ", ".join(different)


def _check_same(key: str, path: str | Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensor that is absent or has another shape."""
    there, here = ({name: list(value.shape) for name, value in each.items()} for each in (found, wanted))
    if there != here:
        name = next(each for each in [*here, *there] if here.get(each) != there.get(each))
        raise CheckpointError(
            f"{key} must belong to the configured estimator: {name} is {here.get(name, 'absent')} there, "
            f"got {there.get(name, 'absent')} in {path}"
        )
