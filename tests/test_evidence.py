"""The evidence of an association against importance sampling of the integral that it approximates."""

import math

import pytest
import torch

from sensing.coarse.evidence import association_evidence, clock_allowance
from sensing.coarse.least_squares import solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.pairs import region_box, wrap
from sensing.geometry import tangent_basis
from tests.reference.oracle import C, detect, members

LOG_ODDS = -3.0


@pytest.fixture(scope="module")
def solved(hall):
    """One scene with its true association: members, solution, paths, start."""
    example = hall.simulator.examples("test", [3], 25.0)
    oracle = detect(example, hall.deployment)
    path, point = members(oracle)
    position = example.scene.scatterer_position[:, point[0].clamp_min(0)]
    start = example.scene.ue_position, C * example.scene.clock_offset, position
    return path, solve_location(cluster_measurements(path, oracle.paths), *start, hall.deployment), oracle.paths


def log_likelihood(theta, path, paths, deployment):
    """Log density of (range, two tangents) of all members at theta [sample user, offsets, scatterers], path by path."""
    user, offset, nodes = theta[:, :3], theta[:, 3:7], theta[:, 7:].unflatten(1, (-1, 3))
    total = theta.new_zeros(len(theta))
    for k, row in enumerate([row for row in path[0].tolist() if max(row) >= 0]):
        for q, member in enumerate(row):
            if member < 0:
                continue
            leg = nodes[:, k] - deployment.bs_position[q]
            distance = leg.norm(dim=-1)
            length = distance + (nodes[:, k] - user).norm(dim=-1) + offset[:, q]
            basis = tangent_basis(paths.direction[0, q, member])
            error = torch.cat(
                [
                    wrap(length - paths.range_m[0, q, member], deployment.range_ambiguity)[:, None],
                    leg / distance[:, None] @ basis,
                ],
                -1,
            )
            lift = torch.zeros(4, 3, dtype=theta.dtype)
            lift[0, 0], lift[1:, 1:] = 1.0, basis
            covariance = lift.mT @ paths.covariance[0, q, member] @ lift
            total += torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(error)
    return total


def test_laplace_agrees_with_importance_sampling(hall, solved):
    path, solution, paths = solved
    deployment, box = hall.deployment, region_box(hall.deployment)
    exists = (path[0] >= 0).any(-1)
    nodes = solution.position[0, exists]
    mode = torch.cat([solution.ue_position[0], solution.offset_m[0], nodes.flatten()])
    std = C * float(deployment.clock_offset_std)
    width = 3.0 * float((box[1] - box[0]).norm())

    def log_posterior(theta):
        user = -0.5 * (((theta[:, :3] - box.mean(0)) / width) ** 2).sum(-1) - 1.5 * math.log(2 * math.pi * width**2)
        clocks = -0.5 * ((theta[:, 3:7] / std) ** 2).sum(-1) - 2.0 * math.log(2 * math.pi * std**2)
        return log_likelihood(theta, path, paths, deployment) + user + clocks

    hessian = torch.autograd.functional.hessian(lambda theta: -log_posterior(theta[None])[0], mode)
    law = torch.distributions.MultivariateNormal(mode, torch.linalg.inv(0.5 * (hessian + hessian.mT)) * 1.2)
    torch.manual_seed(0)
    theta = law.sample((20_000,))
    weight = log_posterior(theta) - law.log_prob(theta)
    integral = weight.logsumexp(0) - math.log(len(theta))
    # unrelated paths: uniform over the span of ranges and half the sphere; scatterers: uniform over the region
    count, clusters = int((path >= 0).sum()), int(exists.sum())
    unrelated = -count * math.log(float((box[1] - box[0]).norm()) * 2.0 * math.pi)
    expected = integral - unrelated + clusters * (LOG_ODDS - math.log(float((box[1] - box[0]).prod())))
    found = association_evidence(path, solution, paths, deployment, LOG_ODDS)[0]
    assert abs(float(found - expected)) < 0.3


def test_a_wrong_member_lowers_the_evidence(hall, solved):
    path, solution, paths = solved
    best = association_evidence(path, solution, paths, hall.deployment)[0]
    first = path[0, 0].clone()
    station = int((first >= 0).nonzero()[0])
    for other in range(int(paths.mask[0, station].sum())):
        if bool((path[0, :, station] == other).any()):
            continue
        changed = path.clone()
        changed[0, 0, station] = other
        data = cluster_measurements(changed, paths)
        start = solution.ue_position, solution.offset_m, solution.position
        again = solve_location(data, *start, hall.deployment)
        assert association_evidence(changed, again, paths, hall.deployment)[0] < best - 10.0


def test_no_members_no_evidence(hall, solved):
    path, _, paths = solved
    empty = torch.full_like(path, -1)
    box = region_box(hall.deployment)
    start = box.mean(0)[None], torch.zeros(1, 4).double(), torch.zeros(1, path.shape[1], 3).double()
    alone = solve_location(cluster_measurements(empty, paths), *start, hall.deployment)
    assert abs(float(association_evidence(empty, alone, paths, hall.deployment)[0])) < 1e-6


@pytest.mark.parametrize("wider", [10.0, 100.0])
def test_clock_allowance_is_what_a_wider_prior_costs(hall, solved, wider):
    """Evidence of well measured offsets falls by the log of the prior's width, station by station."""
    path, solution, paths = solved
    deployment = hall.deployment
    wide = deployment._replace(clock_offset_std=wider * deployment.clock_offset_std)
    data = cluster_measurements(path, paths)
    start = solution.ue_position, solution.offset_m, solution.position
    again = solve_location(data, *start, wide)
    lost = association_evidence(path, solution, paths, deployment) - association_evidence(path, again, paths, wide)
    prior = 0.5 * (solution.offset_m / (C * deployment.clock_offset_std)).square().sum() * (1.0 - wider**-2)
    allowance = clock_allowance(wide) - clock_allowance(deployment)
    assert abs(float(lost[0] + prior - allowance)) < 0.5
