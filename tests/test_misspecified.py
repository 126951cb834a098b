"""Misspecified bound against Monte Carlo of the wrong model's estimator, the ordinary bound, and a closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from sensing.arrays import ula
from sensing.bounds import target_bound
from sensing.bounds.automatic import fisher_information
from sensing.bounds.misspecified import misspecified_bound
from sensing.errors import DomainError, NumericalError, ShapeError
from sensing.radar import Target, build_network, echo_parameters, echo_response

DOUBLE = torch.float64
TIME = torch.linspace(0, 1, 24, dtype=DOUBLE)


def decay(theta):
    """Assumed: one decaying oscillation."""
    return theta[0] * torch.exp((-theta[1] + 1j * theta[2]) * TIME)


TRUTH = 1.3 * torch.exp((-0.8 + 5.0j) * TIME) + 0.7 * torch.exp((-0.2 + 9.5j) * TIME)  # a second one beside it
START = torch.tensor([1.3, 0.8, 5.0], dtype=DOUBLE)


def test_no_mismatch_is_the_ordinary_bound():
    theta = torch.tensor([1.1, 0.5, 6.0], dtype=DOUBLE)
    bound = misspecified_bound(decay, decay(theta), theta + 0.05, 0.01)
    assert torch.allclose(bound.pseudo_true, theta, atol=1e-7)
    assert torch.allclose(bound.covariance, torch.linalg.inv(fisher_information(decay, theta, 0.01)), rtol=1e-5)
    assert float(bound.divergence) == pytest.approx(0, abs=1e-9)


def test_linear_model_is_the_projection():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, 2, generator=generator, dtype=torch.complex128)
    truth = torch.randn(7, generator=generator, dtype=torch.complex128)
    bound = misspecified_bound(lambda theta: matrix @ theta.to(matrix), truth, torch.zeros(2, dtype=DOUBLE), 0.3)
    real, target = torch.view_as_real(matrix).movedim(-1, 1).flatten(0, 1), torch.view_as_real(truth).flatten()
    expected = torch.linalg.lstsq(real, target[:, None]).solution[:, 0]
    assert torch.allclose(bound.pseudo_true, expected, atol=1e-5)
    assert torch.allclose(bound.covariance, torch.linalg.inv(2 / 0.3 * real.mT @ real), rtol=1e-8)
    residual = (real @ expected - target).square().sum() / 0.3
    assert torch.allclose(bound.divergence, residual, rtol=1e-8)


def test_scatter_and_bias_of_the_wrong_estimator():
    """Fits by an independent optimiser: pseudo-true mean, covariance of the sandwich and not of B alone."""
    noise_var, count = 0.01, 800
    bound = misspecified_bound(decay, TRUTH, START, noise_var)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, len(TIME), generator=generator, dtype=torch.complex128) * math.sqrt(noise_var)
    time = TIME.numpy()

    def residual(theta, y):
        error = theta[0] * torch.exp((-theta[1] + 1j * theta[2]) * TIME).numpy() - y
        return [*error.real, *error.imag]

    def jacobian(theta, y):
        value = torch.exp((-theta[1] + 1j * theta[2]) * TIME).numpy()
        columns = [value, -theta[0] * time * value, 1j * theta[0] * time * value]
        return [[*row] for row in zip(*([*c.real, *c.imag] for c in columns), strict=True)]

    fits = [least_squares(residual, START.numpy(), jacobian, args=((TRUTH + n).numpy(),), method="lm").x for n in noise]
    fits = torch.from_numpy(np.stack(fits))
    deviation = bound.covariance.diagonal().sqrt()
    assert ((fits.mean(0) - bound.pseudo_true).abs() < 5 * deviation / math.sqrt(count) + 0.1 * deviation).all()
    ratio = fits.std(0) / deviation
    assert ((ratio - 1).abs() < 0.08).all()
    naive = torch.linalg.inv(fisher_information(decay, bound.pseudo_true, noise_var)).diagonal().sqrt()
    assert ((fits.std(0) / naive - 1).abs() > 0.12).any()  # the ordinary bound of the wrong model does not tell it
    error = (fits - START).square().mean(0)
    assert torch.allclose(error, bound.mean_square(START).diagonal(), rtol=0.15)


def test_wrong_station_position_is_a_floor():
    """A station believed 10 cm off: more power shrinks the scatter alone, the bias is that of the geometry."""
    network = build_network(
        [[0, 0, 0], [72, 0, 0], [72, 72, 0]], ula(4), 28e9, 8, 10e6, 1, 1e-4, 2e3, 1.0, 4e-20, target=[36, 36, 0]
    )
    place = network.deployment.bs_position.clone()
    place[0, 0] += 0.1
    believed = network._replace(deployment=network.deployment._replace(bs_position=place))
    true = torch.tensor([30.0, 25.0, 0.0], dtype=DOUBLE)
    still = torch.zeros(3, dtype=DOUBLE)
    echo = echo_parameters(Target(true, still, torch.zeros(3, dtype=DOUBLE)), network)

    def mean(theta):
        moved = echo_parameters(Target(torch.cat([theta[:2], true[2:]]), still, theta[5:8]), believed)
        gain = torch.polar(theta[2:5].exp(), theta[5:8])
        return echo_response(moved._replace(gain=gain), believed)

    start = torch.cat([true[:2], echo.gain.abs().log(), echo.gain.angle()])
    bounds = [
        misspecified_bound(mean, echo_response(echo, network), start, network.noise_var[:, None, None, None] * scale)
        for scale in (1.0, 1e-2)
    ]
    assert torch.allclose(bounds[0].pseudo_true, bounds[1].pseudo_true, atol=1e-6)
    assert torch.allclose(bounds[0].covariance, 100 * bounds[1].covariance, rtol=1e-4)
    bias = (bounds[0].pseudo_true - start)[:2].norm()
    assert 0.02 < float(bias) < 0.1
    peb = target_bound(true, network, unknown="xy").peb_m
    scatter = bounds[0].covariance[:2, :2].trace().sqrt()
    assert float(scatter / peb) == pytest.approx(1, abs=0.05)  # the mismatch is small against the resolution


def test_bad_input():
    with pytest.raises(ShapeError, match="start"):
        misspecified_bound(decay, TRUTH, START[None], 0.1)
    with pytest.raises(DomainError, match="start"):
        misspecified_bound(decay, TRUTH, START * torch.nan, 0.1)
    with pytest.raises(NumericalError, match="strict minimum"):
        misspecified_bound(lambda theta: (theta[0] + theta[1]) * torch.exp(1j * TIME), TRUTH, START[:2], 0.1)
