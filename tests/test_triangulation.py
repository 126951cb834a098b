"""Ray distances and triangulation against constrained and stacked least squares of scipy and numpy."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from sensing.coarse.triangulation import closest_approach, triangulate


def rays(count, seed=0):
    rng = np.random.default_rng(seed)
    origin = rng.uniform(0, 40, (count, 3))
    direction = rng.standard_normal((count, 3))
    return torch.from_numpy(origin), torch.from_numpy(direction / np.linalg.norm(direction, axis=1, keepdims=True))


def test_distance_of_half_lines_against_constrained_least_squares():
    (b1, k1), (b2, k2) = rays(60, 1), rays(60, 2)
    found, starts = closest_approach(b1, k1, b2, k2), 0
    for i in range(60):
        system = np.stack([k1[i].numpy(), -k2[i].numpy()], 1)
        best = lsq_linear(system, (b2 - b1)[i].numpy(), (0, np.inf), tol=1e-14)
        starts += (best.x < 1e-9).any()
        assert found.distance[i] == pytest.approx(np.sqrt(2 * best.cost), rel=1e-7, abs=1e-9)
        np.testing.assert_allclose([found.length1[i], found.length2[i]], best.x, rtol=1e-6, atol=1e-6)
    assert 10 < starts < 55  # crossings ahead of both stations and behind one of them both occur


def test_distance_does_not_depend_on_the_order_and_scales():
    (b1, k1), (b2, k2) = rays(40, 3), rays(40, 4)
    found, swapped = closest_approach(b1, k1, b2, k2), closest_approach(b2, k2, b1, k1)
    torch.testing.assert_close(found, type(found)(swapped.distance, swapped.length2, swapped.length1))
    scaled = closest_approach(1e5 * b1, k1, 1e5 * b2, k2)
    torch.testing.assert_close(scaled, type(found)(*(1e5 * field for field in found)))


def test_parallel_rays_are_as_far_apart_as_their_lines_or_their_starts():
    b = torch.tensor([[0.0, 0, 0], [3.0, 4, 0]], dtype=torch.float64)
    x, z = torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 0, 1.0]).double()
    assert closest_approach(b[0], z, b[1], z).distance == pytest.approx(5.0)
    assert closest_approach(b[0], x, b[1], x).distance == pytest.approx(4.0)
    assert closest_approach(b[0], -x, b[1], x).distance == pytest.approx(5.0)  # they part


def test_triangulation_against_the_stacked_system():
    """Unknowns (s, r_1 .. r_n) as in the paper, with the rays of different sets masked."""
    origin, direction = (x.reshape(8, 5, 3) for x in rays(40, 5))
    mask = torch.arange(5) < torch.tensor([2, 3, 4, 5, 2, 3, 4, 5])[:, None]
    found = triangulate(origin, direction, mask)
    for i in range(8):
        n = int(mask[i].sum())
        system = np.zeros((3 * n, 3 + n))
        for q in range(n):
            system[3 * q : 3 * q + 3, :3] = np.eye(3)
            system[3 * q : 3 * q + 3, 3 + q] = -direction[i, q]
        right = origin[i, :n].reshape(-1).numpy()
        best = np.linalg.lstsq(system, right, rcond=None)[0]
        np.testing.assert_allclose(found.position[i], best[:3], rtol=1e-9)
        np.testing.assert_allclose(found.ray_length[i, :n], best[3:], rtol=1e-9)
        assert found.residual[i] == pytest.approx(((system @ best - right) ** 2).sum() / n, rel=1e-9)
        assert (found.ray_length[i, n:] == 0).all()


def test_second_pass_weights_by_the_inverse_squared_range():
    origin, direction = (x.reshape(4, 5, 3) for x in rays(20, 6))
    first, second = triangulate(origin, direction), triangulate(origin, direction, range_weighted=True)
    for i in range(4):
        left, right = np.zeros((3, 3)), np.zeros(3)
        for q in range(5):
            k = direction[i, q].numpy()
            weight = 1.0 / float(first.ray_length[i, q]) ** 2
            left += weight * (np.eye(3) - np.outer(k, k))
            right += weight * (np.eye(3) - np.outer(k, k)) @ origin[i, q].numpy()
        np.testing.assert_allclose(second.position[i], np.linalg.solve(left, right), rtol=1e-8)


def test_weights_pay_where_ranges_differ():
    """Equal angle errors, one station near and three far: the far ones' centimetres must not count alike."""
    rng = torch.Generator().manual_seed(0)
    point = torch.tensor([5.0, 5, 3], dtype=torch.float64)
    origin = torch.tensor([[0.0, 0, 6], [200, 0, 6], [200, 200, 6], [0, 200, 6]], dtype=torch.float64)
    noise = 0.01 * torch.randn(2000, 4, 3, generator=rng, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.nn.functional.normalize(point - origin, dim=-1) + noise, dim=-1)
    plain, weighted = (
        (triangulate(origin, direction, range_weighted=w).position - point).square().sum(-1).mean().sqrt()
        for w in (False, True)
    )
    assert weighted < 0.8 * plain


def test_exact_rays_meet_and_degenerate_ones_stay_finite():
    point = torch.tensor([7.0, -3, 2], dtype=torch.float64)
    origin, _ = rays(4, 7)
    direction = torch.nn.functional.normalize(point - origin, dim=-1)
    found = triangulate(origin, direction, range_weighted=True)
    torch.testing.assert_close(found.position, point)
    torch.testing.assert_close(found.ray_length, (point - origin).norm(dim=-1))
    assert found.residual < 1e-24
    none = triangulate(origin, direction, torch.zeros(4, dtype=torch.bool), range_weighted=True)
    same = triangulate(origin, direction[:1].expand(4, 3), range_weighted=True)  # parallel
    at_station = triangulate(origin[:1].expand(4, 3), direction, range_weighted=True)
    for each in (none, same, at_station):
        assert all(torch.isfinite(field).all() for field in each)
    torch.testing.assert_close(at_station.position, origin[0])
