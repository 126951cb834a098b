"""Structured LMMSE against dense matrices in the space of the observation."""

import math

import pytest
import torch

from sensing.errors import DomainError, ShapeError
from sensing.inference.lmmse import lmmse, log_evidence
from sensing.inference.shared_lmmse import shared_lmmse


def dense_case(seed=0, rows=12, columns=5):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(2, rows, columns, generator=generator, dtype=torch.complex128)
    y = torch.randn(2, rows, generator=generator, dtype=torch.complex128)
    deviation = torch.rand(2, columns, generator=generator, dtype=torch.float64) + 0.2
    mean = torch.randn(2, columns, generator=generator, dtype=torch.complex128)
    noise = torch.tensor([0.3, 0.02], dtype=torch.float64)
    return phi, y, deviation, mean, noise


def dense_posterior(phi, y, deviation, mean, noise):
    """x | y by conditioning the joint Gaussian of (x, y); ln p(y) exactly."""
    prior = torch.diag_embed((deviation**2).to(phi.dtype))
    total = phi @ prior @ phi.mH + noise[:, None, None] * torch.eye(phi.shape[1])
    gain = prior @ phi.mH @ torch.linalg.inv(total)
    residual = y - (phi @ mean[..., None])[..., 0]
    posterior = mean + (gain @ residual[..., None])[..., 0]
    fit = (residual.conj() * torch.linalg.solve(total, residual)).sum(-1).real
    log_density = -fit - torch.linalg.slogdet(total)[1] - phi.shape[1] * math.log(math.pi)
    return posterior, prior - gain @ phi @ prior, log_density


def test_posterior_and_evidence_equal_dense_conditioning():
    phi, y, deviation, mean, noise = dense_case()
    gram, matched = phi.mH @ phi, (phi.mH @ y[..., None])[..., 0]
    post = lmmse(gram, matched, noise, deviation, mean)
    expected_mean, expected_covariance, density = dense_posterior(phi, y, deviation, mean, noise)
    torch.testing.assert_close(post.mean, expected_mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(post.covariance, expected_covariance, rtol=1e-9, atol=1e-12)
    residual = y - (phi @ mean[..., None])[..., 0]
    constant = residual.abs().square().sum(-1) / noise + phi.shape[1] * (math.pi * noise).log()
    torch.testing.assert_close(post.log_evidence - constant, density, rtol=1e-10, atol=1e-10)


def test_evidence_alone_is_the_same():
    phi, y, deviation, _, noise = dense_case(1)
    gram, matched = phi.mH @ phi, (phi.mH @ y[..., None])[..., 0]
    torch.testing.assert_close(
        log_evidence(gram, matched, noise, deviation), lmmse(gram, matched, noise, deviation).log_evidence
    )


def test_padding_and_switched_off_columns_change_nothing():
    phi, y, deviation, _, noise = dense_case(2)
    keep = [0, 1, 3]
    small = lmmse(
        phi[..., keep].mH @ phi[..., keep], (phi[..., keep].mH @ y[..., None])[..., 0], noise, deviation[:, keep]
    )
    phi[..., 4], deviation[:, 2] = 0.0, 0.0  # padding; a column whose prior is a spike at zero
    post = lmmse(phi.mH @ phi, (phi.mH @ y[..., None])[..., 0], noise, deviation)
    torch.testing.assert_close(post.mean[:, keep], small.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(post.log_evidence, small.log_evidence, rtol=1e-12, atol=1e-12)
    assert (post.mean[:, [2, 4]] == 0).all()


def test_coincident_columns_share_their_gain():
    phi, y, deviation, _, noise = dense_case(3)
    phi[..., 1], deviation[:, 1] = phi[..., 0], deviation[:, 0]
    post = lmmse(phi.mH @ phi, (phi.mH @ y[..., None])[..., 0], noise * 1e-5, deviation)
    torch.testing.assert_close(post.mean[:, 0], post.mean[:, 1], rtol=1e-6, atol=1e-9)
    assert torch.isfinite(post.log_evidence).all()


def shared_case(rank):
    generator = torch.Generator().manual_seed(5)
    factor = torch.randn(6, rank, generator=generator, dtype=torch.complex128)
    y = torch.randn(2, 3, 6, generator=generator, dtype=torch.complex128)
    return y, factor @ factor.mH, torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.01


@pytest.mark.parametrize("rank", [6, 2])
def test_shared_covariance_equals_one_solve_per_observation(rank):
    y, covariance, noise = shared_case(rank)
    post = shared_lmmse(y, covariance, noise)
    for b in range(2):
        for m in range(3):
            gain = covariance @ torch.linalg.inv(covariance + noise[b, m] * torch.eye(6, dtype=y.dtype))
            torch.testing.assert_close(post.mean[b, m], gain @ y[b, m], rtol=0, atol=1e-12)
            left = (covariance - gain @ covariance).diagonal().real
            torch.testing.assert_close(post.variance[b, m], left, rtol=0, atol=1e-12)


def test_shared_covariance_broadcasts_the_noise():
    y, covariance, noise = shared_case(6)
    each = shared_lmmse(y, covariance, noise[:, :1].expand(2, 3))
    once = shared_lmmse(y, covariance, noise[:, :1])
    torch.testing.assert_close(once.mean, each.mean)
    torch.testing.assert_close(once.variance.expand(2, 3, 6), each.variance)
    assert shared_lmmse(y, covariance, noise[0, 0]).variance.shape == (6,)


def test_shared_covariance_refuses_what_does_not_fit():
    y, covariance, noise = shared_case(6)
    with pytest.raises(ShapeError, match="covariance"):
        shared_lmmse(y, covariance[:5, :5], noise)
    with pytest.raises(DomainError, match="noise_var"):
        shared_lmmse(y, covariance, 0.0 * noise)
    with pytest.raises(DomainError, match="y must be finite"):
        shared_lmmse(y / 0.0, covariance, noise)
