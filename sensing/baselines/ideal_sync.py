"""Known clock offsets: what perfect synchronisation would buy."""

import math

import torch
from torch import Tensor

from sensing.baselines.truth import check_truth
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates, in_double
from sensing.errors import ConfigError, MissingTruthError
from sensing.estimator import Estimator, check_input
from sensing.units import SPEED_OF_LIGHT


class IdealSync:
    """Another estimator with the clock offsets known: what perfect synchronisation would buy.

    The true offsets are removed from the pilots and from the detected ranges, the wrapped estimator runs with an offset
    prior of standard deviation `residual / bandwidth`, and the offsets are put back into what it returns. The default
    1e-4 / bandwidth is 0.24 mm at 123 MHz: far below every range error of interest, yet its precision stays within 1e4
    of that of a path at 30 dB, so that scaled factorisations keep 10 digits.

    Args:
        estimator: the estimator to wrap.
        residual: standard deviation left in the prior, in units of 1 / bandwidth.
        name: label in tables.
    """

    needs_truth, bound = True, "peb_sync"

    def __init__(self, estimator: Estimator, residual: float = 1e-4, name: str = "ideal_sync") -> None:
        if not 0 <= residual < math.inf:
            raise ConfigError(f"residual must be a finite number >= 0, got {residual}")
        self.estimator, self.residual, self.name = estimator, residual, name
        self.front_end = getattr(estimator, "front_end", "nomp")

    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """Estimate with known offsets; raises MissingTruthError if the truth does not hold them."""
        if truth is None or truth.scene is None:
            raise MissingTruthError("ideal_sync needs the true clock offsets, got no true scene")
        check_input(observation, deployment, paths)
        check_truth(truth.scene, observation)
        offset = truth.scene.clock_offset
        advance = clock_phase(-offset, deployment.pilot_freq).to(observation.y.dtype)
        aligned = observation._replace(y=observation.y * advance)
        if paths is not None:
            paths = shift_ranges(in_double(paths), -SPEED_OF_LIGHT * offset, deployment)
        scene = truth.scene._replace(clock_offset=torch.zeros_like(offset))
        channel = None if truth.channel is None else truth.channel * advance
        estimate = self.estimator(
            aligned, synchronous(deployment, self.residual), paths, Example(aligned, scene, channel)
        )
        found = torch.zeros_like(offset) if estimate.clock_offset is None else estimate.clock_offset
        return estimate._replace(channel=estimate.channel * advance.conj(), clock_offset=offset + found)


def synchronous(deployment: Deployment, residual: float = 1e-4) -> Deployment:
    """The same deployment with an offset prior of standard deviation `residual / bandwidth`."""
    return deployment._replace(clock_offset_std=residual / deployment.bandwidth)


def clock_phase(offset: Tensor, pilot_freq: Tensor) -> Tensor:
    """`exp(-j 2 pi f delta)`: what a late clock does to the pilots, [* bs] [s] to [* bs 1 sc]."""
    phase = -2.0 * math.pi * pilot_freq * offset[..., None, None]
    return torch.polar(torch.ones_like(phase), phase)


def shift_ranges(paths: PathEstimates, shift_m: Tensor, deployment: Deployment) -> PathEstimates:
    """Add a length to all ranges of a station, modulo the ambiguity A, with the response unchanged otherwise.

    Taking n periods off a range multiplies the response by `exp(+j 2 pi f n A / c)`, which is the same number at all
    pilots of a uniform grid (-1 for odd n and an even number of centred pilots); the gain takes up its inverse.

    Args:
        paths: [* bs path].
        shift_m: [* bs] [m].
        deployment: pilots.

    Returns:
        Paths with ranges in [0, A).
    """
    moved = paths.range_m + shift_m[..., None].to(paths.range_m.dtype)
    period = deployment.range_ambiguity.to(moved.dtype)
    if not bool(torch.isfinite(period)):
        return paths._replace(range_m=moved)
    turns = torch.floor(moved / period)
    phase = (-2.0 * math.pi / SPEED_OF_LIGHT) * deployment.pilot_freq[0] * turns * period
    gain = paths.gain * torch.polar(torch.ones_like(phase), phase).to(paths.gain.dtype)
    return paths._replace(range_m=moved - turns * period, gain=gain)
