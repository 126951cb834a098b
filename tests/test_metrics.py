"""Metrics against enumeration and hand-made cases."""

import itertools
import math

import numpy as np
import pytest
import torch

from sensing import metrics
from sensing.errors import DomainError, ShapeError


def random_sets(seed, batch=12, node=4, point=5):
    draw = torch.Generator().manual_seed(seed)
    estimated = 6 * torch.rand(batch, node, 3, generator=draw, dtype=torch.float64)
    true = 6 * torch.rand(batch, point, 3, generator=draw, dtype=torch.float64)
    estimated_mask = torch.rand(batch, node, generator=draw) < 0.7
    true_mask = torch.rand(batch, point, generator=draw) < 0.7
    return estimated, estimated_mask, true, true_mask


def enumerate_gospa(x, y, cutoff, order):
    """Alpha = 2 form: every partial assignment, `sum d^p + c^p / 2 (missed + false)`."""
    best = math.inf
    for size in range(min(len(x), len(y)) + 1):
        for rows in itertools.combinations(range(len(x)), size):
            for columns in itertools.permutations(range(len(y)), size):
                cost = sum(math.dist(x[i], y[j]) ** order for i, j in zip(rows, columns, strict=True))
                best = min(best, cost + cutoff**order / 2 * (len(x) + len(y) - 2 * size))
    return best ** (1 / order)


@pytest.mark.parametrize("order", [1.0, 2.0])
@pytest.mark.parametrize("cutoff", [0.5, 3.0, 50.0])
def test_gospa_equals_enumeration(order, cutoff):
    estimated, estimated_mask, true, true_mask = random_sets(1)
    got = metrics.gospa(estimated, estimated_mask, true, true_mask, cutoff, order)
    for i in range(len(got)):
        x, y = estimated[i, estimated_mask[i]].tolist(), true[i, true_mask[i]].tolist()
        assert float(got[i]) == pytest.approx(enumerate_gospa(x, y, cutoff, order), rel=1e-12)


def test_gospa_is_a_distance():
    estimated, estimated_mask, true, true_mask = random_sets(2)
    zero = metrics.gospa(true, true_mask, true, true_mask, 5.0)
    assert (zero == 0).all()
    forward = metrics.gospa(estimated, estimated_mask, true, true_mask, 5.0, alpha=1.0)
    backward = metrics.gospa(true, true_mask, estimated, estimated_mask, 5.0, alpha=1.0)
    assert torch.allclose(forward, backward)


def test_gospa_counts_missed_and_false():
    point = torch.zeros(2, 3, 3, dtype=torch.float64)
    point[:, :, 0] = torch.tensor([0.0, 10.0, 20.0])
    everything, nothing = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool)
    assert torch.allclose(metrics.gospa(point, nothing, point, everything, 2.0), torch.tensor(6.0).sqrt().double())
    assert torch.allclose(metrics.gospa(point, nothing, point, nothing, 2.0), torch.zeros(2).double())
    broken = torch.full_like(point, float("nan"))
    assert torch.allclose(metrics.gospa(broken, everything, point, everything, 2.0), torch.tensor(12.0).sqrt().double())
    with pytest.raises(DomainError, match="alpha"):
        metrics.gospa(point, everything, point, everything, 2.0, alpha=3.0)
    with pytest.raises(ShapeError, match="true_mask"):
        metrics.gospa(point, everything, point, everything[:, :2], 2.0)


@pytest.mark.parametrize("which", ["shared", "specific"])
@pytest.mark.parametrize("statistic", ["rms", "median"])
def test_scatterer_error_equals_enumeration(statistic, which):
    cutoff = 4.0
    estimated, estimated_mask, true, _ = random_sets(3)
    visible = torch.rand(12, 3, 5, generator=torch.Generator().manual_seed(4)) < 0.45
    index = metrics.match_scatterers(estimated, estimated_mask, true, visible, cutoff)
    found = metrics.of_matched(index, estimated) - true
    got = metrics.scatterer_error(found, visible, cutoff, statistic, which)
    for i in range(12):
        views = visible[i].sum(0)
        x, y = estimated[i, estimated_mask[i]].tolist(), true[i, views >= 1].tolist()
        best, error = math.inf, []
        slots = list(range(len(x))) + [None] * len(y)  # None: unassigned, at the cutoff
        for choice in set(itertools.permutations(slots, len(y))):
            d = [cutoff if c is None else min(math.dist(x[c], p), cutoff) for c, p in zip(choice, y, strict=True)]
            if sum(v * v for v in d) < best:
                best, error = sum(v * v for v in d), d
        error = [d for d, v in zip(error, views[views >= 1].tolist(), strict=True) if (v >= 2) == (which == "shared")]
        if not error:
            assert torch.isnan(got[i])
        else:
            wanted = np.sqrt(np.mean(np.square(error))) if statistic == "rms" else np.median(error)
            assert float(got[i]) == pytest.approx(wanted, rel=1e-12)


def test_position_error_and_nmse():
    assert metrics.position_error(torch.tensor([[3.0, 4, 0]]), torch.zeros(1, 3)).tolist() == [5.0]
    channel = torch.ones(2, 3, 4, 5, dtype=torch.complex128)
    estimate = channel + torch.tensor([0.1j, 1.0])[:, None, None, None]
    assert torch.allclose(metrics.nmse_db(estimate, channel), torch.tensor([-20.0, 0.0]).double())


def test_clock_offset_error_wraps():
    true = torch.tensor([[1e-8, -2e-8]], dtype=torch.float64)
    assert metrics.clock_offset_error(true + 3e-9, true).item() == pytest.approx(3e-9)
    shifted = true + torch.tensor([3e-9 + 1e-6, 3e-9 - 2e-6])
    assert metrics.clock_offset_error(shifted, true, 1e-6).item() == pytest.approx(3e-9, rel=1e-6)
    assert metrics.clock_offset_error(shifted, true).item() > 1e-6
    assert torch.isnan(metrics.clock_offset_error(true * float("nan"), true, 1e-6)).all()


def test_converged():
    error = torch.tensor([1.0, 4.0, float("nan"), 1.0, float("inf")])
    peb = torch.tensor([1.0, 1.0, 1.0, float("inf"), 1.0])
    assert metrics.converged(error, peb).tolist() == [True, False, False, False, False]


def test_summarize_counts_what_it_leaves_out():
    result = metrics.summarize(torch.tensor([3.0, 4.0, float("nan"), float("inf"), 5.0]))
    assert result["median"] == 4.0
    assert result["mean"] == 4.0
    assert result["rms"] == pytest.approx(math.sqrt(50 / 3))
    assert result["p90"] == pytest.approx(np.quantile([3, 4, 5], 0.9))
    assert (result["count"], result["num_nonfinite"]) == (3, 2)
    nothing = metrics.summarize(torch.tensor([float("nan")]))
    assert math.isnan(nothing["rms"])
    assert nothing["num_nonfinite"] == 1
    assert math.isnan(metrics.summarize(torch.empty(0))["median"])


def test_wilson_interval():
    low, high = metrics.wilson_interval(8, 10)  # published value: 0.490 to 0.943
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    assert metrics.wilson_interval(10, 10)[1] == pytest.approx(1.0)
    with pytest.raises(DomainError, match="successes"):
        metrics.wilson_interval(3, 2)


def test_nees_is_the_squared_error_in_the_metric_of_the_covariance():
    draw = torch.Generator().manual_seed(2)
    root = torch.randn(5, 4, 4, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 1e-6, 1e3, 1.0])[:, None]
    covariance, error = root @ root.mT, torch.randn(5, 4, generator=draw, dtype=torch.float64)
    wanted = [e @ np.linalg.inv(c) @ e for e, c in zip(error.numpy(), covariance.numpy(), strict=True)]
    assert torch.allclose(metrics.nees(error, covariance), torch.tensor(wanted), rtol=1e-6)
    flat = torch.diag(torch.tensor([1.0, 0.0, 1.0]))
    broken = torch.stack(
        [flat, -torch.eye(3), torch.full((3, 3), torch.nan), torch.diag(torch.tensor([1, 1, torch.inf]))]
    )
    assert metrics.nees(torch.ones(4, 3), broken).isnan().all()


def test_no_estimate_at_all_misses_every_scatterer():
    true, visible = torch.randn(2, 4, 3), torch.ones(2, 3, 4, dtype=torch.bool)
    index = metrics.match_scatterers(torch.empty(2, 0, 3), torch.empty(2, 0, dtype=torch.bool), true, visible, 2.0)
    assert (index == -1).all()
    nobody = torch.empty(2, 0, dtype=torch.bool)
    missed = metrics.gospa(torch.empty(2, 0, 3), nobody, true, visible.any(1), 2.0)
    assert missed.tolist() == pytest.approx([math.sqrt(4 * 2.0)] * 2)  # 4 points at cutoff^2 / 2 each
    error = metrics.of_matched(index, torch.empty(2, 0, 3)) - true
    assert error.isnan().all()
    assert metrics.scatterer_error(error, visible, 2.0).tolist() == [2.0, 2.0]
    assert metrics.of_matched(index, torch.empty(2, 0, 3, 3)).shape == (2, 4, 3, 3)
