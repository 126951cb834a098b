"""Further candidates: the twin of a solution, and users all over the region."""

import pytest
import torch

from sensing.coarse.alignment import align_stations
from sensing.coarse.candidates import decide, promising
from sensing.coarse.clusters import form_clusters
from sensing.coarse.least_squares import solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.pairs import ray_pairs
from sensing.coarse.rays import Rays
from sensing.coarse.second_look import STRIDES, grid_candidates, twin_candidates
from tests.reference.oracle import C, detect, members


@pytest.fixture(scope="module")
def ambiguous(hall_hard):
    """A scene whose true association has a second, worse solution 0.9 m away, found from a start there."""
    example = hall_hard.simulator.examples("test", [208], 20.0)
    oracle = detect(example, hall_hard.deployment)
    path, point = members(oracle)
    scene = example.scene
    nodes = scene.scatterer_position[:, point[0].clamp_min(0)]
    data = cluster_measurements(path, oracle.paths)
    right = solve_location(data, scene.ue_position, C * scene.clock_offset, nodes, hall_hard.deployment)
    wrong_user = scene.ue_position + torch.tensor([[-0.77, 0.46, 1.09]], dtype=torch.float64)
    legs = [(nodes - user[:, None]).norm(dim=-1).mean(-1) for user in (scene.ue_position, wrong_user)]
    offset = C * scene.clock_offset + (legs[0] - legs[1])[:, None]
    wrong = solve_location(data, wrong_user, offset, nodes, hall_hard.deployment)
    assert (wrong.ue_position - right.ue_position).norm() > 0.5
    return path, right, wrong, oracle.paths, hall_hard.deployment


def test_from_the_wrong_twin_the_right_one_is_found(ambiguous):
    path, right, wrong, paths, deployment = ambiguous
    found = twin_candidates(path, wrong, paths, None, deployment)
    assert len(found.scene) == 1 + 2 * len(STRIDES)
    assert (found.solution.ue_position[0] - wrong.ue_position[0]).norm() < 1e-2  # the first is the solution itself
    gap = (found.solution.ue_position - right.ue_position).norm(dim=-1)
    assert gap.min() < 1e-2
    assert int(found.evidence.argmax()) in (gap < 1e-2).nonzero().squeeze(-1).tolist()


def test_the_better_twin_is_chosen_and_the_other_reported(ambiguous):
    path, _, wrong, paths, deployment = ambiguous
    found = twin_candidates(path, wrong, paths, None, deployment)
    kept = promising(found, 1, gap=1e3)
    assert len(kept.scene) < len(found.scene)  # repeats are gone
    chosen = decide(kept._replace(evidence=-0.1 * torch.arange(len(kept.scene)).double()), 1)
    first = kept.solution.ue_position[0]
    assert torch.equal(chosen.solution.ue_position[0], first)
    # the furthest of those that fit about as well
    away = (kept.solution.ue_position - first).norm(dim=-1)
    assert torch.allclose(chosen.rival[0], kept.solution.ue_position[away.argmax()] - first)


def test_users_all_over_the_region_hold_the_truth(hall_hard):
    deployment = hall_hard.deployment
    example = hall_hard.simulator.examples("test", range(4), 10.0)
    paths = detect(example, deployment).paths
    pairs = ray_pairs(paths, deployment)
    offset = align_stations(pairs, 4, deployment.range_ambiguity, torch.tensor(57.0)).offset_m[:, 0]
    clusters = form_clusters(pairs, offset, paths, deployment)
    # half of the clusters are taken away: what is left does not determine the user
    clusters = clusters._replace(mask=clusters.mask & (torch.arange(clusters.mask.shape[1]) < 3))
    found = grid_candidates(clusters, offset, Rays(paths, None, pairs), deployment)
    assert found.scene.bincount().tolist() == [len(found.scene) // 4] * 4
    tried = promising(found, 4)
    assert len(tried.scene) < len(found.scene)
    scene = tried.scene
    error = (tried.solution.ue_position - example.scene.ue_position[scene]).norm(dim=-1)
    for b in range(4):
        assert error[scene == b].min() < 0.5
