"""Random scenes with shared and station-specific scatterers.

Scene i of a split depends on (seed, split, i) and on nothing else: every scene has its own counter-based generator, so
results do not change with batch size, workers or order.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from sensing.containers import Deployment, Scene
from sensing.errors import ConfigError

SPLITS = {"train": 0, "val": 1, "test": 2, "sample": 3}
_HARDWARE = 4  # stands where scenes have their split
_NOISE_STREAM = 1


def scene_generator(seed: int, split: str, index: int, stream: int = 0) -> np.random.Generator:
    """The generator of one scene; `stream` separates its geometry (0) from its noise (1) and its start (2)."""
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {sorted(SPLITS)}, got {split!r}")
    if seed < 0 or index < 0:
        raise ConfigError(f"seed and scene index must be >= 0, got seed={seed}, index={index}")
    return _generator(seed, SPLITS[split], index, stream)


def hardware_generator(seed: int, station: int, stream: int = 0) -> np.random.Generator:
    """The generator of a station's errors, whatever the scene and split; `stream` separates kinds of errors."""
    return _generator(seed, _HARDWARE, station, stream)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class SceneSampler:
    """Draws users, scatterers, visibility, gains and clock offsets.

    Args:
        ue_region: [2 xyz] corners of the box of user positions [m].
        scatterer_region: [2 xyz] corners of the box of scatterer positions [m].
        num_shared: scatterers that several stations can see.
        num_specific: further scatterers per station that only this station sees.
        visibility: probability that a station sees a shared scatterer.
        min_views: a shared scatterer is redrawn until so many stations see it.
        min_spacing_m: least distance between scatterers [m].
        min_bs_distance_m: least distance of scatterers from stations [m].
        min_ue_distance_m: least distance of scatterers from the user [m].
        min_boresight_cos: a station does not see a scatterer whose direction has a smaller cosine with the boresight.
        gains: `rayleigh` (CN(0, 1)) or `constant_modulus` (random phase).
        clock_offsets: `gaussian`, `uniform` (same standard deviation) or `zero`.
        clock_offset_std: true standard deviation [s]; that of the deployment's prior when None.
    """

    def __init__(
        self,
        ue_region: Sequence[Sequence[float]],
        scatterer_region: Sequence[Sequence[float]],
        num_shared: int = 8,
        num_specific: int = 2,
        visibility: float = 0.8,
        min_views: int = 2,
        min_spacing_m: float = 2.0,
        min_bs_distance_m: float = 3.0,
        min_ue_distance_m: float = 1.5,
        min_boresight_cos: float = 0.05,
        gains: str = "rayleigh",
        clock_offsets: str = "gaussian",
        clock_offset_std: float | None = None,
    ) -> None:
        self.ue_region = np.asarray(ue_region, float)
        self.scatterer_region = np.asarray(scatterer_region, float)
        for name, box in (("ue_region", self.ue_region), ("scatterer_region", self.scatterer_region)):
            if box.shape != (2, 3) or not np.isfinite(box).all() or (box[0] > box[1]).any():
                raise ConfigError(f"{name} must be [[x, y, z] lower, [x, y, z] upper], got {box.tolist()}")
        for name, count in (("num_shared", num_shared), ("num_specific", num_specific), ("min_views", min_views)):
            if not isinstance(count, Integral) or isinstance(count, bool) or count < 0:
                raise ConfigError(f"{name} must be a whole number >= 0, got {count!r}")
        for name, number, low in (
            ("visibility", visibility, 0.0),
            ("min_spacing_m", min_spacing_m, 0.0),
            ("min_bs_distance_m", min_bs_distance_m, 0.0),
            ("min_ue_distance_m", min_ue_distance_m, 0.0),
            ("min_boresight_cos", min_boresight_cos, -1.0),
        ):
            if isinstance(number, bool) or not isinstance(number, Real) or not low <= number < math.inf:
                raise ConfigError(f"{name} must be a finite number >= {low:g}, got {number!r}")
        if num_shared + num_specific == 0:
            raise ConfigError(f"num_shared and num_specific must give a scatterer, got {num_shared}, {num_specific}")
        if not 0 < visibility <= 1:
            raise ConfigError(f"visibility must be in (0, 1], got {visibility}")
        if gains not in ("rayleigh", "constant_modulus"):
            raise ConfigError(f"gains must be rayleigh or constant_modulus, got {gains!r}")
        if clock_offsets not in ("gaussian", "uniform", "zero"):
            raise ConfigError(f"clock_offsets must be gaussian, uniform or zero, got {clock_offsets!r}")
        if clock_offset_std is not None and not (np.isfinite(clock_offset_std) and clock_offset_std >= 0):
            raise ConfigError(f"the true clock_offset_std must be finite and >= 0, got {clock_offset_std}")
        self.num_shared, self.num_specific = num_shared, num_specific
        self.visibility, self.min_views = visibility, min_views
        self.min_spacing_m, self.min_bs_distance_m, self.min_ue_distance_m = (
            min_spacing_m,
            min_bs_distance_m,
            min_ue_distance_m,
        )
        self.min_boresight_cos = min_boresight_cos
        self.gains, self.clock_offsets, self.clock_offset_std = gains, clock_offsets, clock_offset_std

    def sample(self, deployment: Deployment, seed: int, split: str, indices: Iterable[int]) -> Scene:
        """Scenes `indices` of a split, as one batch.

        Args:
            deployment: the stations.
            seed: experiment seed.
            split: train, val, test or sample.
            indices: scene numbers.

        Returns:
            Scene with batch shape [len(indices)], in float64 on the CPU.

        Raises:
            ConfigError: the boxes have no room for the scatterers at the distances asked for.
        """
        std, bs, boresight = self._known(deployment)
        drawn = [self._one(bs, boresight, std, scene_generator(seed, split, i)) for i in indices]
        return Scene(*(torch.from_numpy(np.stack(field)) for field in zip(*drawn, strict=True)))

    def sample_at(
        self, deployment: Deployment, seed: int, split: str, indices: Iterable[int], ue_position: Tensor
    ) -> Scene:
        """The same surroundings for many users: common random numbers, so that maps over the user are smooth.

        Draw i has the random numbers of scene i. Scatterers, gains and offsets are those of all users alike, but for a
        user with a scatterer nearer than `min_ue_distance_m`: there the positions are drawn anew, as for scene i.

        Args:
            deployment: the stations.
            seed: experiment seed.
            split: train, val, test or sample.
            indices: scene numbers.
            ue_position: [user xyz] positions on the CPU [m]; `ue_region` is not asked.

        Returns:
            Scene with batch shape [user, len(indices)], each user's draws following the law of the scenes.

        Raises:
            ConfigError: as `sample`.
        """
        std, bs, boresight = self._known(deployment)
        indices, users = list(indices), ue_position.double().numpy()
        alone = np.full(3, np.inf)  # a user who is near to nothing
        drawn = [self._one(bs, boresight, std, scene_generator(seed, split, i), alone) for i in indices]
        _, points, visible, offset, gain = (
            np.repeat(np.stack(field)[None], len(users), 0) for field in zip(*drawn, strict=True)
        )
        near = np.linalg.norm(points - users[:, None, None], axis=-1).min(-1) < self.min_ue_distance_m
        for user, draw in np.argwhere(near):
            again = self._one(bs, boresight, std, scene_generator(seed, split, indices[draw]), users[user])
            points[user, draw], visible[user, draw] = again[1:3]
        ue = np.repeat(users[:, None], len(indices), 1)
        return Scene(*map(torch.from_numpy, (ue, points, visible, offset, gain)))

    def _known(self, deployment: Deployment) -> tuple[float, np.ndarray, np.ndarray]:
        """Deviation of the drawn offsets [s], positions and boresights of the stations."""
        std = float(deployment.clock_offset_std) if self.clock_offset_std is None else self.clock_offset_std
        if not np.isfinite(std):
            raise ConfigError("a flat clock offset prior (inf) needs sampler.clock_offset_std, the true deviation [s]")
        return std, deployment.bs_position.detach().cpu().numpy(), deployment.boresight.detach().cpu().numpy()

    def _one(
        self,
        bs: np.ndarray,
        boresight: np.ndarray,
        std: float,
        rng: np.random.Generator,
        user: np.ndarray | None = None,
    ) -> tuple[np.ndarray, ...]:
        """One scene; a given user takes the place of the drawn one."""
        stations = len(bs)
        ue = rng.uniform(*self.ue_region)
        ue = ue if user is None else user
        owner = np.repeat(np.arange(-1, stations), [self.num_shared] + [self.num_specific] * stations)
        points = np.empty((len(owner), 3))
        visible = np.zeros((stations, len(owner)), bool)
        for n, station in enumerate(owner):
            points[n], visible[:, n] = self._scatterer(points[:n], int(station), ue, bs, boresight, rng)
        gain = rng.standard_normal((stations, len(owner), 2)) @ np.array([1.0, 1j]) / np.sqrt(2.0)
        if self.gains == "constant_modulus":
            gain = gain / np.abs(gain)
        unit = (
            rng.uniform(-np.sqrt(3.0), np.sqrt(3.0), stations)
            if self.clock_offsets == "uniform"
            else rng.standard_normal(stations)
        )
        offset = np.zeros(stations) if self.clock_offsets == "zero" else std * unit
        return ue, points, visible, offset, gain

    def _scatterer(
        self,
        others: np.ndarray,
        station: int,
        ue: np.ndarray,
        bs: np.ndarray,
        boresight: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one scatterer and who sees it; station -1 means shared."""
        for _ in range(10_000):
            point = rng.uniform(*self.scatterer_region)
            from_bs = point - bs
            distance = np.linalg.norm(from_bs, axis=-1)
            in_front = (from_bs * boresight).sum(-1) >= self.min_boresight_cos * distance
            seen = rng.random(len(bs)) < self.visibility
            seen = seen & in_front if station < 0 else (np.arange(len(bs)) == station) & in_front
            if (
                distance.min() >= self.min_bs_distance_m
                and np.linalg.norm(point - ue) >= self.min_ue_distance_m
                and (len(others) == 0 or np.linalg.norm(others - point, axis=-1).min() >= self.min_spacing_m)
                and seen.sum() >= (min(self.min_views, len(bs)) if station < 0 else 1)
            ):
                return point, seen
        raise ConfigError(
            "no room for a scatterer after 10000 draws: "
            "lower num_shared, num_specific, min_views or the minimum distances"
        )


def unit_noise(shape: Sequence[int], seed: int, split: str, indices: Iterable[int]) -> Tensor:
    """CN(0, 1) noise of each scene, [len(indices), *shape] complex128; the same at every SNR for every estimator."""
    draws = [scene_generator(seed, split, i, _NOISE_STREAM).standard_normal((*shape, 2)) for i in indices]
    return torch.view_as_complex(torch.from_numpy(np.stack(draws))) / np.sqrt(2.0)
