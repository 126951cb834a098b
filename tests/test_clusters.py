"""Clusters against scipy, an integral by importance sampling, and scenes whose association is known."""

import math

import pytest
import torch
from scipy.optimize import least_squares

from sensing.coarse.cluster_fit import KnownUser, fit_clusters, gather_members, log_evidence, path_log_det
from sensing.coarse.clusters import form_clusters
from sensing.coarse.pairs import ray_pairs, region_box
from sensing.containers import PathEstimates
from tests.reference.oracle import C, detect, members

USER_COVARIANCE = 0.01 * torch.eye(4, dtype=torch.float64)


@pytest.fixture(scope="module")
def case(hall):
    """Four scenes, their detections, aligned ranges, true clusters and their true positions and excess."""
    example = hall.simulator.examples("test", range(4), snr_db=15.0)
    oracle = detect(example, hall.deployment)
    scene, offset = example.scene, C * example.scene.clock_offset
    relative = offset - offset[:, :1]
    path, point = members(oracle)
    position = scene.scatterer_position[torch.arange(4)[:, None], point.clamp_min(0)]
    excess = (position - scene.ue_position[:, None]).norm(dim=-1) + offset[:, :1]
    return example, oracle, relative, path, position, excess


def known_user(example, shift=0.0):
    return KnownUser(
        example.scene.ue_position + shift, C * example.scene.clock_offset[:, 0], USER_COVARIANCE.expand(4, 4, 4)
    )


def whitened(x, path, ranges, paths, deployment, b):
    """Residuals of one cluster, one root of the information per member."""
    out = []
    for q, slot in enumerate(path.tolist()):
        if slot < 0:
            continue
        leg = torch.tensor(x[:3]) - deployment.bs_position[q]
        k = leg / leg.norm()
        gap = leg.norm() + x[3] - ranges[b, q, slot]
        gap = gap - deployment.range_ambiguity * torch.round(gap / deployment.range_ambiguity)
        value, vector = torch.linalg.eigh(paths.information[b, q, slot])
        root = value.clamp_min(0).sqrt()[:, None] * vector.T
        out.append(root @ torch.cat([gap[None], k - paths.direction[b, q, slot]]))
    return torch.cat(out).numpy()


@pytest.mark.parametrize("with_user", [False, True])
def test_fit_against_scipy(hall, case, with_user):
    example, oracle, relative, path, position, excess = case
    user = known_user(example) if with_user else None
    ranges = oracle.paths.range_m - relative[..., None]
    fit = fit_clusters(path, position, excess, ranges, oracle.paths, hall.deployment, user, steps=8)
    for b, k in ((0, 0), (0, 3), (1, 1), (2, 2), (3, 0)):

        def residual(x, b=b, k=k):
            out = whitened(x, path[b, k], ranges, oracle.paths, hall.deployment, b).tolist()
            if with_user:  # at the fitted variance, which the fit treats as constant
                leg = torch.tensor(x[:3]) - user.ue_position[b]
                miss = float(leg.norm() + user.common_offset[b] - x[3])
                out.append(miss / math.sqrt(float(fit.excess_variance[b, k])))
            return out

        start = torch.cat([position[b, k], excess[b, k, None]]).numpy()
        best = least_squares(residual, start, x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12)
        std = torch.linalg.inv(fit.information[b, k]).diagonal().sqrt()
        found = torch.cat([fit.position[b, k], fit.excess[b, k, None]])
        assert ((found - torch.tensor(best.x)).abs() < 0.02 * std).all()
        assert float(fit.chi2[b, k]) == pytest.approx(2 * best.cost, rel=1e-3)
        information = torch.tensor(best.jac.T @ best.jac)
        assert torch.allclose(
            fit.information[b, k] / information.diagonal().max(), information / information.diagonal().max(), atol=1e-4
        )


def test_log_evidence_against_an_integral(hall, case):
    """Importance sampling of the 4-D integral over position and excess; no Laplace, no linearisation."""
    _, oracle, relative, path, position, excess = case
    paths, deployment = oracle.paths, hall.deployment
    ranges = paths.range_m - relative[..., None]
    fit = fit_clusters(path, position, excess, ranges, paths, deployment, steps=8)
    box = region_box(deployment)
    span = (box[1] - box[0]).norm()
    volume, space = torch.log(span * 2 * math.pi), torch.log((box[1] - box[0]).prod() * span)
    ratio = log_evidence(path, fit, path_log_det(paths), volume, space, torch.log(span))
    generator, draws = torch.Generator().manual_seed(0), 20_000
    for b, k in ((0, 0), (1, 2), (2, 1)):
        covariance = 1.5 * torch.linalg.inv(fit.information[b, k])
        mean = torch.cat([fit.position[b, k], fit.excess[b, k, None]])
        proposal = torch.distributions.MultivariateNormal(mean, covariance)
        unit = torch.randn(draws, 4, generator=generator, dtype=torch.float64)
        x = mean + unit @ torch.linalg.cholesky(covariance).T
        total, count = -proposal.log_prob(x) - space, 0
        for q, slot in enumerate(path[b, k].tolist()):
            if slot < 0:
                continue
            count += 1
            leg = x[:, :3] - deployment.bs_position[q]
            k_hat = leg / leg.norm(dim=-1, keepdim=True)
            gap = leg.norm(dim=-1) + x[:, 3] - ranges[b, q, slot]
            gap = gap - deployment.range_ambiguity * torch.round(gap / deployment.range_ambiguity)
            r = torch.cat([gap[:, None], k_hat - paths.direction[b, q, slot]], -1)
            information = paths.information[b, q, slot]
            rank3 = torch.linalg.eigvalsh(information)[1:].log().sum()
            total = total + 0.5 * rank3 - 1.5 * math.log(2 * math.pi)
            total = total - 0.5 * torch.einsum("ni,ij,nj->n", r, information, r)
        integral = torch.logsumexp(total, 0) - math.log(draws) + count * volume
        assert float(ratio[b, k]) == pytest.approx(float(integral), abs=0.1)


def true_groups(path, width):
    return {tuple(row) for row in path.tolist() if sum(slot >= 0 for slot in row) >= width}


@pytest.mark.parametrize("with_user", [False, True])
def test_true_clusters_are_found_and_paths_used_once(hall, case, with_user):
    example, oracle, relative, path, *_ = case
    user = known_user(example) if with_user else None
    clusters = form_clusters(ray_pairs(oracle.paths, hall.deployment), relative, oracle.paths, hall.deployment, user)
    found = correct = 0
    for b in range(4):
        used = clusters.path[b][clusters.mask[b]]
        for q in range(4):
            slots = used[:, q][used[:, q] >= 0].tolist()
            assert len(slots) == len(set(slots))
            assert oracle.paths.mask[b, q, slots].all()
        assert (clusters.path[b][~clusters.mask[b]] == -1).all()
        assert (clusters.log_ratio[b][clusters.mask[b]] > 0).all()
        groups, truth = true_groups(used, 2), true_groups(path[b], 2)
        correct += len(groups & truth)
        found += len(truth)
        assert len(groups - truth) <= 2
    assert correct / found > 0.8


def test_a_pair_is_completed_in_the_other_stations(hall, case):
    _, oracle, relative, path, *_ = case
    pairs = ray_pairs(oracle.paths, hall.deployment, limit=10_000)
    wide = next((b, k) for b, k in (path >= 0).all(-1).nonzero().tolist())
    b, row = wide[0], path[wide[0], wide[1]]
    # only the pair of two of its stations is left
    keep = (pairs.station == torch.tensor([0, 2])).all(-1) & (pairs.path == row[[0, 2]]).all(-1)
    keep[torch.arange(4) != b] = False
    assert keep.sum() == 1
    clusters = form_clusters(pairs._replace(mask=pairs.mask & keep), relative, oracle.paths, hall.deployment)
    assert clusters.mask.sum() == 1
    assert clusters.path[b, 0].tolist() == row.tolist()


def test_a_user_elsewhere_contradicts_the_clusters(hall, case):
    example, oracle, relative, *_ = case
    pairs = ray_pairs(oracle.paths, hall.deployment)

    def evidence(user):
        return float(form_clusters(pairs, relative, oracle.paths, hall.deployment, user).log_ratio.sum())

    right, none, wrong = (evidence(user) for user in (known_user(example), None, known_user(example, shift=4.0)))
    assert wrong < none < right


def test_no_pairs_and_empty_scenes_give_no_clusters(hall, case):
    _, oracle, relative, *_ = case
    mask = oracle.paths.mask.clone()
    mask[1] = False
    paths = PathEstimates(*(field * mask.reshape(*mask.shape, *[1] * (field.ndim - 3)) for field in oracle.paths))
    clusters = form_clusters(ray_pairs(paths, hall.deployment), relative, paths, hall.deployment)
    assert not clusters.mask[1].any()
    assert clusters.mask[0].any()
    assert all(torch.isfinite(field).all() for field in clusters if field.is_floating_point())
    assert (gather_members(paths.mask, clusters.path) | (clusters.path < 0)).all()
