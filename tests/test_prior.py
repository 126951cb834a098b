"""The support prior against enumeration of all its states."""

import itertools
import math

import pytest
import torch

from sensing.inference.prior import SupportPrior, support_posterior


def enumerate_node(r, v, power, activity, visibility):
    """Posterior of one node by summing over s and all s_q: P(s), P(s_q), E x_q, Var x_q."""
    stations = len(r)
    total, node = 0.0, 0.0
    seen, first, second = [0.0] * stations, [0j] * stations, [0.0] * stations
    for s, *bits in itertools.product([0, 1], repeat=1 + stations):
        weight = activity if s else 1 - activity
        for q, bit in enumerate(bits):
            rate = visibility if s else 0.0
            weight *= rate if bit else 1 - rate
            spread = v[q] + (power[q] if bit else 0.0)
            weight *= math.exp(-(abs(r[q]) ** 2) / spread) / (math.pi * spread)
        total, node = total + weight, node + s * weight
        for q, bit in enumerate(bits):
            if bit:
                m, w = power[q] * r[q] / (power[q] + v[q]), power[q] * v[q] / (power[q] + v[q])
                seen[q] += weight
                first[q] += weight * m
                second[q] += weight * (abs(m) ** 2 + w)
    mean = [f / total for f in first]
    return (
        node / total,
        [p / total for p in seen],
        mean,
        [x / total - abs(m) ** 2 for x, m in zip(second, mean, strict=True)],
    )


def logit(p):
    return torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    r = torch.randn(3, 5, generator=generator, dtype=torch.complex128)
    v, power = torch.tensor([0.3, 0.1, 0.7], dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    return r, v, power, SupportPrior(logit(0.3), logit(0.8), logit(0.6)), torch.ones(3, 5, dtype=torch.bool)


def test_moments_equal_enumeration(inputs):
    r, v, power, prior, mask = inputs
    post = support_posterior(r, v, power, prior, mask, 4)
    for g in range(4):
        node, seen, mean, variance = enumerate_node(r[:, g].tolist(), v.tolist(), power.tolist(), 0.3, 0.8)
        assert float(post.node_log_odds[g].sigmoid()) == pytest.approx(node, rel=1e-12)
        assert post.probability[:, g].tolist() == pytest.approx(seen, rel=1e-12)
        assert post.mean[:, g].tolist() == pytest.approx(mean, rel=1e-12)
        assert post.variance[:, g].tolist() == pytest.approx(variance, rel=1e-11)


def test_free_path_has_one_station(inputs):
    r, v, power, prior, mask = inputs
    post = support_posterior(r, v, power, prior, mask, 4)
    for q in range(3):
        # one station that always sees the node when it exists
        node, _, mean, _ = enumerate_node([complex(r[q, 4])], [float(v[q])], [float(power[q])], 0.6, 1.0)
        assert float(post.probability[q, 4]) == pytest.approx(node, rel=1e-12)
        assert complex(post.mean[q, 4]) == pytest.approx(mean[0], rel=1e-12)


def test_extreme_evidence_and_odds_stay_finite(inputs):
    r, v, power, _, mask = inputs
    corner = SupportPrior(*(torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (-60.0, 60.0, -60.0)))
    scaled = (1e6 * r).requires_grad_()
    post = support_posterior(scaled, v, power, corner, mask, 4)
    (post.mean.abs().sum() + post.log_odds.sum() + post.variance.sum()).backward()
    for tensor in (*post, scaled.grad, *(p.grad for p in corner)):
        assert torch.isfinite(torch.view_as_real(tensor) if tensor.is_complex() else tensor).all()


def test_padding_carries_no_evidence(inputs):
    r, v, power, prior, mask = inputs
    cut = mask.clone()
    cut[1, 0] = False
    post = support_posterior(r, v, power, prior, cut, 4)
    node, seen, _, _ = enumerate_node(r[[0, 2], 0].tolist(), v[[0, 2]].tolist(), power[[0, 2]].tolist(), 0.3, 0.8)
    # an absent observation has likelihood ratio one
    assert float(post.node_log_odds[0].sigmoid()) == pytest.approx(node, rel=1e-12)
    assert post.probability[[0, 2], 0].tolist() == pytest.approx(seen, rel=1e-12)


def test_gradcheck(inputs):
    r, v, power, prior, mask = inputs

    def moments(r, v, power, *prior):
        post = support_posterior(torch.view_as_complex(r), v, power, SupportPrior(*prior), mask, 4)
        return torch.view_as_real(post.mean), post.variance, post.log_odds, post.energy

    arguments = [torch.view_as_real(r), v, power, *prior]
    assert torch.autograd.gradcheck(moments, [x.clone().requires_grad_() for x in arguments])
