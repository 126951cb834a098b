"""Student t errors of the paths against a general minimiser of their negative log-likelihood."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sensing.coarse.least_squares import solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.robust import student_location
from tests.reference.oracle import C
from tests.test_least_squares import Dense, one, setup


@pytest.fixture(scope="module")
def spoiled(hall):
    """Scenes in which the first path of the first cluster is 3 m too long."""
    example, oracle, path, start = setup(hall, 2)
    paths = oracle.paths
    ranges = paths.range_m.clone()
    station = (path[:, 0] >= 0).int().argmax(-1)
    rows = torch.arange(len(path))
    ranges[rows, station, path[rows, 0, station]] += 3.0
    paths = paths._replace(range_m=ranges)
    return example, paths, path, solve_location(cluster_measurements(path, paths), *start, hall.deployment)


def test_against_a_general_minimiser(hall, spoiled):
    _, paths, path, solution = spoiled
    nu, std_m = 3.0, C * float(hall.deployment.clock_offset_std)
    found = student_location(path, solution, paths, None, hall.deployment, nu, rounds=60)
    for b in range(len(path)):
        dense = Dense(one(cluster_measurements(path, paths)._replace(direct=()), b), hall.deployment, std_m)
        prior = 3 + len(dense.bs)

        def loss(x, dense=dense, prior=prior):
            residual = np.asarray(dense(x.tolist()))
            squared = (residual[prior:].reshape(-1, 4) ** 2).sum(-1)
            return 0.5 * (residual[:prior] ** 2).sum() + 0.5 * (nu + 3.0) * np.log1p(squared / nu).sum()

        start = dense.pack(found.ue_position[b], found.offset_m[b], found.position[b])
        best = minimize(loss, np.asarray(start), method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14})
        assert loss(np.asarray(start)) < best.fun + 1e-3
        rough = dense.pack(solution.ue_position[b], solution.offset_m[b], solution.position[b])
        assert loss(np.asarray(rough)) > best.fun + 1.0
        assert np.linalg.norm(best.x[:3] - np.asarray(start[:3])) < 5e-3


def test_a_spoiled_path_counts_less(hall, spoiled):
    example, paths, path, solution = spoiled
    robust = student_location(path, solution, paths, None, hall.deployment, 3.0)
    before, after = ((s.ue_position - example.scene.ue_position).norm(dim=-1) for s in (solution, robust))
    assert (after < 0.5 * before).all()


def test_many_degrees_of_freedom_are_gaussian(hall, spoiled):
    _, paths, path, solution = spoiled
    same = student_location(path, solution, paths, None, hall.deployment, 1e12)
    torch.testing.assert_close(same.ue_position, solution.ue_position, atol=1e-4, rtol=0)
