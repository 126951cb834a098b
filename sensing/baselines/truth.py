"""Check of what a reference estimator is told of the truth."""

from sensing.containers import Observation, Scene
from sensing.errors import ShapeError


def check_truth(scene: Scene, observation: Observation) -> None:
    """Raise ShapeError unless the true scenes are as many as the observed ones, with the same stations."""
    if scene.clock_offset.shape != observation.y.shape[:-2]:
        wanted, got = list(observation.y.shape[:-2]), list(scene.clock_offset.shape)
        raise ShapeError(f"clock_offset of the true scene must be {wanted} as y is, got {got}")
