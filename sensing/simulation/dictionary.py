"""Sparse recovery on a fixed grid of locations: few of many known places hold a scatterer, the user is known.

Column g of the dictionary is the path user - grid point g - station (paper 1, equation 1.4), by the same forward model
as everywhere. A dictionary is dense when neighbours are closer than the resolution, so that columns are nearly
collinear. Block n of a split depends on (seed, split, n) and its size alone, and is the same at every SNR but for the
level of its noise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensing.containers import Deployment
from sensing.errors import ConfigError
from sensing.geometry import bounce_ranges
from sensing.operators.khatri_rao import PathOperator, path_operator
from sensing.simulation.sampler import scene_generator, unit_noise

_USER_STREAM = 3
"""Stream of the user of a dictionary, beside those of `scene_generator`."""


class SparseProblems(NamedTuple):
    """Observations through one dictionary, `y = Phi x + CN(0, noise_var)`, and the truth behind them."""

    operator: PathOperator  # [(ant, sc) col], common to all problems
    gain: Tensor  # [* col] complex, zero but for the active columns
    y: Tensor  # [* ant sc] complex
    noise_var: Tensor  # [*]

    @property
    def support(self) -> Tensor:
        """Which columns are active, [* col] bool."""
        return self.gain != 0


class DictionarySampler:
    """Law of sparse problems.

    Args:
        deployment: one station.
        shape: grid points along each axis.
        region: [2 xyz] corners of the box that the grid fills, a point in the middle of each of its cells [m].
        ue_region: [2 xyz] corners of the box of users [m].
        active: columns with a gain of CN(0, 1), drawn without replacement.
        dictionaries: users of a split, each with a dictionary of its own; block n has number n modulo this.
    """

    def __init__(
        self,
        deployment: Deployment,
        shape: Sequence[int] = (16, 16, 2),
        region: Sequence[Sequence[float]] = ((12, 12, 2), (28, 28, 6)),
        ue_region: Sequence[Sequence[float]] = ((3, 3, 1), (37, 37, 2)),
        active: int = 8,
        dictionaries: int = 16,
    ) -> None:
        if len(deployment.bs_position) != 1:
            raise ConfigError(f"a dictionary belongs to one station, got {len(deployment.bs_position)}")
        if len(shape) != 3 or min(shape) < 1 or not 1 <= active <= math.prod(shape):
            raise ConfigError(
                f"need a shape of three counts >= 1 and 1 <= active <= their product, got {shape}, {active}"
            )
        if dictionaries < 1:
            raise ConfigError(f"dictionaries must be >= 1, got {dictionaries}")
        box, ue_box = (torch.as_tensor(each, dtype=torch.float64) for each in (region, ue_region))
        if box.shape != (2, 3) or ue_box.shape != (2, 3) or not bool((box[0] < box[1]).all()):
            raise ConfigError(f"region and ue_region must be (lower, upper) corners, got {region}, {ue_region}")
        axes = [
            low + (torch.arange(count, dtype=torch.float64) + 0.5) * ((high - low) / count)
            for count, low, high in zip(shape, *box, strict=True)
        ]
        self.deployment, self.points, self.ue_region = deployment, torch.cartesian_prod(*axes), ue_box
        self.active, self.dictionaries = active, dictionaries

    def user(self, seed: int, split: str, number: int) -> Tensor:
        """The user of block `number`, [xyz] [m]."""
        rng = scene_generator(seed, split, number % self.dictionaries, _USER_STREAM)
        low, high = self.ue_region
        return low + (high - low) * torch.from_numpy(rng.random(3))

    def operator(self, seed: int, split: str, number: int) -> PathOperator:
        """The dictionary of block `number` in factors, [(ant, sc) col]; clocks are synchronous."""
        user, stations = self.user(seed, split, number), self.deployment.bs_position
        range_m, direction, _, _ = bounce_ranges(self.points, user, stations, stations.new_zeros(1))
        factors = path_operator(range_m, direction, self.deployment)
        return PathOperator(factors.steering[0], factors.delay[0])

    def block(self, seed: int, split: str, number: int, count: int, snr_db: Sequence[float] | float) -> SparseProblems:
        """Problems of one block.

        Args:
            seed: of all draws.
            split: train, val or test.
            number: of the block.
            count: problems.
            snr_db: mean received power over the noise power [dB]: one value, or lowest and highest of a uniform law.

        Returns:
            The problems in float64.
        """
        operator = self.operator(seed, split, number)
        columns = operator.steering.shape[-1]
        rng = scene_generator(seed, split, number)
        gain = np.zeros((count, columns), dtype=np.complex128)
        share = np.empty(count)
        for row, values in enumerate(gain):
            values[rng.choice(columns, self.active, replace=False)] = rng.standard_normal((self.active, 2)) @ [1, 1j]
            share[row] = rng.random()
        x = torch.from_numpy(gain) / math.sqrt(2.0)
        channel = operator.matvec(x)
        low, high = (snr_db, snr_db) if isinstance(snr_db, (int, float)) else snr_db
        ratio = 10.0 ** ((low + (high - low) * torch.from_numpy(share)) / 10.0)
        noise_var = channel.abs().square().mean((-2, -1)) / ratio
        noise = unit_noise(channel.shape, seed, split, [number])[0]
        return SparseProblems(operator, x, channel + noise_var.sqrt()[:, None, None] * noise, noise_var)
