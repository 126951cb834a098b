"""The structured information and bound of 20 hall scenes against automatic differentiation of the forward model."""

import pytest
import torch

from benchmarks.bound import effective_information, scaled_error, square_root
from sensing.bounds import uplink_bound, uplink_information
from sensing.containers import Scene
from sensing.units import SPEED_OF_LIGHT
from tests.conftest import BANDWIDTH

SCENES = 20
INF = float("inf")


@pytest.fixture(scope="module")
def drawn(hall):
    """Scenes, and a noise variance that differs from station to station."""
    scene = hall.simulator.scenes("test", range(SCENES))
    return scene, torch.tensor([0.03, 0.1, 0.3, 1.0], dtype=torch.float64).expand(SCENES, 4)


@pytest.fixture(scope="module")
def roots(hall, drawn):
    """Square roots of the information over all parameters, the complex gains included, reduced to triangles."""
    scene, noise_var = drawn
    ones = [Scene(*(field[i] for field in scene)) for i in range(SCENES)]
    return [triangle(square_root(one, noise_var[i], hall.deployment)) for i, one in enumerate(ones)]


def triangle(root):
    """R of a QR factorisation of the root with its columns at unit length, and the lengths put back."""
    scale = root.norm(dim=0)
    return torch.linalg.qr(root / scale, mode="r").R * scale


def test_information_equals_autodiff(hall, drawn, roots):
    ours = uplink_information(*drawn, hall.deployment)
    theirs = torch.stack([effective_information(root, ours.shape[-1]) for root in roots])
    assert scaled_error(ours, theirs) < 1e-8


@pytest.mark.parametrize("std_over_bandwidth", [0.1, 1.0, INF])
def test_position_bound_equals_autodiff(hall, drawn, roots, std_over_bandwidth):
    std = torch.tensor(std_over_bandwidth / BANDWIDTH, dtype=torch.float64)
    bound = uplink_bound(*drawn, hall.deployment._replace(clock_offset_std=std))
    for i, root in enumerate(roots):
        prior = torch.zeros(4, root.shape[-1], dtype=torch.float64)
        prior[:, 3:7] = torch.eye(4) / (SPEED_OF_LIGHT * std)
        r = triangle(torch.cat([root, prior]))  # never squared
        user = torch.eye(3, len(r), dtype=torch.float64).T
        half = torch.linalg.solve_triangular(r.T, user, upper=False)  # its columns are the user's rows of r^-1
        assert torch.isclose(bound.ue_position_m[i], half.norm(), rtol=1e-8), i
