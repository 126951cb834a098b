"""What a task, an evaluation other than estimators against bounds, may ask for.

A task is a function that a YAML file in `conf/task` names: `task(build, folder, settings, command, notes, **its own
keys)` writes its results into the folder.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from sensing.bounds.radar import BoundModel
from sensing.estimator import LocationEstimator
from sensing.fusion.learned import LearnedFusion
from sensing.inference.dense_turbo import DenseTurbo
from sensing.inference.unrolled import Unrolled
from sensing.simulation import Simulator


class Trained(NamedTuple):
    """Learned iterations and what they have cost."""

    unrolled: Unrolled
    scenes: int  # of the training


class Build(Protocol):
    """Builds objects of the run's configuration."""

    def varied(self, values: Mapping[str, Any]) -> "Build":
        """The same with other values, by dotted key; raises ConfigError for a key that does not exist."""

    def value(self, key: str) -> Any:
        """Configured value of a dotted key; raises ConfigError for a key that does not exist."""

    def simulator(self) -> Simulator:
        """Seeded scenes of `scene`."""

    def fusion(self, checkpoint: str) -> LearnedFusion:
        """The learned fusion of a checkpoint."""

    def calibrated(self, num_scenes: int, snr_db: float, progress: bool, num_labels: int = 0) -> LocationEstimator:
        """The classical estimator, its arrays calibrated by scenes of which some have a known user."""

    def unrolled(self, checkpoint: str) -> Trained:
        """The learned iterations of a checkpoint."""

    def classical(self) -> LocationEstimator:
        """The configured classical estimator."""

    def dense(self, checkpoint: str) -> tuple[DenseTurbo, int]:
        """The turbo estimator of a dense dictionary, and the number of training problems behind it."""

    def network(self) -> BoundModel:
        """Bound of `network`."""
