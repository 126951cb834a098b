"""Random targets and what stations report of them: the observation model of paper 3 (equations 1 to 3).

Drop i of a split depends on (seed, split, i) alone. Noise and bias are drawn as unit quantities first, so the same
drops come with any deviations and any largest bias.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.fusion.domain import Domain
from sensing.fusion.measurements import StationMeasurements
from sensing.simulation.sampler import scene_generator

BIASES = ("none", "uniform", "exponential", "delta")


class Drops(NamedTuple):
    """Targets, their measurements and the truth behind these."""

    position: Tensor  # [* xyz] [m]
    measured: StationMeasurements  # [* bs], with the deviations that the stations claim
    bias_m: Tensor  # [* bs] of the ranges [m]
    bias_scale_m: Tensor  # [*] parameter of the bias law in this drop [m]
    range_std: Tensor  # [* bs] true deviations [m]
    angle_std: Tensor  # [* bs] [rad]


class DropSampler:
    """Law of drops.

    Args:
        bs_position: [bs xyz] [m].
        domain: targets are uniform on it.
        range_std_m: true deviation of the ranges, for all stations or one each [m].
        angle_std_deg: the same of azimuth and elevation [degrees].
        assumed_range_std_m: what the stations claim; None: the truth.
        assumed_angle_std_deg: the same for angles.
        bias: law of the range bias: `none`, `uniform` from 0 to the scale, `exponential` with the scale as mean, or
            `delta`, the scale itself.
        bias_scale_m: the scale [m].
        random_scale: each drop draws its own scale, uniform from 0 to `bias_scale_m`.
        biased: stations with a bias; None: all.
        unbiased_share: probability of a drop without any bias, whatever the law.
        shuffle: the stations' deviations, true and assumed alike, are dealt out anew in every drop.
    """

    def __init__(
        self,
        bs_position: Sequence[Sequence[float]],
        domain: Domain,
        range_std_m: float | Sequence[float] = 1.0,
        angle_std_deg: float | Sequence[float] = 1.0,
        assumed_range_std_m: float | Sequence[float] | None = None,
        assumed_angle_std_deg: float | Sequence[float] | None = None,
        bias: str = "none",
        bias_scale_m: float = 0.0,
        random_scale: bool = False,
        biased: Sequence[int] | None = None,
        shuffle: bool = False,
        unbiased_share: float = 0.0,
    ) -> None:
        self.bs_position = torch.as_tensor(bs_position, dtype=torch.float64)
        if self.bs_position.ndim != 2 or self.bs_position.shape[-1] != 3 or not len(self.bs_position):
            raise ConfigError(f"bs_position must be [bs xyz], got {list(self.bs_position.shape)}")
        stations = len(self.bs_position)

        def each(name: str, value: float | Sequence[float]) -> np.ndarray:
            array = np.asarray(value, float)
            if array.ndim > 1 or (array.ndim == 1 and len(array) != stations) or not (array > 0).all():
                raise ConfigError(f"{name} must be positive, one or one for each of {stations} stations, got {value}")
            return np.broadcast_to(array, (stations,))

        self.range_std = each("range_std_m", range_std_m)
        self.angle_std = np.deg2rad(each("angle_std_deg", angle_std_deg))
        assumed = range_std_m if assumed_range_std_m is None else assumed_range_std_m
        self.assumed_range_std = each("assumed_range_std_m", assumed)
        assumed = angle_std_deg if assumed_angle_std_deg is None else assumed_angle_std_deg
        self.assumed_angle_std = np.deg2rad(each("assumed_angle_std_deg", assumed))
        if bias not in BIASES:
            raise ConfigError(f"bias must be one of {list(BIASES)}, got {bias!r}")
        if not 0 <= bias_scale_m < math.inf:
            raise ConfigError(f"bias_scale_m must be a number >= 0, got {bias_scale_m}")
        chosen = list(range(stations)) if biased is None else list(biased)
        if not set(chosen) <= set(range(stations)):
            raise ConfigError(f"biased must name stations out of 0 to {stations - 1}, got {biased}")
        if not 0 <= unbiased_share <= 1:
            raise ConfigError(f"unbiased_share must be a probability, got {unbiased_share}")
        self.unbiased_share = unbiased_share
        self.has_bias = np.isin(np.arange(stations), chosen)
        self.domain, self.bias, self.bias_scale_m = domain, bias, 0.0 if bias == "none" else bias_scale_m
        self.random_scale, self.shuffle = random_scale, shuffle

    def sample(self, seed: int, split: str, indices: Iterable[int]) -> Drops:
        """Drops `indices` of a split, as one batch in float64."""
        drawn = [self._draw(scene_generator(seed, split, i), 1) for i in indices]
        return self._drops([np.concatenate(field) for field in zip(*drawn, strict=True)])

    def block(self, seed: int, split: str, number: int, count: int) -> Drops:
        """Block `number` of a split, `count` drops that depend on all three: the fast way to many of them."""
        return self._drops(self._draw(scene_generator(seed, split, number), count))

    def _drops(self, drawn: Sequence[np.ndarray]) -> Drops:
        position, ranges, angles, bias, scale, *std = (torch.from_numpy(field) for field in drawn)
        offset = position[:, None] - self.bs_position
        distance = torch.linalg.vector_norm(offset, dim=-1)
        azimuth = torch.atan2(offset[..., 1], offset[..., 0])
        elevation = torch.asin(offset[..., 2] / distance)
        true_range, true_angle, assumed_range, assumed_angle = std
        measured = StationMeasurements(
            bs_position=self.bs_position,
            range_m=distance + bias + true_range * ranges,
            azimuth=_wrapped(azimuth + true_angle * angles[..., 0]),
            elevation=(elevation + true_angle * angles[..., 1]).clamp(-math.pi / 2, math.pi / 2),
            range_std=assumed_range,
            angle_std=assumed_angle,
        )
        return Drops(position, measured, bias, scale, true_range, true_angle)

    def _draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
        """Random numbers of `count` drops, the first axis of all."""
        shape = (count, len(self.bs_position))
        centre = self.domain.points.numpy()[rng.integers(len(self.domain.points), size=count)]
        position = centre + (rng.random((count, 3)) - 0.5) * self.domain.cell.numpy()
        ranges, angles = rng.standard_normal(shape), rng.standard_normal((*shape, 2))
        uniform, exponential, share = rng.random(shape), rng.exponential(size=shape), rng.random(count)
        order = rng.permuted(np.broadcast_to(np.arange(shape[1]), shape), axis=1)
        unit = {"none": 0.0 * uniform, "uniform": uniform, "exponential": exponential, "delta": 1.0 + 0.0 * uniform}
        scale = self.bias_scale_m * (share if self.random_scale else np.ones(count))
        scale = np.where(rng.random(count) < self.unbiased_share, 0.0, scale)  # drawn last: other laws keep their drops
        bias = scale[:, None] * unit[self.bias] * self.has_bias
        std = [self.range_std, self.angle_std, self.assumed_range_std, self.assumed_angle_std]
        dealt = [each[order] if self.shuffle else np.broadcast_to(each, shape).copy() for each in std]
        return position, ranges, angles, bias, scale, *dealt


def _wrapped(angle: Tensor) -> Tensor:
    """An angle within +-pi."""
    return torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
