"""The user grid and the mixture score against slow loops."""

import math

import pytest
import torch

from sensing.coarse.bounce_search import grid_score, search_bounced_user
from sensing.coarse.echoes import echoes
from sensing.coarse.user_score import hypothesis, proposals, score, shares
from sensing.coarse.user_search import user_box, user_grid
from tests.reference.clusters import UE, clusters_at, scattered
from tests.reference.oracle import C, single_path


class Slow:
    """The mixture of the module docstring of `user_score`, written out for one scene."""

    def __init__(self, clusters, odds, direct, offset, paths, deployment, slack, bounces, blur=0.0):
        self.clusters, self.odds, self.direct = clusters, odds, direct
        self.offset, self.paths, self.deployment = offset[0].tolist(), paths, deployment
        self.slack, self.bounces, self.blur = slack, bounces, blur
        self.extent = (user_box(deployment)[1] - user_box(deployment)[0]).tolist()
        self.span, self.period = math.hypot(*self.extent), float(deployment.range_ambiguity)

    def wrapped(self, x):
        return x - self.period * round(x / self.period)

    @staticmethod
    def normal(x, variance):
        return math.exp(-0.5 * x * x / variance) / math.sqrt(2 * math.pi * variance)

    def types(self, k, u, beta):
        """Density ratios times odds of (point, image, user) of cluster k."""
        s, e = self.clusters.position[0, k].tolist(), float(self.clusters.excess[0, k])
        p, noise = self.clusters.covariance[0, k], self.slack**2 + self.blur
        gap = [u[i] - s[i] for i in range(3)]
        leg = math.hypot(*gap)
        slope = torch.tensor([*(x / leg for x in gap), 1.0], dtype=torch.float64)
        miss = self.wrapped(e - leg - beta)
        point = self.odds[k] * self.span * self.normal(miss, float(slope @ p @ slope) + noise)
        if not self.bounces:
            return point, 0.0, 0.0
        straight = self.span * self.normal(self.wrapped(e - beta), float(p[3, 3]) + self.slack**2)
        height = self.normal(gap[2], float(p[2, 2]) + 4 * self.slack**2 + self.blur)
        place = math.prod(self.extent[i] * self.normal(gap[i], float(p[i, i]) + noise) for i in range(3))
        return point, straight * 0.02 * self.extent[2] * height, straight * self.direct[k] * place

    def early(self, u, beta):
        count = 0
        for q, station in enumerate(self.deployment.bs_position.tolist()):
            ranges = self.paths.range_m[0, q][self.paths.mask[0, q]].tolist()
            lead = [-self.wrapped(r - self.offset[q] - math.dist(u, station) - beta) for r in ranges]
            count += min(sum(1.0 + 3 * self.slack < x < self.period / 3 for x in lead), 3)
        return count

    def score(self, u, beta):
        present = self.clusters.mask[0].nonzero().flatten().tolist()
        total = sum(math.log1p(sum(self.types(k, u, beta))) for k in present)
        spread = (C * float(self.deployment.clock_offset_std)) ** 2 + self.blur
        total -= sum(0.5 * self.wrapped(d + beta) ** 2 / spread for d in self.offset)
        return total - (2.0 * self.early(u, beta) if self.bounces else 0.0)

    def proposals(self, u):
        for k in self.clusters.mask[0].nonzero().flatten().tolist():
            e = float(self.clusters.excess[0, k])
            yield self.wrapped(e - math.dist(u, self.clusters.position[0, k].tolist()))
            if self.bounces:
                yield self.wrapped(e)


def mixture(hall, multi_bounce, slack):
    """A scene with all types: points, an echo, an image of the user, the user, an outlier and an absent cluster."""
    deployment = hall.deployment
    position = scattered(8)
    position[4] = position[1] + 0.01  # an echo of cluster 1: same place, later
    position[5] = torch.tensor([-12.0, 25.0, 1.5])  # the user mirrored in the wall x = 0
    position[6] = UE + 0.01
    clusters = clusters_at(position)
    excess = clusters.excess.clone()
    excess[0, 4:7] = torch.stack([excess[0, 1] + 7.0, torch.tensor(3.02).double(), torch.tensor(2.97).double()])
    excess[0, 3] += 9.0
    slot = torch.arange(8)[:, None].expand(8, 4) % 3
    member = torch.where(torch.arange(4) < 2 + torch.arange(8)[:, None] % 3, slot, -1)
    mask = torch.tensor([[True] * 7 + [False]])
    clusters = clusters._replace(excess=excess, mask=mask, path=member[None])
    offset = torch.tensor([[0.0, 1.0, -2.0, 0.5]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    ranges = 156.0 * torch.rand(1, 4, 7, generator=generator, dtype=torch.float64)
    seen = torch.rand(1, 4, 7, generator=generator) > 0.2
    paths = single_path(ranges, torch.randn(1, 4, 7, 3, generator=generator), 0.1, 0.01, seen)
    paths = paths._replace(gain=paths.gain * torch.rand(1, 4, 7, generator=generator).square())
    case = hypothesis(clusters, offset, paths, deployment, slack, multi_bounce)
    share = max(multi_bounce, 0.02)
    echo = echoes(clusters, deployment, slack)[0].tolist()
    assert echo[4:6] == [True, True]  # the image of the user is an echo of the line of sight
    odds = [(1 - share) / share * (0.05 if echo[k] and multi_bounce else 1.0) for k in range(8)]
    direct = []
    for k in range(8):
        weak = 0
        for q, p in enumerate(member[k].tolist()):
            amplitude = (paths.gain[0, q].abs() * paths.mask[0, q]).tolist()
            weak += p >= 0 and amplitude[p] <= 0.25 * max(amplitude)
        direct.append(0.01 * 0.03**weak)
    assert len(set(direct)) > 1
    return case, lambda blur: Slow(clusters, odds, direct, offset, paths, deployment, slack, multi_bounce > 0, blur)


@pytest.mark.parametrize(("multi_bounce", "slack"), [(0.0, 0.0), (0.0, 0.3), (0.8, 0.0), (0.8, 0.3)])
def test_score_and_shares_against_a_loop(hall, multi_bounce, slack):
    """Users in the hall and near the true one, where every type counts; offsets that are likely and not."""
    case, slow = mixture(hall, multi_bounce, slack)
    ue = torch.cat([UE + torch.tensor([[0.0, 0, 0], [0.1, -0.1, 0.05], [1.0, 0.5, 0.2]]), scattered(4, seed=3)])
    beta = torch.tensor([3.0, 2.9, 3.4, -1.0, 80.0, -77.0], dtype=torch.float64).repeat(len(ue), 1)
    found, slow = score(ue[None], beta[None], case, hall.deployment)[0], slow(0.0)
    types = set()
    for m, u in enumerate(ue.tolist()):
        for p, b in enumerate(beta[m].tolist()):
            assert float(found[m, p]) == pytest.approx(slow.score(u, b), rel=1e-6, abs=1e-6)
        share = shares(ue[None], beta[None, :, 0], case, hall.deployment)
        for k in range(7):
            terms = slow.types(k, u, 3.0)
            for name, field, term in zip(share._fields, share, terms, strict=True):
                assert float(field[0, m, k]) == pytest.approx(term / (1 + sum(terms)), rel=1e-6, abs=1e-9)
                types |= {name} if term > 0.5 * (1 + sum(terms)) else set()
        assert all(float(field[0, m, 7]) == 0.0 for field in share)  # an absent cluster is nothing
    # with a vague model nothing tells the line of sight from accidents
    assert types == {"point"} | ({"image"} if multi_bounce else set()) | (
        {"user"} if multi_bounce > slack == 0 else set()
    )


@pytest.mark.parametrize("multi_bounce", [0.0, 0.8])
def test_grid_score_against_a_loop(hall, multi_bounce):
    deployment = hall.deployment
    case, slow = mixture(hall, multi_bounce, 0.3)
    grid, cell = user_grid(deployment, 60)
    found, beta = grid_score(grid, cell, case, deployment)
    slow = slow(sum(float(c) ** 2 for c in cell) / 36.0)
    for g, point in enumerate(grid.tolist()):
        # single precision
        assert float(found[0, g]) == pytest.approx(max(slow.score(point, b) for b in slow.proposals(point)), abs=2e-3)
        assert float(found[0, g]) == pytest.approx(slow.score(point, float(beta[0, g])), abs=2e-3)


def test_proposals_make_one_cluster_exact(hall):
    case, slow = mixture(hall, 0.8, 0.3)
    found = proposals(UE[None, None], case, hall.deployment)[0, 0, [k for k in range(16) if k % 8 != 7]]
    expected = torch.tensor(sorted(slow(0.0).proposals(UE.tolist())), dtype=torch.float64)
    torch.testing.assert_close(found.sort().values, expected)


def search(clusters, deployment, offset=None, **options):
    """Modes of a scene whose paths tell nothing beyond its clusters."""
    offset = torch.zeros(1, 4, dtype=torch.float64) if offset is None else offset
    nothing = single_path(torch.zeros(1, 4, 1), torch.ones(1, 4, 1, 3), 1.0, 1.0, torch.zeros(1, 4, 1).bool())
    return search_bounced_user(hypothesis(clusters, offset, nothing, deployment, **options), deployment)


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_user_with_an_outlier(hall, seed):
    clusters = clusters_at(scattered(7, seed), seed=seed)
    clusters = clusters._replace(excess=clusters.excess + torch.tensor([0, 11.0, 0, 0, 0, 0, 0]))
    modes = search(clusters, hall.deployment)
    assert float((modes.ue_position[0, 0] - UE).norm()) < 0.7
    assert abs(float(modes.common_offset[0, 0]) - 3.0) < 0.7
    assert modes.cost[0, 0] == modes.cost[0].min()


def test_both_mirror_images_are_modes(hall):
    position = scattered(6)
    position[:, 2] = 4.0
    modes = search(clusters_at(position), hall.deployment)
    image = UE * torch.tensor([1.0, 1.0, -1.0]) + torch.tensor([0.0, 0.0, 8.0])
    for point in (UE, image):
        assert (modes.ue_position[0, :2] - point).norm(dim=-1).min() < 0.5


def test_flat_prior_and_no_clusters(hall):
    flat = hall.deployment._replace(clock_offset_std=torch.tensor(float("inf"), dtype=torch.float64))
    modes = search(clusters_at(scattered(), beta=50.0), flat)
    assert float((modes.ue_position[0, 0] - UE).norm()) < 0.7
    none = clusters_at(scattered())
    none = none._replace(mask=torch.zeros_like(none.mask))
    modes = search(none, hall.deployment)
    assert all(torch.isfinite(field).all() for field in modes)
