"""The file format of trained weights: safetensors, with what made them as text in the header.

A file holds tensors and text, no code. Its header says which learner the weights belong to, the plain settings that
rebuild it, the command, configuration, seed and versions that made them, and a digest of the tensors, because the
format itself does not notice a byte that changed.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

import sensing
from sensing.data.atomic import atomic_path
from sensing.errors import CheckpointError
from sensing.pretrained import SUFFIX


class Weights(NamedTuple):
    """Trained weights and what is known of them."""

    learner: str  # class that they belong to
    hyperparameters: dict[str, Any]  # its arguments, plain containers
    state: dict[str, Tensor]
    about: dict[str, Any]  # command, config, seed, note, versions


def write_weights(path: str | Path, weights: Weights) -> None:
    """Write a file that appears whole or not at all; the running versions are added to what is known.

    Raises:
        CheckpointError: the name ends otherwise than the format, or a tensor is complex or not finite.
    """
    if Path(path).suffix != SUFFIX:
        raise CheckpointError(f"exported weights must be a file NAME{SUFFIX}, got {path}")
    state = {name: value.detach().cpu().contiguous() for name, value in weights.state.items()}
    bad = [name for name, value in state.items() if value.is_complex() or not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"exported weights must be real and finite, got {', '.join(bad)}")
    versions = {"sensing": sensing.__version__, "torch": torch.__version__, "python": platform.python_version()}
    header = {
        "learner": weights.learner,
        "hyperparameters": weights.hyperparameters,
        **weights.about,
        "versions": versions,
        "digest": _digest(state),
    }
    with atomic_path(path) as part:
        part.write_bytes(save(state, {key: json.dumps(value) for key, value in header.items()}))


def read_weights(path: str | Path) -> Weights:
    """Read a file of `write_weights`.

    Raises:
        CheckpointError: it cannot be read, is not of `write_weights`, or has changed since.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        learner, hyperparameters, digest = (header.pop(key) for key in ("learner", "hyperparameters", "digest"))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint must be weights that train.py exported, got {path}: {type(error).__name__}: {error}"
        ) from error
    if digest != _digest(state):
        raise CheckpointError(f"checkpoint must hold the tensors that it was written with, got others in {path}")
    return Weights(learner, hyperparameters, state, header)


def read_hyperparameters(path: str | Path) -> dict[str, Any]:
    """Arguments of a checkpoint's learner, from either format."""
    if Path(path).suffix == SUFFIX:
        return read_weights(path).hyperparameters
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)["hyper_parameters"]
    return found


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        found.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        found.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return found.hexdigest()
