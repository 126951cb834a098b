"""What data modules share: fresh scenes in every epoch of training, the same ones in validation and test."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset, Sampler

from sensing.errors import ConfigError


class FreshSampler(Sampler[int]):
    """Consecutive scene numbers, new ones every epoch; Lightning calls `set_epoch`, also after a resume.

    Args:
        length: scenes per epoch, over all processes.
        rank: this process.
        world: number of processes.
        done: how many scenes of its epoch this process has had, where a run is resumed in the middle of one.
    """

    def __init__(self, length: int, rank: int = 0, world: int = 1, done: Callable[[], int] = lambda: 0) -> None:
        self.length, self.rank, self.world, self.done, self.epoch = length, rank, world, done, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose scenes come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.length + self.rank
        done = self.done() % len(self)  # all of it: the epoch before this one
        return iter(range(first + done * self.world, first + len(self) * self.world, self.world))


class FreshDataModule(lightning.LightningDataModule):
    """Loaders of the splits train, val and test.

    Args:
        datasets: by split; that of train may be asked for any number.
        batch_size: items per batch and process; None: an item is a batch.
        num_workers: processes that draw items.
    """

    def __init__(
        self, datasets: Mapping[str, Dataset[Any]], batch_size: int | None = None, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.datasets, self.batch_size, self.num_workers = datasets, batch_size, num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Items that no earlier epoch had."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        length = len(self.datasets["train"])  # type: ignore[arg-type]
        return self._loader("train", FreshSampler(length, rank, world, self._done))

    def _done(self) -> int:
        """Items of this epoch that a resumed run has had: Lightning counts their batches and asks for the rest."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * (self.batch_size or 1)

    def val_dataloader(self) -> DataLoader[Any]:
        """What the best checkpoint is chosen by, the same in every epoch."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """What neither training nor the choice of a checkpoint sees."""
        return self._loader("test")

    def _loader(self, split: str, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        return DataLoader(
            self.datasets[split],
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def check_counts(least: int = 1, **counts: int) -> None:
    """Raises ConfigError for a count of `data` that is no whole number or below the least."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"data.{name} must be a whole number >= {least}, got {value}")


def block_splits(
    blocks: Callable[[str, int], Dataset[Any]],
    batch_size: int,
    batches_per_epoch: int,
    val_batches: int,
    test_batches: int,
) -> dict[str, Dataset[Any]]:
    """Datasets of the three splits where a block is a batch.

    Args:
        blocks: dataset of a split and its number of blocks.
        batch_size: problems of a block.
        batches_per_epoch: blocks of training.
        val_batches: blocks of validation.
        test_batches: blocks of the test.

    Raises:
        ConfigError: a count below one.
    """
    counts = {"train": batches_per_epoch, "val": val_batches, "test": test_batches}
    check_counts(batch_size=batch_size, batches_per_epoch=batches_per_epoch)
    check_counts(val_batches=val_batches, test_batches=test_batches)
    return {split: blocks(split, count) for split, count in counts.items()}
