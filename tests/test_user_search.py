"""The user grid and its truncated cost against slow loops."""

import math

import pytest
import torch

from sensing.coarse.user_search import grid_cost, search_user, user_box, user_grid
from tests.reference.clusters import UE, clusters_at, scattered
from tests.reference.oracle import C


@pytest.mark.parametrize("height", [None, [1.0, 2.0], [1.5, 1.5]])
def test_every_point_of_the_box_lies_in_a_cell(hall, height):
    deployment = hall.deployment
    if height is not None:
        deployment = deployment._replace(ue_height_range=torch.tensor(height, dtype=torch.float64))
    box, (grid, cell) = user_box(deployment), user_grid(deployment, 2000)
    assert 1000 < len(grid) < 4000
    unit = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    point = torch.cat([box[0] + unit * (box[1] - box[0]), box])
    assert ((point[:, None] - grid).abs() <= 0.5 * cell * (1 + 1e-9) + 1e-3).all(-1).any(-1).all()
    assert ((grid >= box[0] - 1e-3) & (grid <= box[1] + 1e-3)).all()
    if height == [1.5, 1.5]:
        assert len(grid[:, 2].unique()) == 1
        assert cell[:2].max() < 1.5


def test_cost_against_a_loop(hall):
    deployment = hall.deployment
    clusters = clusters_at(scattered())
    clusters = clusters._replace(
        excess=clusters.excess + torch.tensor([0, 0, 0, 9.0, 0, 0]),
        mask=torch.tensor([[True, True, True, True, True, False]]),
    )
    offset = torch.tensor([[0.0, 1.0, -2.0, 0.5]], dtype=torch.float64)
    grid, cell = user_grid(deployment, 60)
    cost, beta = grid_cost(grid, cell, clusters, offset, deployment, 9.0)
    blur = sum(float(c) ** 2 for c in cell) / 36.0
    prior = (C * float(deployment.clock_offset_std)) ** 2 + sum(float(c) ** 2 for c in cell) / 16.0
    period = float(deployment.range_ambiguity)

    def wrapped(x):
        return x - period * round(x / period)

    for g, point in enumerate(grid.tolist()):
        legs = [math.dist(s, point) for s in clusters.position[0].tolist()]
        values = [e - leg for e, leg in zip(clusters.excess[0].tolist(), legs, strict=True)]
        totals = []
        for k in range(5):
            total = 0.0
            for j in range(5):
                slope = torch.tensor(
                    [*((p - s) / legs[j] for p, s in zip(point, clusters.position[0, j], strict=True)), 1]
                )
                spread = float(slope @ clusters.covariance[0, j] @ slope) + blur
                total += min(wrapped(values[j] - values[k]) ** 2 / spread, 9.0)
            for q in range(4):
                total += min(wrapped(float(offset[0, q]) + values[k]) ** 2 / prior, 9.0)
            totals.append(total)
        assert float(cost[0, g]) == pytest.approx(min(totals), rel=2e-3, abs=1e-3)
        assert float(beta[0, g]) == pytest.approx(values[totals.index(min(totals))], abs=1e-3) or sorted(totals)[
            1
        ] == pytest.approx(min(totals), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_user_with_an_outlier(hall, seed):
    clusters = clusters_at(scattered(7, seed), seed=seed)
    clusters = clusters._replace(excess=clusters.excess + torch.tensor([0, 11.0, 0, 0, 0, 0, 0]))
    modes = search_user(clusters, torch.zeros(1, 4, dtype=torch.float64), hall.deployment)
    assert float((modes.ue_position[0, 0] - UE).norm()) < 0.7
    assert abs(float(modes.common_offset[0, 0]) - 3.0) < 0.7
    assert modes.cost[0, 0] == modes.cost[0].min()


def test_both_mirror_images_are_modes(hall):
    position = scattered(6)
    position[:, 2] = 4.0
    modes = search_user(clusters_at(position), torch.zeros(1, 4, dtype=torch.float64), hall.deployment)
    image = UE * torch.tensor([1.0, 1.0, -1.0]) + torch.tensor([0.0, 0.0, 8.0])
    for point in (UE, image):
        assert (modes.ue_position[0, :2] - point).norm(dim=-1).min() < 0.5


def test_flat_prior_and_no_clusters(hall):
    flat = hall.deployment._replace(clock_offset_std=torch.tensor(float("inf"), dtype=torch.float64))
    modes = search_user(clusters_at(scattered(), beta=50.0), torch.zeros(1, 4, dtype=torch.float64), flat)
    assert float((modes.ue_position[0, 0] - UE).norm()) < 0.7
    none = clusters_at(scattered())
    none = none._replace(mask=torch.zeros_like(none.mask))
    modes = search_user(none, torch.zeros(1, 4, dtype=torch.float64), hall.deployment)
    assert all(torch.isfinite(field).all() for field in modes)
