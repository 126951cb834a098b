"""LMMSE with the true geometry: the floor of the channel error."""

import math

from sensing.baselines.gains import regularised_gains
from sensing.baselines.truth import check_truth
from sensing.containers import Deployment, Estimate, Example, Observation, PathEstimates
from sensing.errors import DomainError, MissingTruthError
from sensing.estimator import check_input
from sensing.geometry import bounce_ranges
from sensing.operators.khatri_rao import path_operator
from sensing.units import SPEED_OF_LIGHT


class GenieLmmse:
    """LMMSE of the gains with the true geometry and support: the floor of the channel error (equation 1.10).

    `x = (Phi^H Phi / sigma^2 + I / v)^-1 Phi^H y / sigma^2`, one column per visible scatterer. Nobody can reach it
    without knowing the geometry: the gap is about `10 log10(1 + n_geo / (2 L))` dB for n_geo real unknowns and L paths.

    Args:
        gain_variance: prior variance v of the path gains.
    """

    name, needs_truth, front_end, bound = "genie_lmmse", True, None, "peb"

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
        """Estimate the channel; raises MissingTruthError if the truth does not hold every path of the channel."""
        scene = None if truth is None else truth.scene
        if scene is None or scene.gain is None:
            lacks = "no scene" if scene is None else "a scene without path gains (not all of its paths are known)"
            raise MissingTruthError(f"genie_lmmse needs the true scene with all its paths, got {lacks}")
        check_input(observation, deployment)
        check_truth(scene, observation)
        offset_m = SPEED_OF_LIGHT * scene.clock_offset
        range_m, direction, _, _ = bounce_ranges(
            scene.scatterer_position, scene.ue_position, deployment.bs_position, offset_m
        )
        operator = path_operator(range_m, direction, deployment, scene.visible, observation.y.dtype)
        assert truth is not None
        ridge = truth.true_noise_var / self.gain_variance
        gain = regularised_gains(operator, observation.y, ridge[..., None])
        return Estimate(channel=operator.matvec(gain), support=scene.visible.to(ridge.dtype), gain=gain)
