"""Sparse problems for Lightning, drawn on the fly in blocks that share a dictionary."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from sensing.data.loading import FreshDataModule, block_splits
from sensing.errors import ConfigError
from sensing.inference.dense_columns import Dictionary
from sensing.simulation.dictionary import DictionarySampler, SparseProblems


class SparseTask(NamedTuple):
    """One batch, with what estimators that do not know the truth are given."""

    problems: SparseProblems
    dictionary: Dictionary
    matched: Tensor  # [* col] Phi^H y
    energy: Tensor  # [*] |y|^2
    number: int  # of the block

    @property
    def entries(self) -> int:
        """Length of an observation."""
        return self.problems.y.shape[-2:].numel()

    def nmse(self, gain: Tensor) -> Tensor:
        """`|Phi (x_hat - x)|^2 / |Phi x|^2` of gains [* col], [*]."""

        def energy(x: Tensor) -> Tensor:
            return (x.conj() * (x @ self.dictionary.gram.mT)).real.sum(-1)

        return energy(gain - self.problems.gain) / energy(self.problems.gain)


class SparseBlocks(Dataset[SparseTask]):
    """Block i of a split. Dictionaries are factorised once and kept.

    Args:
        sampler: law of the problems.
        seed: of the problems.
        split: train, val or test.
        size: problems per block.
        blocks: number of blocks announced; any index >= 0 works.
        snr_db: one value, or lowest and highest of a uniform law [dB].
    """

    def __init__(
        self, sampler: DictionarySampler, seed: int, split: str, size: int, blocks: int, snr_db: Sequence[float] | float
    ) -> None:
        self.sampler, self.seed, self.split, self.size, self.blocks, self.snr_db = (
            sampler, seed, split, size, blocks, snr_db,
        )  # fmt: skip
        self._known: dict[int, Dictionary] = {}

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, index: int) -> SparseTask:
        return self.task(index, self.snr_db)

    def task(self, index: int, snr_db: Sequence[float] | float) -> SparseTask:
        """Block `index` at another SNR: the same gains and unit noise."""
        problems = self.sampler.block(self.seed, self.split, index, self.size, snr_db)
        key = index % self.sampler.dictionaries
        if key not in self._known:
            self._known[key] = Dictionary.of(problems.operator.gram())
        energy = problems.y.abs().square().sum((-2, -1))
        return SparseTask(problems, self._known[key], problems.operator.rmatvec(problems.y), energy, index)


class DictionaryDataModule(FreshDataModule):
    """Batches for training, validation and test.

    Args:
        sampler: law of the problems.
        seed: of the problems.
        batch_size: problems per batch and process; they share a dictionary.
        batches_per_epoch: fresh training batches per epoch.
        val_batches: validation batches, the same in every epoch.
        test_batches: test batches, never seen in training or model selection.
        snr_db: lowest and highest SNR [dB].
    """

    def __init__(
        self,
        sampler: DictionarySampler,
        seed: int = 0,
        batch_size: int = 8,
        batches_per_epoch: int = 32,
        val_batches: int = 8,
        test_batches: int = 8,
        snr_db: Sequence[float] = (-5, 30),
    ) -> None:
        if len(snr_db) != 2 or not snr_db[0] <= snr_db[1]:
            raise ConfigError(f"data.snr_db must be [lowest, highest], got {list(snr_db)}")

        def blocks(split: str, count: int) -> SparseBlocks:
            return SparseBlocks(sampler, seed, split, batch_size, count, snr_db)

        datasets = block_splits(blocks, batch_size, batches_per_epoch, val_batches, test_batches)
        super().__init__(datasets)  # a block is a batch
