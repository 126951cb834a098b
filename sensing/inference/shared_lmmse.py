"""LMMSE estimates of many channels under one covariance.

With `y = h + CN(0, s2 I)`, `h ~ CN(0, R)` and `R = U diag(l) U^H`, decomposed once for all observations,

    h_hat = U diag(l / (l + s2)) U^H y,     var(h_n | y) = sum_m |U_nm|^2 l_m s2 / (l_m + s2)

whatever the noise variance s2 of each: two products per observation instead of a factorisation. (Kay, Fundamentals of
Statistical Signal Processing: Estimation Theory, section 12.5.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.checks import check_finite, check_positive, check_shape


class ChannelPosterior(NamedTuple):
    """Posterior of every entry of every channel."""

    mean: Tensor  # [* n] complex
    variance: Tensor  # [* n]


def shared_lmmse(y: Tensor, covariance: Tensor, noise_var: Tensor) -> ChannelPosterior:
    """LMMSE estimate of channels that share a covariance over their last axis (subcarriers, say).

    Args:
        y: [* n] observations, for example [* bs ant sc].
        covariance: [n n] Hermitian, positive semidefinite; E h h^H.
        noise_var: broadcast against [*], for example [* bs 1] or [].

    Returns:
        Mean and variance; the variance has the broadcast shape of `noise_var` with n appended.

    Raises:
        ShapeError: the covariance does not fit the observations.
        DomainError: a value is not finite, or a noise variance is not positive.
    """
    n = check_shape("y", y, "* n")["n"]
    check_shape("covariance", covariance, "n n", n=n)
    check_finite("y", y)
    check_finite("covariance", covariance)
    check_positive("noise_var", noise_var)
    power, basis = torch.linalg.eigh(covariance)
    power = power.clamp_min(0.0)  # a singular covariance has eigenvalues of either sign to rounding
    shrink = power / (power + noise_var[..., None])
    mean = ((y @ basis.conj()) * shrink) @ basis.mT
    return ChannelPosterior(mean, (noise_var[..., None] * shrink) @ basis.abs().square().mT)
