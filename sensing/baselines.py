"""Reference estimators: what plain path-wise fitting reaches, and what knowing part of the truth would buy.

All follow the estimator protocol of `sensing.estimator`. `uses_paths` says whether the shared front end's paths are
part of the method (and its time part of the method's time); `bound` names the bound that an error is compared with.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates
from sensing.errors import DomainError
from sensing.estimator import Estimator
from sensing.geometry import bounce_ranges
from sensing.operators.khatri_rao import PathOperator, path_operator
from sensing.units import SPEED_OF_LIGHT

Detector = Callable[[Observation, Deployment], PathEstimates]


class NompLs:
    """Channel from the detected paths with least squares gains, `h = Phi (Phi^H Phi)^-1 Phi^H y`; no location.

    Args:
        detector: front end, called where the caller brings no paths.
    """

    name, needs_truth, uses_paths, bound = "nomp_ls", False, True, "peb"

    def __init__(self, detector: Detector | None = None) -> None:
        self.detector = detector

    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """Estimate the channel; raises DomainError if there are neither paths nor a detector."""
        if paths is None:
            if self.detector is None:
                raise DomainError("nomp_ls needs paths or a detector, got neither")
            paths = self.detector(observation, deployment)
        operator = path_operator(paths.range_m, paths.direction, deployment, paths.mask, observation.y.dtype)
        # plain least squares up to rounding: the ridge only keeps two coinciding columns factorisable
        ant, sc = observation.y.shape[-2:]
        ridge = 8 * paths.mask.shape[-1] * torch.finfo(observation.y.dtype).eps * ant * sc
        gain = regularised_gains(operator, observation.y, ridge)
        return Estimate(channel=operator.matvec(gain))


class GenieLmmse:
    """LMMSE of the gains with the true geometry and support: the floor of the channel error (equation 1.10).

    `x = (Phi^H Phi / sigma^2 + I / v)^-1 Phi^H y / sigma^2`, one column per visible scatterer. Nobody can reach it
    without knowing the geometry: the gap is about `10 log10(1 + n_geo / (2 L))` dB for n_geo real unknowns and L paths.

    Args:
        gain_variance: prior variance v of the path gains.
    """

    name, needs_truth, uses_paths, bound = "genie_lmmse", True, False, "peb"

    def __init__(self, gain_variance: float = 1.0) -> None:
        if not (math.isfinite(gain_variance) and gain_variance > 0):
            raise DomainError(f"gain_variance must be positive, got {gain_variance}")
        self.gain_variance = gain_variance

    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """Estimate the channel; raises DomainError if the truth does not hold every path of the channel."""
        scene = None if truth is None else truth.scene
        if scene is None or scene.gain is None:
            lacks = "no scene" if scene is None else "a scene without path gains (not all of its paths are known)"
            raise DomainError(f"genie_lmmse needs the true scene with all its paths, got {lacks}")
        offset_m = SPEED_OF_LIGHT * scene.clock_offset
        range_m, direction, _, _ = bounce_ranges(
            scene.scatterer_position, scene.ue_position, deployment.bs_position, offset_m
        )
        operator = path_operator(range_m, direction, deployment, scene.visible, observation.y.dtype)
        ridge = observation.noise_var / self.gain_variance
        gain = regularised_gains(operator, observation.y, ridge[..., None])
        return Estimate(channel=operator.matvec(gain), support=scene.visible.to(ridge.dtype), gain=gain)


class IdealSync:
    """Another estimator with the clock offsets known: what perfect synchronisation would buy.

    The true offsets are removed from the pilots and from the detected ranges, the wrapped estimator runs with an offset
    prior of standard deviation `residual / bandwidth`, and the offsets are put back into what it returns. The default
    1e-4 / bandwidth is 0.24 mm at 123 MHz: far below every range error of interest, yet its precision stays within 1e4
    of that of a path at 30 dB, so that scaled factorisations keep 10 digits.

    Args:
        estimator: the estimator to wrap.
        residual: standard deviation left in the prior, in units of 1 / bandwidth.
    """

    name, needs_truth, bound = "ideal_sync", True, "peb_sync"

    def __init__(self, estimator: Estimator, residual: float = 1e-4) -> None:
        self.estimator, self.residual = estimator, residual
        self.uses_paths = getattr(estimator, "uses_paths", True)

    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """Estimate with known offsets; raises DomainError if the truth does not hold them."""
        if truth is None or truth.scene is None:
            raise DomainError("ideal_sync needs the true clock offsets, got no true scene")
        offset = truth.scene.clock_offset
        advance = clock_phase(-offset, deployment.pilot_freq).to(observation.y.dtype)
        aligned = observation._replace(y=observation.y * advance)
        if paths is not None:
            paths = shift_ranges(paths, -SPEED_OF_LIGHT * offset, deployment)
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


def regularised_gains(operator: PathOperator, y: Tensor, ridge: Tensor | float) -> Tensor:
    """`(Phi^H Phi + ridge I)^-1 Phi^H y` by the structured Gram; zero columns get a zero gain.

    Args:
        operator: [* bs (ant, sc) path].
        y: [* bs ant sc].
        ridge: [* bs 1] or a number.

    Returns:
        [* bs path].
    """
    gram = operator.gram()
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    loading = ridge + (diagonal <= 0).to(diagonal.dtype)
    chol = torch.linalg.cholesky(gram + torch.diag_embed(loading.expand(diagonal.shape).to(gram.dtype)))
    return torch.cholesky_solve(operator.rmatvec(y)[..., None], chol)[..., 0]
