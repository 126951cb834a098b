"""Scenes of an observation file for Lightning, with or without truth: what fine-tuning learns from.

Training scenes are seen once an epoch, in the same order. Each epoch holds other pilots out: the channel that the
estimator makes of the rest is judged by them, which needs no truth. So does the user found without one of the stations,
another one in every epoch, if asked for: it should be the user that all stations find.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sensing.containers import Deployment, Example, Scene, map_tensors, to_device
from sensing.data.loading import FreshDataModule
from sensing.data.reader import read_observations
from sensing.data.schema import ObservationSet
from sensing.errors import ConfigError, MissingTruthError

log = logging.getLogger(__name__)
LABELS = ("auto", "needed", "ignored")
HALVES = {None: slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}


class FileTask(NamedTuple):
    """One batch."""

    example: Example  # scene and channel None where the file has none
    deployment: Deployment
    labelled: Tensor  # [*] bool: the user's position may be learned from
    held_out: Tensor  # [sc] bool: pilots that judge
    scale_m: float  # error of the user that counts as one
    left_out: int | None  # station without which the same user should be found; None: no such part
    index: Tensor  # type: ignore[assignment]  # [*] number in the file, hides tuple.index


class Turns(Dataset[Tensor]):
    """Numbers of scenes and of their turns, round and round: item i is scene i % n in turn i // n."""

    def __init__(self, scenes: list[int]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, item: int) -> Tensor:
        turn, place = divmod(item, len(self.scenes))
        return torch.tensor([self.scenes[place], turn])


class FileDataModule(FreshDataModule):
    """Batches of an observation file.

    Args:
        path: observation file.
        half: train on its even or odd scenes alone; the others are the test scenes.
        num_scenes: train on so many scenes at most; all by default. Without a half the rest is for the test.
        val_share: share of these scenes that chooses the best checkpoint instead.
        labels: `auto` (learn from the truth where there is one), `needed` (a file without is refused) or `ignored`.
        num_labels: scenes whose truth may be learned from, the first ones; all by default.
        scale_m: error of the user that counts as one [m].
        hold_out: every so many pilots one is held out.
        hold_out_stations: the user found without a station, each in its turn, is compared with that of all stations.
        batch_size: scenes per batch and process.
        model_error: of the estimator's localizer; listed with the data because it is theirs, as in `data=file`.
        multi_bounce: likewise.
        line_of_sight: likewise.

    Raises:
        FileFormatError: the file cannot be read or breaks the schema.
        ConfigError: a value outside its range, or too few scenes to train on and to choose by.
        MissingTruthError: labels are needed and the file has none.
    """

    def __init__(
        self,
        path: str | Path,
        half: str | None = None,
        num_scenes: int | None = None,
        val_share: float = 0.2,
        labels: str = "auto",
        num_labels: int | None = None,
        scale_m: float = 0.5,
        hold_out: int = 4,
        hold_out_stations: bool = False,
        batch_size: int = 8,
        model_error: float = 0.0,
        multi_bounce: float = 0.0,
        line_of_sight: bool = False,
    ) -> None:
        _check(half, num_scenes, val_share, labels, num_labels, scale_m, hold_out, batch_size)
        file = read_observations(path)
        pilots, count = len(file.deployment.pilot_freq), len(file.observation.y)
        if pilots < 2 * hold_out:
            raise ConfigError(f"data.hold_out must leave pilots to learn from, got {hold_out} of {pilots} in {path}")
        if not isinstance(hold_out_stations, bool):
            raise ConfigError(f"data.hold_out_stations must be true or false, got {hold_out_stations!r}")
        if hold_out_stations and len(file.deployment.bs_position) < 3:
            raise ConfigError(
                f"data.hold_out_stations must leave two stations, got {len(file.deployment.bs_position)} in {path}"
            )
        scenes = list(range(count))[HALVES[half]][:num_scenes]
        if len(scenes) < 2:
            raise ConfigError(
                f"data must hold two scenes, one to train on and one to choose the checkpoint by, got {len(scenes)} "
                f"(data.half={half}, data.num_scenes={num_scenes}) of {count} in {path}"
            )
        val = max(1, round(val_share * len(scenes)))
        if val == len(scenes):
            raise ConfigError(f"data.val_share must leave a scene to train on, got {val_share} of {len(scenes)} scenes")
        rest = sorted(set(range(count)) - set(scenes))
        if not rest:
            log.warning("no scene is left for the test: that of the validation scenes takes its place")
        self.scenes = {"train": scenes[:-val], "val": scenes[-val:], "test": rest or scenes[-val:]}
        super().__init__({split: Turns(part) for split, part in self.scenes.items()}, batch_size)
        self.file, self.scale_m, self.hold_out, self.hold_out_stations = file, scale_m, hold_out, hold_out_stations
        self.labelled = _labelled(file, labels, scenes[:num_labels], path)

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> FileTask:
        """The scenes of the batch."""
        training = self.trainer is None or self.trainer.training
        return self.task(batch[:, 0], int(batch[0, 1]) if training else 0)

    def task(self, index: Tensor, turn: int = 0) -> FileTask:
        """The batch of given scenes."""
        device, rows, file = index.device, index.cpu(), self.file
        example = Example(file.observation) if file.truth is None else file.truth._replace(observation=file.observation)
        example = to_device(map_tensors(example, lambda field: field[rows]), device)
        pilots = torch.arange(len(file.deployment.pilot_freq), device=device)
        held_out = pilots % self.hold_out == (turn + self.hold_out // 2) % self.hold_out
        left_out = turn % len(file.deployment.bs_position) if self.hold_out_stations else None
        deployment, labelled = to_device(file.deployment, device), self.labelled[rows].to(device)
        return FileTask(example, deployment, labelled, held_out, self.scale_m, left_out, index)


def _users(file: ObservationSet) -> Tensor:
    """Users [scene xyz], NaN where unknown."""
    scene: Scene | None = None if file.truth is None else file.truth.scene
    nowhere = torch.full((len(file.observation.y), 3), torch.nan, dtype=torch.float64)
    return nowhere if scene is None else scene.ue_position


def _labelled(file: ObservationSet, labels: str, scenes: list[int], path: str | Path) -> Tensor:
    """Scenes [scene] bool whose truth may be learned from."""
    known = _users(file).isfinite().all(-1)
    if labels == "needed" and not bool(known[scenes].any()):
        raise MissingTruthError(f"data.labels=needed needs truth/ue_position_m, got none in {path}")
    chosen = torch.zeros_like(known)
    chosen[scenes] = labels != "ignored"
    return chosen & known


def _check(
    half: str | None,
    num_scenes: int | None,
    val_share: float,
    labels: str,
    num_labels: int | None,
    scale_m: float,
    hold_out: int,
    batch_size: int,
) -> None:
    if half not in HALVES:
        raise ConfigError(f"data.half must be one of {list(HALVES)}, got {half!r}")
    if labels not in LABELS:
        raise ConfigError(f"data.labels must be one of {list(LABELS)}, got {labels!r}")
    for name, value, low in (("num_scenes", num_scenes, 2), ("num_labels", num_labels, 0)):
        if value is not None and value < low:
            raise ConfigError(f"data.{name} must be >= {low} or null, got {value}")
    if not all(isinstance(count, int) for count in (num_scenes or 2, num_labels or 0, batch_size, hold_out)):
        raise ConfigError(
            f"data.num_scenes, num_labels, batch_size and hold_out must be whole numbers, got {num_scenes}, "
            f"{num_labels}, {batch_size} and {hold_out}"
        )
    if batch_size < 1 or hold_out < 2:
        raise ConfigError(f"data.batch_size must be >= 1 and hold_out >= 2, got {batch_size} and {hold_out}")
    if not 0.0 < val_share < 1.0 or not scale_m > 0.0:
        raise ConfigError(f"data.val_share must be in (0, 1) and scale_m > 0, got {val_share} and {scale_m}")
