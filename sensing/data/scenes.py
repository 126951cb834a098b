"""Synthetic scenes for Lightning: drawn on the fly per scene, synthesised as batches on the training device.

Scene i, its noise, its SNR and its start depend on (seed, split, i) alone. An epoch e of n scenes consists of the
scenes e n .. (e + 1) n - 1: every epoch is fresh, and a resumed run sees exactly what the unbroken one would have seen.
With m distinct scenes, number i is scene i modulo m, with its noise and SNR; only its start, which is no part of the
data, is drawn anew.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sensing.bounds import uplink_bound
from sensing.containers import Deployment, Example, Geometry, Scene, map_tensors, to_device
from sensing.data.loading import FreshDataModule, check_counts
from sensing.errors import ConfigError
from sensing.inference.starts import perturbed_start
from sensing.simulation import Simulator
from sensing.simulation.sampler import scene_generator, unit_noise

START_STREAM, SNR_STREAM = 2, 3


class Draw(NamedTuple):
    """Everything random of one scene; collates to a batch."""

    scene: Scene
    noise: Tensor  # [* bs ant sc] CN(0, 1)
    snr_db: Tensor  # [*]
    index: Tensor  # type: ignore[assignment]  # [*], hides tuple.index
    number: Tensor  # [*] running; the index unless scenes repeat


class Task(NamedTuple):
    """One batch: what the estimator sees, its truth, its bound and where it starts."""

    example: Example
    deployment: Deployment
    peb: Tensor  # [*] [m]
    start: Geometry | None  # None: the front end finds it
    index: Tensor  # type: ignore[assignment]  # [*], hides tuple.index
    snr_db: Tensor  # [*]


class SceneDataset(Dataset[Draw]):
    """Scene i of a split.

    Args:
        simulator: law of the scenes.
        split: train, val or test.
        snr_db: lowest and highest SNR, uniform [dB].
        length: number of scenes announced; any index >= 0 works.
        distinct: distinct scenes, which repeat; None for as many as are asked for.
        curriculum: scenes over which the SNR range grows from its upper end to the whole; 0: the whole from the start.
    """

    def __init__(
        self,
        simulator: Simulator,
        split: str,
        snr_db: Sequence[float],
        length: int,
        distinct: int | None = None,
        curriculum: int = 0,
    ) -> None:
        self.simulator, self.split, self.length, self.distinct = simulator, split, length, distinct
        self.curriculum = curriculum
        self.low, self.high = float(snr_db[0]), float(snr_db[-1])
        deployment = simulator.deployment
        self.shape = (len(deployment.bs_position), len(deployment.antenna_local), len(deployment.pilot_freq))

    def __len__(self) -> int:
        return self.length

    def hardness(self, number: int) -> float:
        """How much of the ranges a scene may use, from 0 to 1; a function of its number, so that a resume agrees."""
        return 1.0 if self.curriculum == 0 else min(1.0, number / self.curriculum)

    def __getitem__(self, number: int) -> Draw:
        simulator = self.simulator
        index = number if self.distinct is None else number % self.distinct
        scene = map_tensors(simulator.scenes(self.split, [index]), lambda field: field[0])
        noise = unit_noise(self.shape, simulator.seed, self.split, [index])[0]
        lowest = self.high - self.hardness(number) * (self.high - self.low)
        snr = scene_generator(simulator.seed, self.split, index, SNR_STREAM).uniform(lowest, self.high)
        return Draw(scene, noise, torch.tensor(snr, dtype=torch.float64), torch.tensor(index), torch.tensor(number))


class SceneDataModule(FreshDataModule):
    """Batches for training, validation and test.

    Args:
        simulator: law of the scenes.
        batch_size: scenes per batch and process.
        scenes_per_epoch: training scenes per epoch.
        num_train_scenes: distinct training scenes; None: always fresh ones.
        snr_db: lowest and highest SNR of training scenes [dB].
        val_scenes: validation scenes, the same in every epoch.
        val_snr_db: their SNR [dB].
        test_scenes: test scenes at the SNR of validation, never seen in training or model selection.
        amplitude: lowest and highest size of the start's perturbation in standard deviations of the bound.
        val_amplitude: that of validation.
        test_amplitude: that of the test.
        ghosts: false scatterers per start.
        detected_every: every so many training batches start from the front end instead, which trains the fusion
            weights; 0 for never.
        curriculum: training scenes over which SNR and starts harden, from the upper end of `snr_db` and the lower end
            of `amplitude` to the whole ranges; 0: the whole ranges from the start.
        num_workers: processes that draw scenes.
    """

    datasets: Mapping[str, SceneDataset]
    batch_size: int

    def __init__(
        self,
        simulator: Simulator,
        batch_size: int = 16,
        scenes_per_epoch: int = 160,
        num_train_scenes: int | None = None,
        snr_db: Sequence[float] = (5.0, 15.0),
        val_scenes: int = 128,
        val_snr_db: float = 10.0,
        test_scenes: int = 200,
        amplitude: Sequence[float] = (4.0, 14.0),
        val_amplitude: float = 12.0,
        test_amplitude: float = 8.0,
        ghosts: int = 1,
        detected_every: int = 8,
        curriculum: int = 0,
        num_workers: int = 0,
    ) -> None:
        check_counts(
            batch_size=batch_size,
            scenes_per_epoch=scenes_per_epoch,
            val_scenes=val_scenes,
            test_scenes=test_scenes,
            num_train_scenes=1 if num_train_scenes is None else num_train_scenes,
        )
        if len(snr_db) != 2 or snr_db[0] > snr_db[1]:
            raise ConfigError(f"data.snr_db must be [lowest, highest], got {list(snr_db)}")
        if len(amplitude) != 2 or not 0 <= amplitude[0] <= amplitude[1]:
            raise ConfigError(f"data.amplitude must be [lowest, highest] and >= 0, got {list(amplitude)}")
        for name, values, least in (
            ("snr_db", snr_db, -math.inf),
            ("val_snr_db", [val_snr_db], -math.inf),
            ("amplitude", amplitude, 0.0),
            ("val_amplitude", [val_amplitude], 0.0),
            ("test_amplitude", [test_amplitude], 0.0),
        ):
            if not all(math.isfinite(value) and value >= least for value in values):
                raise ConfigError(f"data.{name} must be finite{' and >= 0' if least == 0 else ''}, got {values}")
        check_counts(0, detected_every=detected_every, ghosts=ghosts, curriculum=curriculum, num_workers=num_workers)
        datasets = {
            "train": SceneDataset(simulator, "train", snr_db, scenes_per_epoch, num_train_scenes, curriculum),
            "val": SceneDataset(simulator, "val", [val_snr_db], val_scenes),
            "test": SceneDataset(simulator, "test", [val_snr_db], test_scenes),
        }
        super().__init__(datasets, batch_size, num_workers)
        self.simulator, self.detected_every, self.ghosts = simulator, detected_every, ghosts
        self.amplitude = {
            "train": (float(amplitude[0]), float(amplitude[1])),
            "val": (val_amplitude, val_amplitude),
            "test": (test_amplitude, test_amplitude),
        }

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Task:
        """Synthesise the observation, the bound and the start on the device."""
        trainer = self.trainer
        split = "train" if trainer is None or trainer.training else "test" if trainer.testing else "val"
        return self.task(batch, split)

    def task(self, draw: Draw, split: str) -> Task:
        """The batch that belongs to drawn scenes of a split."""
        deployment = to_device(self.simulator.deployment, draw.snr_db.device)
        channel = self.simulator.channel(draw.scene, split, draw.index.tolist())
        example = self.simulator.observe(draw.scene, channel, draw.noise, draw.snr_db)
        bound = uplink_bound(draw.scene, example.true_noise_var, deployment)
        processes = self.trainer.world_size if self.trainer else 1  # these share the numbers of a batch
        number = int(draw.number[0]) // (self.batch_size * processes)
        if split == "train" and self.detected_every and number % self.detected_every == self.detected_every - 1:
            return Task(example, deployment, bound.ue_position_m, None, draw.index, draw.snr_db)
        rngs = [scene_generator(self.simulator.seed, split, i, START_STREAM) for i in draw.number.tolist()]
        low, high = self.amplitude[split]
        hardness = [self.datasets[split].hardness(i) for i in draw.number.tolist()]
        sizes = [rng.uniform(low, low + share * (high - low)) for rng, share in zip(rngs, hardness, strict=True)]
        size = torch.tensor(sizes, dtype=torch.float64, device=channel.device)
        start = perturbed_start(example, deployment, bound.covariance, size, self.ghosts, rngs)
        return Task(example, deployment, bound.ue_position_m, start, draw.index, draw.snr_db)
