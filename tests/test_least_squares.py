"""Path-level least squares against scipy, dense Jacobians and finite differences."""

import math

import pytest
import torch
from scipy.optimize import least_squares
from torch.func import grad, jacrev

from sensing.coarse.least_squares import differentiable_step, solve_location
from sensing.coarse.measurements import Measurements, PathData, cluster_measurements
from sensing.coarse.normal_equations import line_of_sight_system, location_prior
from sensing.coarse.pairs import region_box
from sensing.coarse.repair import fit_fails
from sensing.containers import PathEstimates, map_tensors
from tests.reference.oracle import C, detect, members, single_path

INF = float("inf")


def with_std(deployment, std_m):
    return deployment._replace(clock_offset_std=torch.tensor(std_m / C, dtype=torch.float64))


def setup(hall, count=3, noise=1.0):
    example = hall.simulator.examples("test", range(count), snr_db=15.0)
    oracle = detect(example, hall.deployment, noise=noise)
    path, point = members(oracle)
    position = example.scene.scatterer_position[torch.arange(count)[:, None], point.clamp_min(0)]
    start = example.scene.ue_position, C * example.scene.clock_offset, position
    return example, oracle, path, start


@pytest.fixture(scope="module")
def case(hall):
    return setup(hall)


def one(container, b):
    return map_tensors(container, lambda field: field[b])


class Dense:
    """The whole problem of one scene as one residual vector over (u, c * offsets, scatterers)."""

    def __init__(self, data: Measurements, deployment, std_m):
        self.data, self.bs, self.std_m = data, deployment.bs_position.tolist(), std_m
        self.period = float(deployment.range_ambiguity)
        box = region_box(deployment)
        self.center, self.reach = box.mean(0).tolist(), 3.0 * float((box[1] - box[0]).norm())
        self.seen = [
            (k, q)
            for k in range(data.range_m.shape[0])
            for q in range(data.range_m.shape[1])
            if data.information[k, q, 0, 0] > 0
        ]
        self.clusters = sorted({k for k, _ in self.seen})
        self.root = {}
        for k, q in self.seen:
            value, vector = torch.linalg.eigh(data.information[k, q])
            self.root[k, q] = (value.clamp_min(0).sqrt()[:, None] * vector.T).tolist()

    def pack(self, ue, offset, position):
        return torch.cat([ue, offset, position[self.clusters].flatten()]).tolist()

    def __call__(self, x):
        n = len(self.bs)
        u, offset = x[:3], x[3 : 3 + n]
        out = [(u[i] - self.center[i]) / self.reach for i in range(3)]
        out += [d / self.std_m for d in offset] if self.std_m < INF else []
        for k, q in self.seen:
            at = 3 + n + 3 * self.clusters.index(k)
            s, b = x[at : at + 3], self.bs[q]
            leg = math.dist(s, b)
            gap = leg + math.dist(s, u) + offset[q] - float(self.data.range_m[k, q])
            gap -= self.period * round(gap / self.period)
            r = [gap, *((s[i] - b[i]) / leg - float(self.data.direction[k, q, i]) for i in range(3))]
            out += [sum(row[i] * r[i] for i in range(4)) for row in self.root[k, q]]
        return out


@pytest.mark.parametrize("std_m", [2.4, INF])
@pytest.mark.parametrize("b", range(3))
def test_solution_information_and_covariances_against_scipy(hall, case, b, std_m):
    _, oracle, path, start = case
    deployment = with_std(hall.deployment, std_m)
    data = cluster_measurements(path, oracle.paths)
    shift = torch.tensor([2.0, -1.5, 0.5], dtype=torch.float64)
    found = solve_location(data, start[0] + shift, start[1] + 0.5, start[2] + 0.3, deployment, steps=60, tolerance=1e-9)
    dense = Dense(one(data, b), deployment, std_m)
    best = least_squares(dense, dense.pack(*(field[b] for field in start)), jac="3-point", x_scale="jac")
    covariance = torch.linalg.inv(torch.tensor(best.jac.T @ best.jac))
    std = covariance.diagonal().sqrt()
    x = torch.tensor(dense.pack(found.ue_position[b], found.offset_m[b], found.position[b]))
    assert ((x - torch.tensor(best.x)).abs() < 0.01 * std).all()
    assert float(found.cost[b]) == pytest.approx(2 * best.cost, rel=1e-4)
    n = 3 + len(deployment.bs_position)
    own = torch.linalg.inv(found.information[b])
    assert torch.allclose(own / std[:n, None] / std[:n], covariance[:n, :n] / std[:n, None] / std[:n], atol=5e-3)
    for number, k in enumerate(dense.clusters):
        at = slice(n + 3 * number, n + 3 * number + 3)
        scaled = (found.node_covariance[b, k] - covariance[at, at]) / std[at, None] / std[at]
        assert scaled.abs().max() < 1e-2


def test_true_position_lies_within_its_covariance(hall):
    example, oracle, path, start = setup(hall, count=24)
    found = solve_location(cluster_measurements(path, oracle.paths), *start, hall.deployment, steps=40)
    error = torch.cat([found.ue_position - start[0], found.offset_m - start[1]], -1)
    nees = torch.einsum("bi,bij,bj->b", error, found.information, error)
    dof = error.shape[-1]
    # the prior counts too, hence on average exactly the number of unknowns (4 standard deviations of the mean)
    assert abs(float(nees.mean()) - dof) < 4 * math.sqrt(2 * dof / len(nees))
    assert example.scene.ue_position.shape == found.ue_position.shape


def test_priors(hall, case):
    deployment = with_std(hall.deployment, 2.4)
    prior = location_prior(deployment)
    assert torch.allclose(prior.precision[3:], torch.full((4,), 2.4**-2, dtype=torch.float64))
    assert (location_prior(with_std(hall.deployment, INF)).precision[3:] == 0).all()
    _, oracle, path, start = case
    data = cluster_measurements(path, oracle.paths)
    known = solve_location(data, start[0], torch.zeros_like(start[1]), start[2], with_std(deployment, 0.0), steps=40)
    assert known.offset_m.abs().max() < 1e-3
    assert torch.isfinite(known.cost).all()
    # a narrow height range holds the height, and its information appears in the result
    low = deployment._replace(ue_height_range=torch.tensor([1.99, 2.01], dtype=torch.float64))
    held, free = (solve_location(data, *start, each, steps=40) for each in (low, deployment))
    # the scenes lie up to 1 m lower
    assert (held.ue_position[:, 2] - 2.0).abs().max() < 0.1
    assert (free.ue_position[:, 2] - 2.0).abs().max() > 0.3
    extra = (held.information - free.information)[:, 2, 2]
    assert torch.allclose(extra, torch.full_like(extra, 12.0 / 0.02**2), rtol=0.05)


def test_scenes_do_not_depend_on_their_batch(hall, case):
    _, oracle, path, start = case
    data = cluster_measurements(path, oracle.paths)
    begin = [field + 0.5 for field in start]
    whole = solve_location(data, *begin, hall.deployment)
    for b in range(3):
        alone = solve_location(one(data, [b]), *(field[[b]] for field in begin), hall.deployment)
        for name, x, y in zip(whole._fields, whole, alone, strict=True):
            torch.testing.assert_close(x[b], y[0], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("std_m", [2.4, INF])
def test_nothing_measured_leaves_the_prior(hall, std_m):
    deployment = with_std(hall.deployment, std_m)
    zero = torch.zeros(2, 1, 4, dtype=torch.float64)
    data = Measurements(zero, torch.ones(2, 1, 4, 3, dtype=torch.float64), zero[..., None, None].expand(2, 1, 4, 4, 4))
    found = solve_location(data, torch.ones(2, 3).double(), zero[:, 0], torch.ones(2, 1, 3).double(), deployment)
    assert all(torch.isfinite(field).all() for field in found)
    assert torch.allclose(found.ue_position[0], region_box(deployment).mean(0), atol=0.1)


def test_flat_prior_and_a_station_without_paths(hall, case):
    """Its offset is unknown, all else is as without the station."""
    _, oracle, path, start = case
    deployment = with_std(hall.deployment, INF)
    path = path.clone()
    path[..., 3] = -1
    path[(path >= 0).sum(-1) < 2] = -1
    data = cluster_measurements(path, oracle.paths)
    begin = [field + 0.3 for field in start]
    found = solve_location(data, *begin, deployment, steps=60, tolerance=1e-9)
    assert all(torch.isfinite(field).all() for field in found)
    three = deployment._replace(bs_position=deployment.bs_position[:3], bs_rotation=deployment.bs_rotation[:3])
    fewer = Measurements(*(field[:, :, :3] for field in data if field is not None))
    alone = solve_location(
        fewer, begin[0], begin[1][:, :3], begin[2], three._replace(region=region_box(deployment)), 60
    )
    assert torch.allclose(found.ue_position, alone.ue_position, atol=1e-3)
    assert torch.allclose(found.node_covariance, alone.node_covariance, rtol=1e-3, atol=1e-9)


def test_gradient_of_the_weights_against_finite_differences(hall):
    _, oracle, path, start = setup(hall, count=1, noise=0.05)
    shape = (*oracle.paths.mask.shape, 2)

    def solved(weights):
        data = cluster_measurements(path, oracle.paths, weights)
        return solve_location(data, *start, hall.deployment, steps=40, tolerance=0.0)

    direction = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    base = solved(torch.ones(shape, dtype=torch.float64))
    weights = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    data = cluster_measurements(path, oracle.paths, weights)
    ue, _, _ = differentiable_step(data, base.ue_position, base.offset_m, base.position, hall.deployment)
    (gradient,) = torch.autograd.grad((ue @ direction).sum(), weights)
    assert torch.isfinite(gradient).all()
    assert (gradient[~oracle.paths.mask] == 0).all()
    strongest = gradient.abs().flatten().topk(4).indices.tolist()
    step = 0.02
    for index in strongest:
        bump = torch.zeros(shape, dtype=torch.float64).flatten()
        bump[index] = step
        up, down = (solved(1.0 + sign * bump.reshape(shape)).ue_position @ direction for sign in (1, -1))
        slope = float((up - down)[0]) / (2 * step)
        assert slope == pytest.approx(
            float(gradient.flatten()[index]), rel=0.02, abs=0.01 * float(gradient.abs().max())
        )


def test_the_differentiable_step_leaves_the_value_alone(hall, case):
    """So that training and evaluation see the same location."""
    _, oracle, path, start = case
    data = cluster_measurements(path, oracle.paths)
    base = solve_location(data, *start, hall.deployment)
    stepped = differentiable_step(data, base.ue_position, base.offset_m, base.position, hall.deployment)
    assert torch.equal(stepped[0], base.ue_position)
    assert torch.equal(stepped[1], base.offset_m)
    assert torch.equal(stepped[2], base.position)


def line_residual(x, data, deployment):
    """All residuals of the lines of sight of one scene at (user, offsets) x [n], root of the information applied."""
    leg = x[:3] - deployment.bs_position
    length = leg.norm(dim=-1)
    miss = torch.cat([(length + x[3:] - data.range_m)[:, None], leg / length[:, None] - data.direction], -1)
    value, vector = torch.linalg.eigh(data.information)
    return (value.clamp_min(0).sqrt()[:, :, None] * vector.mT @ miss[..., None]).flatten()


def lines(ue, offset, deployment, noise=0.0, absent=None, seed=0):
    """Lines of sight [b bs 1] of users, the first path of every station."""
    generator = torch.Generator().manual_seed(seed)
    leg = ue[:, None] - deployment.bs_position
    shift = noise * torch.randn(*leg.shape[:2], 4, generator=generator, dtype=torch.float64)
    ranges, direction = leg.norm(dim=-1) + offset + shift[..., 0], leg / leg.norm(dim=-1, keepdim=True)
    direction = direction + 0.1 * shift[..., 1:]
    mask = torch.ones(len(ue), len(deployment.bs_position), 1, dtype=torch.bool)
    if absent is not None:
        mask[:, absent] = False
    ranges = torch.remainder(ranges, deployment.range_ambiguity)
    return single_path(ranges[..., None], direction[:, :, None], 0.05, 0.004, mask)


def test_lines_of_sight_against_automatic_differentiation(hall):
    deployment = hall.deployment
    generator = torch.Generator().manual_seed(4)
    ue = torch.tensor([[12.0, 25.0, 1.5], [30.0, 7.0, 3.0]], dtype=torch.float64)
    offset = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    paths = lines(ue, offset, deployment, noise=0.3, absent=2)
    # correlated range and direction, as of neighbouring paths
    mix = torch.randn(2, 4, 1, 4, 4, generator=generator, dtype=torch.float64)
    paths = paths._replace(information=paths.mask[..., None, None] * (paths.information + mix @ mix.mT))
    data = PathData(paths.range_m[..., 0], paths.direction[..., 0, :], paths.information[..., 0, :, :])
    at = torch.cat([ue + 0.2, offset - 0.3], -1)
    found = line_of_sight_system(at[:, :3], at[:, 3:], data, deployment)
    for b in range(2):

        def residual(x, b=b):
            # far from the ambiguity's edge: nothing wraps
            whole = x[3:] + torch.linalg.vector_norm(x[:3] - deployment.bs_position, dim=-1)
            turns = torch.round((whole.detach() - data.range_m[b]) / deployment.range_ambiguity)
            true = one(data, b)._replace(range_m=data.range_m[b] + turns * deployment.range_ambiguity)
            return line_residual(x, true, deployment)

        jac = jacrev(residual)(at[b])
        gradient = grad(lambda x: 0.5 * residual(x).square().sum())(at[b])
        torch.testing.assert_close(found.cost[b], residual(at[b]).square().sum(), rtol=1e-8, atol=0)
        torch.testing.assert_close(found.gradient[b], gradient, rtol=1e-8, atol=1e-8 * float(gradient.abs().max()))
        curvature = jac.T @ jac
        torch.testing.assert_close(found.common[b], curvature, rtol=1e-8, atol=1e-8 * float(curvature.abs().max()))
        assert (found.common[b, 5] == 0).all()  # the third station has none


@pytest.mark.parametrize("std_m", [2.4, INF])
def test_lines_of_sight_alone_locate_the_user(hall, std_m):
    """Two noise-free directions cross at the user, and each range then tells its clock."""
    deployment = with_std(hall.deployment, std_m)
    ue = torch.tensor([[12.0, 25.0, 1.5], [30.0, 7.0, 3.0]], dtype=torch.float64)
    offset = torch.tensor([[1.0, -0.5, 0.3, -2.0], [0.4, 0.1, -0.2, 3.0]], dtype=torch.float64)
    paths = lines(ue, offset, deployment, absent=3)
    path = torch.full((2, 1, 4), -1)
    data = cluster_measurements(path, paths, direct=torch.tensor([[0, 0, 0, -1]] * 2))
    start = ue + torch.tensor([3.0, -2.0, 1.0]), torch.zeros_like(offset), torch.zeros(2, 1, 3).double()
    found = solve_location(data, *start, deployment, steps=40, tolerance=1e-12)
    assert all(torch.isfinite(field).all() for field in found)
    # the clocks' prior, where there is one, pulls by much less than a standard deviation of a path
    pull = 1e-4 if std_m == INF else 0.05
    assert (found.ue_position - ue).abs().max() < pull
    assert (found.offset_m - offset)[:, :3].abs().max() < pull
    assert found.offset_m[:, 3].abs().max() < 1e-6  # no path: the prior's mean


def test_lines_of_sight_sharpen_clusters(hall):
    """With scatterers and lines of sight both: noise-free paths lead to the truth, from where they are worse placed."""
    example, oracle, path, start = setup(hall, noise=0.0)
    straight = lines(start[0], start[1], hall.deployment)
    both = PathEstimates(*(torch.cat(pair, 2) for pair in zip(oracle.paths, straight, strict=True)))
    last = torch.full((3, 4), both.mask.shape[-1] - 1)
    begin = [field + 0.5 for field in start]
    deployment = with_std(hall.deployment, INF)
    with_line, without = (
        solve_location(cluster_measurements(path, both, direct=line), *begin, deployment, steps=60, tolerance=1e-12)
        for line in (last, None)
    )
    assert (with_line.ue_position - example.scene.ue_position).abs().max() < 1e-4
    assert (with_line.offset_m - start[1]).abs().max() < 1e-4
    assert not fit_fails(with_line.cost, path, direct=last).any()
    gained = with_line.information - without.information
    assert (torch.linalg.eigvalsh(gained)[:, 0] > -1e-6 * without.information.abs().amax((-2, -1))).all()
