"""The E-step: support, powers, guards and scaling."""

import math

import pytest
import torch

from sensing.inference.lmmse import lmmse
from sensing.inference.prior import SupportPrior
from sensing.inference.turbo import _extrinsic, expectation, received_power, soft_deviation

ONE = torch.ones((), dtype=torch.float64)


def logit(p):
    return torch.tensor(math.log(p / (1 - p)), dtype=torch.float64)


def case(seed=0, stations=3, rows=200, nodes=6, free=2, noise=0.05):
    generator = torch.Generator().manual_seed(seed)
    columns = nodes + free
    phi = torch.randn(stations, rows, columns, generator=generator, dtype=torch.complex128)
    support = torch.rand(stations, columns, generator=generator) < 0.8
    support[:, 1] = False  # a node that does not exist
    support[:, 0] = True
    gain = torch.randn(stations, columns, generator=generator, dtype=torch.complex128) + 1.0
    noise_var = torch.full((stations,), noise, dtype=torch.float64)
    e = torch.randn(stations, rows, generator=generator, dtype=torch.complex128) * noise**0.5
    y = (phi @ (gain * support)[..., None])[..., 0] + e
    return phi, y, gain, support, noise_var, nodes


def run(phi, y, noise_var, nodes, mask=None, inner=3, power=None, **changes):
    mask = torch.ones(y.shape[0], phi.shape[-1], dtype=torch.bool) if mask is None else mask
    phi = phi * mask[:, None, :]
    power = received_power(y.abs().square().sum(-1), y.shape[-1], noise_var, mask.sum(-1)) if power is None else power
    prior = SupportPrior(logit(0.5), logit(0.8), logit(0.5))
    settings = {"damping": 0.7 * ONE, "noise_scale": ONE, "power_scale": ONE} | changes
    gram, matched = phi.mH @ phi, (phi.mH @ y[..., None])[..., 0]
    return expectation(gram, matched, noise_var, power, prior, mask, nodes, inner, **settings)


@pytest.mark.parametrize("inner", [1, 2, 3])
def test_support_and_gains_are_found(inner):
    phi, y, gain, support, noise_var, nodes = case()
    post = run(phi, y, noise_var, nodes, inner=inner)
    assert ((post.probability > 0.5) == support).all()
    torch.testing.assert_close(post.mean, gain * support, rtol=0, atol=0.1)
    assert float(post.node_log_odds[1]) < 0 < float(post.node_log_odds[0])


def test_final_posterior_is_lmmse_on_a_sharp_support():
    phi, y, _, support, noise_var, nodes = case(1)
    post = run(phi, y, noise_var, nodes)
    expected = lmmse(phi.mH @ phi, (phi.mH @ y[..., None])[..., 0], noise_var, support * post.power[:, None].sqrt())
    torch.testing.assert_close(post.mean, expected.mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(
        post.covariance, expected.covariance, rtol=0, atol=0.02 * float(expected.covariance.abs().max())
    )
    torch.testing.assert_close(post.log_evidence, expected.log_evidence.sum(-1), rtol=1e-3, atol=0)


def test_soft_prior_has_the_wiener_gain_of_the_bernoulli_gaussian():
    log_odds = torch.tensor([[-800.0, -4.0, 0.0, 3.0, 800.0]], dtype=torch.float64)
    v, power = torch.tensor([0.02], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    variance = soft_deviation(log_odds, v, power).square()
    torch.testing.assert_close(variance / (variance + v), log_odds.sigmoid() * 3.0 / 3.02, rtol=1e-12, atol=1e-300)
    assert float(variance[0, -1]) == pytest.approx(3.0)


def test_power_is_the_mean_energy_of_what_is_present():
    phi, y, gain, support, noise_var, nodes = case(2, rows=2000)
    post = run(phi, y, noise_var, nodes)
    start = received_power(y.abs().square().sum(-1), 2000, noise_var, torch.full((3,), 8))
    energy = (gain.abs().square() * support).sum(-1)
    torch.testing.assert_close(post.power, (energy + start) / (support.sum(-1) + 1), rtol=0.05, atol=0)


def test_scaling_the_observation_scales_the_gains():
    phi, y, _, _, noise_var, nodes = case(3)
    a, b = run(phi, y, noise_var, nodes), run(phi, 1e-5 * y, 1e-10 * noise_var, nodes)
    torch.testing.assert_close(b.mean, 1e-5 * a.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(b.power, 1e-10 * a.power, rtol=1e-9, atol=0)
    torch.testing.assert_close(b.log_odds, a.log_odds, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(b.log_evidence, a.log_evidence, rtol=1e-9, atol=0)


def test_padding_and_a_station_without_columns():
    phi, y, _, _, noise_var, nodes = case(4)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 5], mask[:, 7] = False, False
    keep = [0, 1, 2, 3, 4, 6]
    power = torch.ones(3, dtype=torch.float64)
    padded = run(phi, y, noise_var, nodes, mask, power=power)
    cut = run(phi[..., keep], y, noise_var, nodes - 1, power=power)
    torch.testing.assert_close(padded.mean[:, keep], cut.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(padded.log_evidence, cut.log_evidence)
    mask[2] = False
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    empty = run(phi, y, noise_var, nodes, mask, noise_scale=scale)
    assert (empty.mean[2] == 0).all()
    assert torch.isfinite(empty.log_evidence)
    (empty.log_evidence + empty.mean.abs().square().sum() + empty.power.sum()).backward()
    assert torch.isfinite(scale.grad)


def test_guard_counts_messages_without_information():
    mean, prior_mean = torch.ones(2, 3, dtype=torch.complex128), torch.zeros(2, 3, dtype=torch.complex128)
    variance = torch.tensor([0.5, 1.5], dtype=torch.float64)  # the second module knows less than it was told
    x, v, clip = _extrinsic(
        mean, variance, prior_mean, torch.ones_like(variance), 7.0 * mean, 9.0 * torch.ones_like(variance)
    )
    assert clip.tolist() == [False, True]
    assert v.tolist() == [1.0, 9.0]
    torch.testing.assert_close(x, torch.tensor([[2.0], [7.0]], dtype=torch.complex128).expand(2, 3))
