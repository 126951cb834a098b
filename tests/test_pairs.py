"""Ray pairs against slow loops, noise-free scenes and Monte Carlo."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from sensing import arrays, ofdm
from sensing.coarse.pairs import inside, ray_pairs, region_box, wrap
from sensing.containers import PathEstimates
from sensing.simulation import build_deployment
from tests.reference.oracle import C, detect, single_path


def stations(*position, region=None):
    return build_deployment(
        position,
        arrays.upa(2, 2),
        ofdm.pilot_frequencies(64, 120e3, 16),
        28e9,
        1e-8,
        target=[10.0, 20.0, 2.0],
        tilt=True,
        region=region,
    )


def empty_paths(deployment, slots, batch=1):
    shape = (batch, len(deployment.bs_position), slots)
    direction = torch.zeros(*shape, 3, dtype=torch.float64)
    direction[..., 0] = 1.0
    return single_path(torch.zeros(shape), direction, 0.1, 0.01, torch.zeros(shape, dtype=torch.bool))


def wrapped(x, period):
    return x - period * round(x / period)


@pytest.fixture(scope="module")
def found(hall):
    example = hall.simulator.examples("test", range(3), snr_db=15.0)
    return example, detect(example, hall.deployment)


def test_gate_distance_and_crossing_against_a_loop(hall, found):
    _, oracle = found
    paths, deployment = oracle.paths, hall.deployment
    pairs = ray_pairs(paths, deployment, gate=16.0, limit=10_000)
    bs, box = deployment.bs_position.numpy(), region_box(deployment)
    for b in range(len(paths.mask)):
        rows = zip(pairs.station[b].tolist(), pairs.path[b].tolist(), strict=True)
        keys = [(*s, *p) for s, p in rows]
        got = {key: h for h, (key, real) in enumerate(zip(keys, pairs.mask[b].tolist(), strict=True)) if real}
        expected = {}
        for q, p in combinations(range(len(bs)), 2):
            for i in range(paths.mask.shape[-1]):
                for j in range(paths.mask.shape[-1]):
                    if not (paths.mask[b, q, i] and paths.mask[b, p, j]):
                        continue
                    k1, k2 = paths.direction[b, q, i].numpy(), paths.direction[b, p, j].numpy()
                    (t1, t2), *_ = np.linalg.lstsq(np.stack([k1, -k2], 1), bs[p] - bs[q], rcond=None)
                    gap = bs[p] + t2 * k2 - bs[q] - t1 * k1
                    normal = gap / np.linalg.norm(gap)
                    spread = [
                        t * t * normal @ paths.covariance[b, s, n, 1:, 1:].numpy() @ normal
                        for t, s, n in ((t1, q, i), (t2, p, j))
                    ]
                    chi2 = gap @ gap / sum(spread)
                    crossing = (spread[1] * (bs[q] + t1 * k1) + spread[0] * (bs[p] + t2 * k2)) / sum(spread)
                    if t1 > 0 and t2 > 0 and chi2 < 16.0 and inside(torch.tensor(crossing), box, 0.1):
                        ratio = 0.5 * math.log(float((box[1] - box[0]).square().sum()) / (2 * math.pi * sum(spread)))
                        expected[q, p, i, j] = crossing, ratio - 0.5 * chi2
        assert got.keys() == expected.keys()
        for key, (crossing, ratio) in expected.items():
            np.testing.assert_allclose(pairs.position[b, got[key]].numpy(), crossing, atol=1e-8)
            assert float(pairs.ray_log_ratio[b, got[key]]) == pytest.approx(ratio, abs=1e-8)


def test_limit_keeps_the_closest_crossings(hall, found):
    _, oracle = found
    whole = ray_pairs(oracle.paths, hall.deployment, limit=10_000)
    few = ray_pairs(oracle.paths, hall.deployment, limit=7)
    assert few.mask.shape[-1] == 7
    assert torch.equal(few.station, whole.station[:, :7])
    assert torch.equal(few.path, whole.path[:, :7])


def test_offset_difference_of_true_pairs_without_noise(hall):
    example = hall.simulator.examples("test", range(4), snr_db=15.0)
    oracle = detect(example, hall.deployment, noise=0.0)
    pairs = ray_pairs(oracle.paths, hall.deployment, limit=10_000)
    period, seen = float(hall.deployment.range_ambiguity), 0
    for b, h in pairs.mask.nonzero().tolist():
        (q, p), (i, j) = pairs.station[b, h].tolist(), pairs.path[b, h].tolist()
        if oracle.point[b, q, i] != oracle.point[b, p, j]:
            continue
        seen += 1
        point = example.scene.scatterer_position[b, oracle.point[b, q, i]]
        assert torch.allclose(pairs.position[b, h], point, atol=1e-5)
        true = C * float(example.scene.clock_offset[b, q] - example.scene.clock_offset[b, p])
        assert abs(wrapped(float(pairs.offset_difference[b, h]) - true, period)) < 1e-5
    visible = oracle.paths.mask.sum()
    assert seen > visible / 4


@pytest.mark.parametrize("angle", [2e-3, 1e-2])
def test_variance_of_the_offset_difference_against_monte_carlo(angle):
    deployment = stations([0, 0, 6], [40, 5, 4], region=[[-10, -10, -10], [50, 50, 20]])
    scatterer = torch.tensor([15.0, 22.0, 2.0], dtype=torch.float64)
    true = scatterer - deployment.bs_position
    leg = true.norm(dim=-1, keepdim=True)
    generator, count, std = torch.Generator().manual_seed(0), 4000, 0.05
    unit = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64)
    direction = true / leg + angle * (unit - (unit * true).sum(-1, keepdim=True) * true / leg**2)
    noise = std * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    paths = single_path((leg.squeeze(-1) + noise)[..., None], direction[:, :, None], std, angle)
    pairs = ray_pairs(paths, deployment)
    kept = pairs.mask[:, 0]
    assert kept.double().mean() > 0.99
    sample, predicted = pairs.offset_difference[kept, 0], pairs.offset_variance[kept, 0]
    assert abs(float(sample.mean())) < 0.1 * float(sample.std())
    assert float(predicted.mean()) == pytest.approx(float(sample.var()), rel=0.15)


def test_parallel_rays_rays_behind_and_crossings_outside_give_no_pair():
    deployment = stations([0, 0, 5], [10, 0, 5], region=[[-5, -5, 0], [15, 30, 10]])
    up, away, far = [0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.02, 1.0, 0.0]
    for first, second in ((up, up), (up, away), (away, [-0.2, -1.0, 0.0]), (far, up)):
        pairs = ray_pairs(single_path([[[20.0], [20.0]]], [[[first], [second]]], 0.1, 0.01), deployment)
        assert not pairs.mask.any()
        assert all(torch.isfinite(field).all() for field in pairs if field.is_floating_point())
    meeting = ray_pairs(single_path([[[20.0], [20.0]]], [[[[0.25, 1, 0]], [[-0.25, 1, 0]]]], 0.1, 0.01), deployment)
    assert meeting.mask.all()
    assert torch.allclose(meeting.position[0, 0], torch.tensor([5.0, 20.0, 5.0], dtype=torch.float64))


def test_single_station_and_no_paths_give_masked_pairs():
    one, two = stations([0, 0, 5]), stations([0, 0, 5], [10, 0, 5])
    alone = single_path([[[20.0, 25.0]]], [[[[0.1, 1, 0], [0, 1, 0.1]]]], 0.1, 0.01)
    for paths, deployment in ((alone, one), (empty_paths(two, 3), two), (empty_paths(one, 1), one)):
        pairs = ray_pairs(paths, deployment)
        assert pairs.mask.shape[-1] >= 1
        assert not pairs.mask.any()
        assert all(torch.isfinite(field).all() for field in pairs if field.is_floating_point())


def test_absent_slots_do_not_matter(hall, found):
    _, oracle = found
    paths = oracle.paths

    def pad(field):
        junk = field[:, :, :2] if field.dtype != torch.bool else torch.zeros_like(field[:, :, :2])
        return torch.cat([field, junk], 2)

    a = ray_pairs(paths, hall.deployment)
    b = ray_pairs(PathEstimates(*(pad(field) for field in paths)), hall.deployment)
    assert torch.equal(a.path[a.mask], b.path[b.mask])
    assert torch.allclose(a.offset_difference[a.mask], b.offset_difference[b.mask])


def test_wrap_is_the_nearest_representative():
    length = torch.linspace(-50, 50, 101, dtype=torch.float64)
    out = wrap(length, torch.tensor(7.0))
    assert (out.abs() <= 3.5 + 1e-12).all()
    assert torch.allclose(torch.remainder(length - out + 3.5, 7.0), torch.full_like(out, 3.5), atol=1e-9)
    assert torch.equal(wrap(length, torch.tensor(float("inf"))), length)
