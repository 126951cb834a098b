"""Paper 1 as published: 3-D MUSIC, angle-only association, alternating location, EM on a movable location grid.

The refinement is the same `Unrolled` that the classical estimator uses, with the plain gradient in place of the joint
Gauss-Newton step and every scatterer, private ones included, as a point of the common grid. `docs/paper1.md` shows
what of the paper this reproduces.
"""

from torch import Tensor

from sensing.coarse.localization import CoarseLocation
from sensing.coarse.music import MusicDetector
from sensing.coarse.paper import PaperLocalizer
from sensing.containers import Deployment, Observation
from sensing.errors import ConfigError
from sensing.estimator import Detector, LocationEstimator
from sensing.inference.clouds import neighbourhood, spread
from sensing.inference.unrolled import Refined, Unrolled


class PaperEstimator(LocationEstimator):
    """The published scheme, out of the pieces of this package.

    Args:
        detector: front end where the caller brings no paths; MUSIC when None.
        localizer: Algorithms 1 and 2 and the private scatterers; the default when None.
        unrolled: EM iterations; plain gradient with backtracking when None.
        neighbours: grid points around each coarse scatterer; 0 is one movable point per scatterer.
        spacing_m: their distance [m].
        front_end: name of the front end whose paths an evaluation hands over.
        name: label in tables.

    Raises:
        ConfigError: an unknown neighbourhood or a spacing that is not positive.
    """

    def __init__(
        self,
        detector: Detector | None = None,
        localizer: PaperLocalizer | None = None,
        unrolled: Unrolled | None = None,
        neighbours: int = 0,
        spacing_m: float = 0.3,
        front_end: str = "music",
        name: str = "paper",
    ) -> None:
        neighbourhood(neighbours)
        if not spacing_m > 0:
            raise ConfigError(f"spacing_m must be positive, got {spacing_m}")
        super().__init__(
            MusicDetector() if detector is None else detector,
            PaperLocalizer() if localizer is None else localizer,
            Unrolled(kind="gradient") if unrolled is None else unrolled,
            name,
            joint_false_alarm=0.0,
        )
        self.neighbours, self.spacing_m, self.front_end = neighbours, spacing_m, front_end

    def refine(
        self, observation: Observation, deployment: Deployment, coarse: CoarseLocation
    ) -> tuple[Refined, Tensor]:
        """EM from the coarse geometry with its grid; see `LocationEstimator.refine`."""
        grid = spread(coarse.geometry, self.spacing_m, self.neighbours)
        return super().refine(observation, deployment, coarse._replace(geometry=grid))
