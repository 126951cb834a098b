"""Position error bound of the asynchronous uplink over user positions, averaged over draws of the scatterers.

What a user at p can expect depends on scatterers that nobody knows beforehand, so the bound is averaged over the scene
law given p. All positions share the draws (`SceneSampler.sample_at`), so that maps are smooth; where the draws are too
few, their luck shows as patches. Stations elsewhere, or more of them, see other draws.

The noise variance is one number for all stations, positions and draws. Gains have unit mean power whatever the path's
length, so the power that a station expects per entry is the number of paths it sees, and
`noise_var = mean number of paths / SNR`: the SNR is that of an average station in an average draw.

Few draws with little information dominate the mean square. In the scene `hall` the standard error of the rms is 15 %
with 32 draws and 5 % with 256, that of the median 11 % and 4 %; all positions share it. All is differentiable in the
stations' places, the scatterers and who sees them being held.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.bounds.asynchronous import uplink_bound
from sensing.bounds.cooperative import PointBound, Reason
from sensing.checks import check_finite, check_shape
from sensing.containers import Scene
from sensing.errors import ConfigError
from sensing.simulation import Simulator
from sensing.units import from_db

AVERAGES = ("rms", "median")
SCENES = 128
"""Scenes per call of the bound, 1 MB each. More are not faster."""
BLOCK = 2048
"""Scenes that are drawn at once, 3 KB each."""


class AveragedBound(NamedTuple):
    """Position error bound at points over random scenes; a draw that leaves the user open counts as infinite."""

    rms_m: Tensor  # [*] root of the mean square over draws [m]: the error of a user in a random scene
    median_m: Tensor  # [*] over draws [m]
    unobservable: Tensor  # [*] share of the draws that leave the user's position open


class Uplink:
    """The asynchronous uplink as a model that maps points to bounds (`sensing.bounds.radar.BoundModel`).

    Args:
        simulator: stations, priors and the law of the scenes.
        snr_db: SNR per entry of an average station [dB], as explained above.
        num_draws: scenes per position: scenes 0, 1, ... of the split with their user moved.
        average: `rms` or `median` over the draws.
        split: train, val, test or sample.

    Raises:
        ConfigError: an argument does not fit.
    """

    def __init__(
        self,
        simulator: Simulator,
        snr_db: float = 10.0,
        num_draws: int = 32,
        average: str = "rms",
        split: str = "test",
    ) -> None:
        if not isinstance(num_draws, int) or isinstance(num_draws, bool) or num_draws < 1:
            raise ConfigError(f"num_draws must be a whole number >= 1, got {num_draws!r}")
        if average not in AVERAGES:
            raise ConfigError(f"average must be one of {list(AVERAGES)}, got {average!r}")
        if isinstance(snr_db, bool) or not isinstance(snr_db, (int, float)) or not abs(snr_db) < 200.0:
            raise ConfigError(f"snr_db must be a number between -200 and 200 dB, got {snr_db!r}")
        self.simulator, self.num_draws, self.average, self.split = simulator, num_draws, average, split
        paths = simulator.scenes(split, range(num_draws)).visible.sum(-1).double().mean()
        self.noise_var = paths / from_db(snr_db)

    @property
    def bs_position(self) -> Tensor:
        """Stations, [bs xyz] [m]."""
        return self.simulator.deployment.bs_position

    def point_bound(self, position: Tensor, progress: Callable[[int], None] | None = None) -> PointBound:
        """The average that was asked for, of users at points [* xyz] [m]; arguments as `averages`."""
        found = self.averages(position, progress)
        peb = found.rms_m if self.average == "rms" else found.median_m
        reason = Reason.SINGULAR | Reason.SOME_DRAWS * (found.unobservable < 1).long()
        return PointBound(peb, torch.where(torch.isinf(peb), reason, torch.zeros_like(reason)))

    def averages(self, position: Tensor, progress: Callable[[int], None] | None = None) -> AveragedBound:
        """Averages of the bound of users at points; time is linear in points times draws, memory small.

        Args:
            position: [* xyz] [m].
            progress: called with the number of points done since its last call.

        Returns:
            The averages; inf where the draws leave the user open.

        Raises:
            ShapeError, DomainError: the positions do not fit.
        """
        check_shape("position", position, "* xyz", xyz=3)
        check_finite("position", position)
        flat, found = position.reshape(-1, 3), []
        for block in flat.split(max(1, BLOCK // self.num_draws)):
            found.append(self._peb(block))
            if progress is not None:
                progress(len(block))
        peb = torch.cat(found).reshape(*position.shape[:-1], self.num_draws)
        ordered = peb.sort(-1).values
        median = (ordered[..., (self.num_draws - 1) // 2] + ordered[..., self.num_draws // 2]) / 2.0
        return AveragedBound(peb.square().mean(-1).sqrt(), median, torch.isinf(peb).double().mean(-1))

    def _peb(self, position: Tensor) -> Tensor:
        """Bound of every draw, [point xyz] to [point draw]."""
        deployment, draws = self.simulator.deployment, range(self.num_draws)
        drawn = self.simulator.sampler.sample_at(deployment, self.simulator.seed, self.split, draws, position)
        parts = zip(*(field.flatten(0, 1).split(SCENES) for field in drawn if field is not None), strict=True)
        noise_var = self.noise_var.expand(len(deployment.bs_position))
        pebs = []
        for part in parts:
            scene = Scene(*part)
            pebs.append(uplink_bound(scene, noise_var.expand(scene.clock_offset.shape), deployment).ue_position_m)
        return torch.cat(pebs).reshape(len(position), -1)
