"""Time of the whole classical estimator per scene, and of its stages. No peer."""

from collections.abc import Iterator

import torch

from benchmarks.frame import Case
from benchmarks.hall import hall
from sensing.containers import Example
from sensing.estimator import LocationEstimator

INSTALL = None


def cases(tiny: bool) -> Iterator[Case]:
    """A batch of `hall_hard` at several SNRs, then stage by stage at 10 dB."""
    simulator, estimator, scenes = hall(), LocationEstimator(), 1 if tiny else 16
    deployment = simulator.deployment
    size = f"{scenes} scenes, 4 stations, 64 antennas, 64 pilots"
    for snr_db in (10.0,) if tiny else (0.0, 10.0, 20.0):
        example = simulator.examples("test", range(scenes), snr_db)

        def whole(given: Example = example) -> torch.Tensor:
            with torch.no_grad():
                position = estimator(given.observation, deployment).ue_position
            assert position is not None
            return position

        yield Case(f"classical estimator at {snr_db:g} dB", size, whole, tolerance=0.0, per=(scenes, "scene"))
    observation = simulator.examples("test", range(scenes), 10.0).observation
    with torch.no_grad():
        paths = estimator.detector(observation, deployment)
        coarse = estimator.localizer(paths, deployment)

    @torch.no_grad()
    def detect() -> torch.Tensor:
        return estimator.detector(observation, deployment).range_m

    @torch.no_grad()
    def locate() -> torch.Tensor:
        return estimator.localizer(paths, deployment).geometry.ue_position

    @torch.no_grad()
    def refine() -> torch.Tensor:
        return estimator.refine(observation, deployment, coarse)[0].final.geometry.ue_position

    for name, stage in (("detection", detect), ("association and location", locate), ("refinement", refine)):
        yield Case(f"  of which {name}, 10 dB", size, stage, tolerance=0.0, per=(scenes, "scene"))
