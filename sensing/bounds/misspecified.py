"""Bound of an estimator that believes a wrong model: pseudo-true parameters and the misspecified Cramer-Rao bound.

The data are `y ~ CN(truth, V)`, the estimator maximises the likelihood of `CN(mean(theta), V)`. It converges to the
parameters theta_0 whose mean is nearest to the truth (least Kullback-Leibler divergence), and scatters around them with

    C = A^-1 B A^-1,    B = 2 Re(D^H V^-1 D),    A = B - 2 Re sum_n conj(e_n) / V_n  d^2 mean_n / d theta^2,

D the Jacobian of the mean at theta_0 and e = truth - mean(theta_0) the part that no parameters explain. About true
parameters theta the mean squared error is `C + (theta_0 - theta)(theta_0 - theta)^T`: more power shrinks only C.
Fortunati, Gini, Greco and Richmond, "Performance bounds for parameter estimation under misspecified models", IEEE
Signal Processing Magazine 34(6), 2017.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, hessian

from sensing.bounds.automatic import fisher_information
from sensing.bounds.fisher import LOST
from sensing.checks import check_finite, check_shape
from sensing.errors import NumericalError

_STEPS = 200
_CLOSE = 1e-12  # of the divergence [nat]: 1e-6 standard deviations from the minimum


class MisspecifiedBound(NamedTuple):
    """What an estimator of the assumed model converges to, and how it scatters around it."""

    pseudo_true: Tensor  # [n]
    covariance: Tensor  # [n n] A^-1 B A^-1
    divergence: Tensor  # [] of the true from the nearest assumed model [nat]; 0: the truth is in the model

    def mean_square(self, true: Tensor) -> Tensor:
        """Mean squared error matrix about true parameters [n], [n n]: scatter plus squared bias."""
        bias = self.pseudo_true - true
        return self.covariance + bias[:, None] * bias


def misspecified_bound(
    mean: Callable[[Tensor], Tensor], truth: Tensor, start: Tensor, noise_var: Tensor | float
) -> MisspecifiedBound:
    """Misspecified Cramer-Rao bound of `y ~ CN(truth, noise_var)` under the model `CN(mean(theta), noise_var)`.

    Args:
        mean: assumed mean, [n] real parameters to a complex tensor, differentiable by torch.func.
        truth: true mean, of the same shape.
        start: [n] where the search for the nearest model starts; it finds the minimum of that basin.
        noise_var: power of the complex noise per sample; a number or a tensor that broadcasts against the mean.

    Returns:
        The bound.

    Raises:
        ShapeError, DomainError: the start is no finite vector.
        NumericalError: the search does not converge, or the model does not determine its parameters there.
    """
    check_shape("start", start, "n")
    check_finite("start", start)

    def divergence(theta: Tensor) -> Tensor:  # by real and imaginary parts: |.| has no derivative at zero
        difference = torch.view_as_real(truth - mean(theta)).square().sum(-1)
        return (difference / noise_var).sum()

    theta, value = _nearest(divergence, lambda theta: fisher_information(mean, theta, noise_var), start)
    spread = fisher_information(mean, theta, noise_var)
    scale = spread.diagonal().rsqrt()
    curvature = hessian(divergence)(theta) * scale[:, None] * scale
    least = torch.linalg.eigvalsh(curvature.nan_to_num(nan=-1.0))[0]
    if not bool(least > LOST):
        raise NumericalError(
            f"the assumed model must have a strict minimum of the divergence near the start, got parameters "
            f"{theta.tolist()} where its scaled curvature is {float(least):.2g}"
        )
    inverse = torch.linalg.inv(curvature) * scale[:, None] * scale
    return MisspecifiedBound(theta, inverse @ spread @ inverse, value)


def _nearest(
    divergence: Callable[[Tensor], Tensor], information: Callable[[Tensor], Tensor], start: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimum of the divergence from a start, by Levenberg-Marquardt with the Fisher information."""
    theta, value, damping = start.clone(), divergence(start), 1e-3
    for _ in range(_STEPS):
        slope, known = grad(divergence)(theta), information(theta)
        scale = known.diagonal().rsqrt()
        scaled = known * scale[:, None] * scale + damping * torch.eye(len(theta), dtype=theta.dtype)
        step = -scale * torch.linalg.solve_ex(scaled, scale * slope)[0]
        expected = float(-(slope * step).sum())
        if expected <= _CLOSE * (1.0 + float(value)):
            return theta, value
        trial = divergence(theta + step)
        if bool(trial < value):
            theta, value, damping = theta + step, trial, max(damping / 10.0, 1e-12)
        else:
            damping *= 10.0
    raise NumericalError(f"the nearest model must be found in {_STEPS} steps, got to {theta.tolist()}")
