"""Positions, path lengths and directions against scalar formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sensing.checks import check_rotation
from sensing.geometry import bounce_on_ray, bounce_ranges, direction_and_range, facing, tangent_basis
from tests.reference.slow import distance

coordinate = st.floats(-50, 50, allow_nan=False).map(lambda x: round(x, 3))
point = st.lists(coordinate, min_size=3, max_size=3)


def unit(batch, seed=0):
    k = torch.randn(batch, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return k / k.norm(dim=-1, keepdim=True)


def test_bounce_ranges_equal_a_loop(tiny):
    scene = tiny.simulator.scenes("train", range(2))
    bs = tiny.deployment.bs_position
    offset = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -7.0]], dtype=torch.float64)
    length, direction, leg, away = bounce_ranges(scene.scatterer_position, scene.ue_position, bs, offset)
    for i in range(2):
        u = scene.ue_position[i].tolist()
        for n, s in enumerate(scene.scatterer_position[i].tolist()):
            for q, b in enumerate(bs.tolist()):
                r, t = distance(s, b), distance(s, u)
                assert float(length[i, q, n]) == pytest.approx(r + t + float(offset[i, q]), rel=1e-14)
                assert float(leg[i, q, n]) == pytest.approx(r, rel=1e-14)
                for j in range(3):
                    assert float(direction[i, q, n, j]) == pytest.approx((s[j] - b[j]) / r, abs=1e-14)
                    assert float(away[i, n, j]) == pytest.approx((s[j] - u[j]) / t, abs=1e-14)


def test_azimuth_and_elevation_convention():
    k, r = direction_and_range(
        torch.tensor([1.0, 1.0, math.sqrt(2)], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    )
    assert math.atan2(k[1], k[0]) == pytest.approx(math.pi / 4)
    assert math.asin(k[2]) == pytest.approx(math.pi / 4)
    assert float(r) == pytest.approx(2.0)


def test_coincident_points_have_no_nan():
    direction, r = direction_and_range(torch.ones(2, 3), torch.ones(3))
    assert (direction == 0).all()
    assert (r == 0).all()


def test_tangent_basis_is_orthonormal():
    poles = torch.tensor([[0, 0, 1.0], [0, 0, -1.0], [1.0, 0, 0], [0, 1.0, -1e-300]], dtype=torch.float64)
    k = torch.cat([unit(200), poles])
    frame = torch.cat([tangent_basis(k), k[..., None]], -1)
    assert (frame.mT @ frame - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-14


@settings(max_examples=200, deadline=None)
@given(point, point, point)
def test_bounce_on_ray_returns_the_scatterer(s, b, u):
    if distance(s, b) < 0.1 or distance(s, u) < 0.1:
        return
    s, b, u = (torch.tensor(x, dtype=torch.float64) for x in (s, b, u))
    leg = s - b
    length = leg.norm() + (s - u).norm()
    found, valid = bounce_on_ray(leg / leg.norm(), length, b, u)
    if length - (u - b).norm() > 1e-3:  # nearer to the segment the answer is ill-conditioned
        assert valid
        assert torch.allclose(found, s, atol=1e-6)


def test_bounce_on_ray_refuses_too_short_paths():
    origin, u = torch.zeros(3), torch.tensor([10.0, 0, 0])
    found, valid = bounce_on_ray(torch.tensor([[0, 1.0, 0], [1.0, 0, 0]]), torch.tensor([9.0, 10.0]), origin, u)
    assert not valid.any()
    assert (found == 0).all(), "the station"


@settings(max_examples=200, deadline=None)
@given(point, point, point, st.integers(-20, 20), st.floats(150, 1000))
def test_bounce_on_ray_returns_the_scatterer_whatever_the_clock_has_added(s, b, u, turns, ambiguity):
    straight, length = distance(u, b), distance(s, b) + distance(s, u)
    if distance(s, b) < 0.1 or not 0.1 < length - straight < 0.7 * ambiguity:
        return
    s, b, u = (torch.tensor(x, dtype=torch.float64) for x in (s, b, u))
    direction, far = (s - b) / (s - b).norm(), torch.tensor(length + turns * ambiguity, dtype=torch.float64)
    found, valid = bounce_on_ray(direction, far, b, u, ambiguity)
    assert valid
    assert torch.allclose(found, s, atol=1e-6)
    _, valid = bounce_on_ray(direction, far - length + 0.9 * straight, b, u, ambiguity)
    assert not valid or straight == 0, "shorter than the straight line, in any turn"


@pytest.mark.parametrize("tilt", [False, True])
def test_facing(tilt):
    position = torch.tensor([[0, 0, 6.0], [40, 0, 6], [3, 50, 2]], dtype=torch.float64)
    target = torch.tensor([20.0, 20, 4], dtype=torch.float64)
    rotation = facing(position, target, tilt)
    check_rotation("rotation", rotation)
    wanted = target - position
    if not tilt:
        wanted[:, 2] = 0
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)
    assert torch.allclose(rotation[..., 0], wanted)
    assert (rotation[:, 2, 1] == 0).all(), "column 1 is horizontal"
    assert (rotation[:, 2, 2] > 0).all(), "column 2 points up"
