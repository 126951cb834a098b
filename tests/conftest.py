"""Small deployments that the tests share."""

from typing import NamedTuple

import pytest
import torch

from benchmarks.hall import BANDWIDTH
from benchmarks.hall import hall as simulated_hall
from sensing import arrays
from sensing.containers import Deployment
from sensing.simulation import SceneSampler, Simulator, build_deployment

torch.set_num_threads(1)


class Setup(NamedTuple):
    deployment: Deployment
    simulator: Simulator


def build(num_shared: int, clock_offset_std: float = 1 / BANDWIDTH, **sampler) -> Setup:
    """The hall of the benchmarks."""
    simulator = simulated_hall(num_shared, clock_offset_std, **sampler)
    return Setup(simulator.deployment, simulator)


def build_tiny(num_shared: int = 5, clock_offset_std: float = 3e-9, **sampler) -> Setup:
    """Three stations of 3 x 4 antennas and 10 uneven pilots: small enough for loops and dense matrices."""
    pilots = torch.tensor([-31.0, -25, -20, -11, -3, 1, 9, 17, 24, 30], dtype=torch.float64) * 2e6
    deployment = build_deployment(
        [[0, 0, 6], [40, 0, 5], [20, 40, 7]],
        arrays.upa(3, 4),
        pilots,
        10e9,
        clock_offset_std,
        target=[20, 20, 2],
        tilt=True,
    )
    law = {"num_shared": num_shared, "num_specific": 1} | sampler
    box = SceneSampler([[8, 8, 1], [32, 32, 2]], [[4, 4, 0.5], [36, 36, 7.5]], **law)
    return Setup(deployment, Simulator(deployment, box, seed=3))


@pytest.fixture(scope="session")
def hall() -> Setup:
    return build(8)


@pytest.fixture(scope="session")
def hall_hard() -> Setup:
    return build(6)


@pytest.fixture(scope="session")
def tiny() -> Setup:
    return build_tiny()
