"""The multi-station estimator: detect, locate coarsely, refine by unrolled EM.

The classical estimator is this class with tied, neutral corrections; the unfolded one is the same class, untied and
learned.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sensing.checks import check_shape
from sensing.coarse.detection import PathDetector
from sensing.coarse.joint_detection import joint_detection
from sensing.coarse.localization import CoarseLocalizer, CoarseLocation, with_slot
from sensing.coarse.noise import check_noise, detect
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.user_search import user_box
from sensing.containers import Deployment, Estimate, Example, Flag, Geometry, Observation, PathEstimates, in_double
from sensing.errors import ConfigError, ShapeError
from sensing.fusion.weights import FusionWeights
from sensing.inference.calibration import ArrayCalibration
from sensing.inference.iteration import select
from sensing.inference.outcome import free_positions, to_estimate
from sensing.inference.unrolled import Refined, Unrolled
from sensing.units import SPEED_OF_LIGHT

Detector = Callable[[Observation, Deployment], PathEstimates]
"""Front end: paths of every station."""

Localizer = Callable[[PathEstimates, Deployment], CoarseLocation]
"""Coarse stage: from paths to a geometry with its flags."""


class Estimator(Protocol):
    """What every estimator offers."""

    name: str
    needs_truth: bool

    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """Estimate all scenes of a batch.

        Args:
            observation: y [b bs ant sc] and noise_var [b bs].
            deployment: stations, array, pilots and priors.
            paths: detected paths, so that several estimators share one front end; detected here when None.
            truth: what a genie knows; ignored by all others.

        Returns:
            Estimate; fields that the estimator does not provide are None.
        """
        ...


class LocationEstimator(nn.Module):
    """Path detection, association and least squares, then unrolled EM iterations.

    Args:
        detector: per-station path detection; the default when None.
        localizer: association and coarse location; the default when None.
        unrolled: EM iterations; the default when None.
        name: label in tables.
        noise: noise variance of its own front end, `known` or `estimated`; paths of the caller come with theirs.
        joint_false_alarm: paths per scene that noise alone may add where weak paths of a station are looked for in
            the directions of the others (`coarse.joint_detection`); 0: not done.
        calibration: gain and phase of every element; the array is ideal when None. With one the estimator finds its
            own paths, in the calibrated observation.

    Raises:
        ConfigError: a share outside its range.
    """

    needs_truth = False

    def __init__(
        self,
        detector: Detector | None = None,
        localizer: Localizer | None = None,
        unrolled: Unrolled | None = None,
        name: str = "classical",
        noise: str = "known",
        joint_false_alarm: float = 0.05,
        calibration: ArrayCalibration | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= joint_false_alarm < 1.0:
            raise ConfigError(f"joint_false_alarm must be in [0, 1), got {joint_false_alarm}")
        self.joint_false_alarm = joint_false_alarm
        self.name, self.noise = name, check_noise(noise)
        self.detector = PathDetector() if detector is None else detector
        self.localizer = CoarseLocalizer() if localizer is None else localizer
        self.unrolled = Unrolled() if unrolled is None else unrolled
        self.calibration = calibration
        self.front_end: str | None = "nomp" if calibration is None else None  # whose paths it takes

    def forward(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        """See `Estimator`. One batch axis; a scene that cannot be solved is flagged and never raises.

        Raises:
            ShapeError, DomainError: observation or paths do not fit the deployment or are not finite.
            ConfigError: paths of an observation that has yet to be calibrated.
        """
        if paths is not None and self.calibration is not None:
            raise ConfigError("an estimator with a calibration finds its own paths, got paths")
        check_batch(observation, deployment, paths, paths is not None or self.noise == "known")
        deployment = in_double(deployment)
        paths = None if paths is None else in_double(paths)
        observation = self.calibrated(observation)
        if paths is None:
            with torch.no_grad():
                observation, paths = self.detect(observation, deployment)
        coarse = self.with_weak_paths(observation, deployment, paths, self.localizer(paths, deployment))
        refined, lost = self.refine(observation, deployment, coarse)
        estimate = as_located(
            to_estimate(refined.final, refined.problem), refined, coarse, self.coarse_is_final(coarse)
        )
        flags = coarse.flags | torch.where(lost, Flag.DIVERGED, 0)
        assert estimate.covariance is not None
        covariance = doubtful_covariance(estimate.covariance, flags, coarse, deployment)
        channel = self.observed(estimate.channel)
        return estimate._replace(
            channel=channel,
            covariance=covariance,
            cost_per_dof=coarse.cost_per_dof,
            flags=flags,
            fallback=refined.fallback if self.unrolled.fallback else None,
            near=refined.near if self.unrolled.near else None,
        )

    def calibrated(self, observation: Observation) -> Observation:
        """The observation as ideal arrays would have made it."""
        return observation if self.calibration is None else self.calibration(observation)

    def observed(self, channel: Tensor) -> Tensor:
        """A channel [* bs ant sc] as the uncalibrated arrays see it."""
        return channel if self.calibration is None else self.calibration.observed(channel)

    def detect(self, observation: Observation, deployment: Deployment) -> tuple[Observation, PathEstimates]:
        """Paths of all stations, and the observation with the noise variance that they were detected with."""
        return detect(observation, deployment, self.detector, self.noise)

    def coarse_is_final(self, coarse: CoarseLocation) -> Tensor:
        """Scenes [b] located by the coarse stage: the iterations trust the model and know no line of sight."""
        return (coarse.direct >= 0).any(-1) | self.model_is_inexact

    @property
    def model_is_inexact(self) -> bool:
        """Whether paths have errors beyond the noise: weak ones cannot be told from what those leave over."""
        return bool(getattr(self.localizer, "model_error", 0.0) > 0)

    def with_weak_paths(
        self, observation: Observation, deployment: Deployment, paths: PathEstimates, coarse: CoarseLocation
    ) -> CoarseLocation:
        """The coarse location with nodes for the scatterers that a second station sees too weakly to have found."""
        if self.joint_false_alarm == 0 or self.model_is_inexact:
            return coarse
        found = coarse.path, coarse.geometry
        more = joint_detection(observation, deployment, with_slot(paths), *found, self.joint_false_alarm)
        return coarse._replace(geometry=more)

    def refine(
        self, observation: Observation, deployment: Deployment, coarse: CoarseLocation
    ) -> tuple[Refined, Tensor]:
        """Unrolled iterations from the coarse geometry, and which scenes had to return to it [b] bool."""
        refined = self.unrolled(observation, deployment, coarse.geometry)
        lost = _strayed(refined.final.geometry, coarse, deployment)
        if lost.any():
            start = self.unrolled.evaluate_at(observation, deployment, coarse.geometry)
            refined = refined._replace(final=select(lost, start, refined.final))
        return refined, lost


def as_located(estimate: Estimate, refined: Refined, coarse: CoarseLocation, final: Tensor) -> Estimate:
    """The estimate with the coarse location where that is final [b] bool; the channel stays the refined one.

    Free paths are placed by the coarse user and offsets; their covariance stays.
    """
    if not bool(final.any()):
        return estimate
    assert estimate.scatterer_position is not None
    assert estimate.scatterer_covariance is not None
    solution, nodes = coarse.solution, coarse.solution.position.shape[-2]
    weak = estimate.scatterer_position[..., nodes : coarse.geometry.node_mask.shape[-1], :]  # of joint detection
    geometry = refined.final.geometry._replace(ue_position=solution.ue_position, offset_m=solution.offset_m)
    free, _ = free_positions(geometry, refined.problem)
    located = estimate._replace(
        ue_position=solution.ue_position,
        clock_offset=solution.offset_m / SPEED_OF_LIGHT,
        covariance=inverse_information(solution.information),
        scatterer_position=torch.cat([solution.position, weak, free.flatten(-3, -2)], -2),
        scatterer_covariance=torch.cat(
            [solution.node_covariance, estimate.scatterer_covariance[..., nodes:, :, :]], -3
        ),
    )
    fields = ("ue_position", "clock_offset", "covariance", "scatterer_position", "scatterer_covariance")
    return estimate._replace(
        **{name: select(final, getattr(located, name), getattr(estimate, name)) for name in fields}
    )


def check_batch(
    observation: Observation, deployment: Deployment, paths: PathEstimates | None = None, noise_known: bool = True
) -> None:
    """Raise ShapeError or DomainError unless a batch of scenes [b] can be located; see `Observation.validate`."""
    check_input(observation, deployment, paths, noise_known)
    check_shape("y", observation.y, "scene bs ant sc")
    if len(observation.y) == 0:
        raise ShapeError("y must hold at least one scene, got none")
    if len(deployment.pilot_freq) < 2:
        raise ShapeError("pilot_freq must hold at least two pilots (one tells nothing of the delay), got 1")


def check_input(
    observation: Observation, deployment: Deployment, paths: PathEstimates | None = None, noise_known: bool = True
) -> None:
    """Raise ShapeError or DomainError unless observation, stations and the caller's paths, if any, fit together."""
    observation.validate(deployment.validate(), noise_known)
    if paths is not None and paths.validate(deployment).mask.shape[:-1] != observation.y.shape[:-2]:
        wanted = list(observation.y.shape[:-2])
        raise ShapeError(f"the mask of paths must be {[*wanted, 'path']} as y is, got {list(paths.mask.shape)}")


def doubtful_covariance(covariance: Tensor, flags: Tensor, coarse: CoarseLocation, deployment: Deployment) -> Tensor:
    """Covariance of (user, offsets) that owns up to the flags; that of a trusted scene is unchanged.

    The information matrix only knows the errors of a right association. A poor fit, or paths that a coarse array has
    merged, scale it by the cost per degree of freedom; a rival mode d away adds d d^T / 2 (either is as likely); where
    the solution rests on nothing (no paths, too few shared scatterers, unobservable, diverged, ambiguous path lengths,
    outside the region) the spread of a uniform law over the user's box is added, to the offsets that over its diagonal.
    """
    box = user_box(deployment)
    extent = (box[1] - box[0]).square() / 12.0
    offsets = len(deployment.bs_position)
    groundless = Flag.NO_PATHS | Flag.TOO_FEW_SHARED | Flag.UNOBSERVABLE | Flag.DIVERGED
    groundless |= Flag.RANGE_AMBIGUOUS | Flag.OUTSIDE_REGION
    poor = (flags & (Flag.POOR_FIT | Flag.COARSE_ARRAY) != 0) & (coarse.cost_per_dof > 1.0)
    scale = torch.where(poor, coarse.cost_per_dof, torch.ones_like(coarse.cost_per_dof))
    prior = torch.diag(torch.cat([extent, extent.sum().expand(offsets)]))
    apart = torch.nn.functional.pad(coarse.rival, (0, offsets))
    return (
        scale[:, None, None] * covariance
        + 0.5 * apart[:, :, None] * apart[:, None, :]
        + (flags & groundless != 0)[:, None, None] * prior
    )


def _strayed(geometry: Geometry, coarse: CoarseLocation, deployment: Deployment) -> Tensor:
    """Whether the refined user lies further from the coarse one than errors of the coarse stage can explain.

    The iterations only converge from within a fraction of the delay resolution c / B, so a longer move is a divergence
    unless the coarse covariance itself is that wide.
    """
    move = (geometry.ue_position - coarse.geometry.ue_position).norm(dim=-1)
    variance = inverse_information(coarse.solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1)
    allowed = 5.0 * variance.clamp_min(0.0).sqrt() + 2.0 * SPEED_OF_LIGHT / deployment.bandwidth
    return ~(move < allowed)


def build_estimator(
    detector: PathDetector | Mapping[str, Any] | None = None,
    localizer: Mapping[str, Any] | None = None,
    unrolled: Mapping[str, Any] | None = None,
    fusion: Mapping[str, Any] | None = None,
    name: str = "classical",
    noise: str = "known",
    joint_false_alarm: float = 0.05,
    calibration: Mapping[str, Any] | None = None,
) -> LocationEstimator:
    """Estimator from plain settings, the form in which a checkpoint stores them.

    Args:
        detector: arguments of `PathDetector`, or a detector.
        localizer: arguments of `CoarseLocalizer`.
        unrolled: arguments of `Unrolled` and of its iterations.
        fusion: arguments of learned `FusionWeights`; analytic weights when None.
        name: label in tables.
        noise: `known` or `estimated` noise variance where the caller brings no paths.
        joint_false_alarm: see `LocationEstimator`.
        calibration: arguments of `ArrayCalibration`; ideal arrays when None.

    Raises:
        ConfigError: an argument that the part does not know, or a value that it refuses.
    """
    return LocationEstimator(
        detector if isinstance(detector, PathDetector) else _part("detector", PathDetector, detector),
        _part(
            "localizer",
            CoarseLocalizer,
            localizer,
            fusion=None if fusion is None else _part("fusion", FusionWeights, fusion),
        ),
        _part("unrolled", Unrolled, unrolled),
        name,
        noise,
        joint_false_alarm,
        None if calibration is None else _part("calibration", ArrayCalibration, calibration),
    )


def _part(key: str, kind: Any, settings: Mapping[str, Any] | None, **further: Any) -> Any:
    plain = {name: value for name, value in (settings or {}).items() if name != "_target_"}
    try:
        return kind(**plain, **further)
    except TypeError as error:
        raise ConfigError(f"estimator.{key} must hold arguments of {kind.__name__}, got: {error}") from error
