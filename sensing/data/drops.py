"""Random targets for Lightning, drawn on the fly in blocks: batch i of a split depends on (seed, split, i) alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from sensing.data.loading import FreshDataModule, block_splits, check_counts
from sensing.errors import ConfigError
from sensing.fusion.domain import Domain
from sensing.fusion.measurements import MODALITIES
from sensing.simulation.drops import Drops, DropSampler


class DropTask(NamedTuple):
    """One batch."""

    drops: Drops
    domain: Domain
    number: int  # of the block


class DropBlocks(Dataset[DropTask]):
    """Block i of a split, with the modalities in turn.

    Args:
        sampler: law of the drops.
        seed: of the drops.
        split: train, val or test.
        size: drops per block.
        blocks: number of blocks announced; any index >= 0 works.
        modalities: what the stations measure, `hybrid`, `toa` or `aoa`; block i has number i of these, cyclically.
        stations: how many stations, chosen at random among those of the law, in the same way; empty: all.
    """

    def __init__(
        self,
        sampler: DropSampler,
        seed: int,
        split: str,
        size: int,
        blocks: int,
        modalities: Sequence[str],
        stations: Sequence[int] = (),
    ) -> None:
        self.sampler, self.seed, self.split, self.size, self.blocks = sampler, seed, split, size, blocks
        self.modalities, self.stations = list(modalities), list(stations) or [len(sampler.bs_position)]

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, index: int) -> DropTask:
        drops = self.sampler.block(self.seed, self.split, index, self.size)
        measured = drops.measured.only(self.modalities[index % len(self.modalities)])
        order = np.random.default_rng([self.seed, index]).permutation(len(self.sampler.bs_position))
        chosen = sorted(order[: self.stations[index % len(self.stations)]].tolist())
        return DropTask(drops._replace(measured=measured.stations(chosen)), self.sampler.domain, index)


class DropDataModule(FreshDataModule):
    """Batches for training, validation and test.

    Args:
        sampler: law of the drops.
        seed: of the drops.
        batch_size: drops per batch and process.
        batches_per_epoch: fresh training batches per epoch.
        val_batches: validation batches, the same in every epoch.
        test_batches: test batches, never seen in training or model selection.
        modalities: of the batches, in turn.
        stations: numbers of stations of the batches, in turn, chosen at random among those of the law; empty: all.
        num_workers: processes that draw drops.
    """

    def __init__(
        self,
        sampler: DropSampler,
        seed: int = 0,
        batch_size: int = 512,
        batches_per_epoch: int = 100,
        val_batches: int = 8,
        test_batches: int = 8,
        modalities: Sequence[str] = ("hybrid", "toa", "hybrid", "aoa"),
        stations: Sequence[int] = (),
        num_workers: int = 0,
    ) -> None:
        if not modalities or not set(modalities) <= set(MODALITIES):
            raise ConfigError(f"data.modalities must be out of {list(MODALITIES)}, got {list(modalities)}")
        most = len(sampler.bs_position)
        if not all(isinstance(count, int) and 1 <= count <= most for count in stations):
            raise ConfigError(f"data.stations must be numbers of stations from 1 to {most}, got {list(stations)}")
        check_counts(0, num_workers=num_workers)

        def blocks(split: str, count: int) -> DropBlocks:
            return DropBlocks(sampler, seed, split, batch_size, count, modalities, stations)

        datasets = block_splits(blocks, batch_size, batches_per_epoch, val_batches, test_batches)
        super().__init__(datasets, None, num_workers)  # a block is a batch
