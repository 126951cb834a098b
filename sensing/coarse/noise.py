"""Noise variance where nobody knows it: the front end of an observation without `noise_var`.

Plane waves make y [ant sc] of one station a matrix of rank L plus noise, whatever the array and the pilots. Singular
values below the edge of the noise, `variance (sqrt(ant) + sqrt(sc))^2`, give a first variance; it is never far too low,
so that the detector finds no ghosts. The residual of the detected paths then gives the variance itself,

    variance = |y - Phi g|^2 / (ant sc - 5/2 L),

less one complex gain and three real parameters for each path, at the standard deviation `variance / sqrt(ant sc)` of
noise alone. The median of the periodogram, the usual robust choice, is 30 % off at 10 dB and 450 % at 30 dB here:
the sidelobes of a path between grid points reach most bins. Singular values have no sidelobes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sensing.coarse.detection import PathDetector
from sensing.containers import Deployment, Observation, PathEstimates, map_tensors
from sensing.errors import ConfigError
from sensing.operators.khatri_rao import path_operator

NOISE = ("known", "estimated")

Detector = Callable[[Observation, Deployment], PathEstimates]

_FLOOR = 1e-7  # least variance over mean power: above 70 dB gates of association get narrower than their linearisation
_SETTLED = 0.1  # relative change of the variance below which the detection's threshold stands
_ROUNDS = 6  # most detections; one in a hall, more where one antenna or few pilots leave the rank full


def check_noise(noise: str) -> str:
    """The option itself; raises ConfigError unless it is one of `NOISE`."""
    if noise not in NOISE:
        raise ConfigError(f"noise must be one of {', '.join(NOISE)}, got {noise!r}")
    return noise


def detect(
    observation: Observation, deployment: Deployment, detector: Detector, noise: str = "known"
) -> tuple[Observation, PathEstimates]:
    """Paths of all stations, and the observation with the noise variance that they were detected with.

    No station's noise is taken to be less than 70 dB below its mean power, known or not: a channel without noise is
    located as well as it can be, with a covariance that is too large.

    Args:
        observation: one batch axis; `noise_var` is not read where the noise is estimated.
        deployment: the stations.
        detector: finds the paths at a given noise variance.
        noise: `known`, or `estimated` for each scene and station.
    """
    y = observation.y.to(torch.complex128)
    if check_noise(noise) == "known":
        observation = observation._replace(noise_var=torch.maximum(observation.noise_var, least_variance(y)))
        return observation, detector(observation, deployment)
    variance, index = rank_variance(y), torch.arange(len(y), device=y.device)
    found: list[tuple[Tensor, PathEstimates]] = []
    for rounds in range(_ROUNDS):
        part = Observation(y[index], variance[index])
        paths = detector(part, deployment)
        refined = residual_variance(part.y, paths, deployment)
        ratio = refined / part.noise_var
        variance = variance.index_copy(0, index, refined)
        settled = ((ratio - 1.0).abs() < _SETTLED).all(-1) | (rounds == _ROUNDS - 1)
        paths = _rescaled(paths, ratio)
        found.append((index[settled], PathEstimates(*(field[settled] for field in paths))))
        index = index[~settled]
        if len(index) == 0:
            break
    return Observation(observation.y, variance), _in_order(found)


def estimate_noise_variance(
    observation: Observation, deployment: Deployment, detector: Detector | None = None
) -> Tensor:
    """Noise variance of every scene and station, [b bs]; `observation.noise_var` is not read.

    Args:
        observation: y [b bs ant sc].
        deployment: the stations.
        detector: finds the paths that are removed; the default when None.
    """
    return detect(observation, deployment, detector or PathDetector(), "estimated")[0].noise_var


def rank_variance(y: Tensor) -> Tensor:
    """Noise variance [* bs] from the singular values of y [* bs ant sc] below the edge of the noise.

    From above: k values stand out of the noise that the others, `sum s^2 / ((ant - k) (sc - k))`, show; repeat with
    these removed. One where y is zero: without power there is no scale.
    """
    ant, sc = y.shape[-2:]
    power = torch.linalg.svdvals(y).square()
    edge = (math.sqrt(ant) + math.sqrt(sc)) ** 2
    variance = power.sum(-1) / (ant * sc)
    for _ in range(min(ant, sc)):
        stands_out = power > edge * variance[..., None]
        k = stands_out.sum(-1).clamp(max=min(ant, sc) - 1)
        lower = torch.minimum(variance, (power * ~stands_out).sum(-1) / ((ant - k) * (sc - k)))
        if torch.equal(lower, variance):
            break
        variance = lower
    return _plausible(variance, y)


def residual_variance(y: Tensor, paths: PathEstimates, deployment: Deployment) -> Tensor:
    """Noise variance [* bs] of what the detected paths leave of y [* bs ant sc], per degree of freedom."""
    operator = path_operator(paths.range_m, paths.direction, deployment, paths.mask)
    residual = (y - operator.matvec(paths.gain)).abs().square().sum((-2, -1))
    entries = y.shape[-2] * y.shape[-1]
    # few entries and many paths leave nothing to measure: at least a quarter is taken to be noise
    freedom = (entries - 2.5 * paths.mask.sum(-1)).clamp_min(entries / 4)
    return _plausible(residual / freedom, y)


def least_variance(y: Tensor) -> Tensor:
    """Variance [* bs] below which noise is not believed, 70 dB below the mean power of y."""
    return _FLOOR * y.abs().square().mean((-2, -1))


def _plausible(variance: Tensor, y: Tensor) -> Tensor:
    """At least the least variance; one where y is zero."""
    least = least_variance(y)
    return torch.where(least > 0, torch.maximum(variance, least), torch.ones_like(least))


def _rescaled(paths: PathEstimates, ratio: Tensor) -> PathEstimates:
    """Paths detected at one noise variance as they are at `ratio` [b bs] times it."""
    ratio = ratio[..., None, None, None]
    return paths._replace(information=paths.information / ratio, covariance=paths.covariance * ratio)


def _in_order(found: list[tuple[Tensor, PathEstimates]]) -> PathEstimates:
    """Groups of scenes, each with its number of path slots, as one batch in the order of their indices."""
    width = max(paths.mask.shape[-1] for _, paths in found)

    def padded(paths: PathEstimates) -> PathEstimates:
        spare = torch.arange(width, device=paths.mask.device) >= paths.mask.shape[-1]
        slot = torch.where(spare, 0, torch.arange(width, device=paths.mask.device))
        wide = map_tensors(paths, lambda field: field[:, :, slot])
        empty = map_tensors(wide, torch.zeros_like)._replace(direction=wide.direction)
        return PathEstimates(
            *(
                torch.where(spare.reshape(-1, *[1] * (new.ndim - 3)), new, old)
                for new, old in zip(empty, wide, strict=True)
            )
        )

    order = torch.cat([index for index, _ in found]).argsort()
    groups = [padded(paths) for _, paths in found]
    return PathEstimates(*(torch.cat(fields)[order] for fields in zip(*groups, strict=True)))
