"""Linear MMSE estimation of the gains from their Gram matrix (paper 1, equation 1.10).

With `y = Phi x + CN(0, s2)`, `x ~ CN(m, V)`, V diagonal, G = Phi^H Phi and D = V^(1/2):

    B = I + D G D / s2,   Sigma = D B^-1 D,   mu = m + Sigma Phi^H (y - Phi m) / s2
    ln p(y) = -ln det B + (Phi^H e)^H Sigma (Phi^H e) / s2^2 - |e|^2 / s2 + const,   e = y - Phi m

The smallest eigenvalue of B is at least one, whatever columns coincide or vanish.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class GaussianPosterior(NamedTuple):
    """Posterior of the gains of each station."""

    mean: Tensor  # [* bs col] complex
    covariance: Tensor  # [* bs col col] complex, Hermitian
    log_evidence: Tensor  # [* bs] ln p(y) up to terms that depend on y, s2 and m only


def lmmse(
    gram: Tensor, matched: Tensor, noise_var: Tensor, deviation: Tensor, prior_mean: Tensor | None = None
) -> GaussianPosterior:
    """Posterior of the gains under independent Gaussian priors.

    Args:
        gram: [* bs col col] `Phi^H Phi`; zero rows and columns stand for padding.
        matched: [* bs col] `Phi^H y`.
        noise_var: [* bs].
        deviation: [* bs col] prior standard deviations; zero forces a gain to its prior mean.
        prior_mean: [* bs col] complex; zero by default.

    Returns:
        Mean, covariance and log evidence.
    """
    if prior_mean is not None:
        matched = matched - (gram @ prior_mean[..., None])[..., 0]
    chol, _ = torch.linalg.cholesky_ex(_normalised(gram, noise_var, deviation))
    half = torch.linalg.solve_triangular(chol, torch.diag_embed(deviation.to(gram.dtype)), upper=False)
    covariance = half.mH @ half
    white = (half @ matched[..., None])[..., 0] / noise_var[..., None]
    mean = (half.mH @ white[..., None])[..., 0]
    log_det = 2.0 * chol.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
    log_evidence = white.abs().square().sum(-1) - log_det
    return GaussianPosterior(mean if prior_mean is None else prior_mean + mean, covariance, log_evidence)


def log_evidence(gram: Tensor, matched: Tensor, noise_var: Tensor, deviation: Tensor) -> Tensor:
    """The log evidence alone (zero prior mean), [* bs]; arguments as in `lmmse`."""
    chol, _ = torch.linalg.cholesky_ex(_normalised(gram, noise_var, deviation))
    scaled = (deviation / noise_var[..., None]) * matched
    white = torch.linalg.solve_triangular(chol, scaled[..., None], upper=False)[..., 0]
    return white.abs().square().sum(-1) - 2.0 * chol.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)


def _normalised(gram: Tensor, noise_var: Tensor, deviation: Tensor) -> Tensor:
    """`I + D G D / s2`."""
    weight = (deviation[..., :, None] * deviation[..., None, :]) / noise_var[..., None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return eye + weight * gram
