"""Classical estimators of sparse gains in a given dictionary, of a fixed number of iterations, and the genie.

    genie   LMMSE on the true support: `(G_S + s2 / power)^-1 Phi_S^H y`
    ista    `x <- soft(x + Phi^H (y - Phi x) / e, t / e)`, e the largest eigenvalue of the Gram, soft complex
    fista   the same from an extrapolated point (Beck and Teboulle, SIAM J. Imaging Sci. 2009)
    oamp    LMMSE and the sparsity prior exchange extrinsic messages with one variance for all columns, which is the
            turbo E-step of `sensing.inference.turbo`, OAMP with the LMMSE and VAMP at once (Ma and Ping, IEEE Access
            2017; Rangan, Schniter and Fletcher, IEEE TIT 2019); in the eigenbasis a round costs two products

Pursuits are `sensing.inference.omp`, sparse Bayesian learning is `sensing.inference.dense_sbl`. AMP is not among them:
it needs columns with independent entries.
"""

import torch
from torch import Tensor

from sensing.inference.dense_columns import Dictionary
from sensing.inference.prior import SupportPrior, support_posterior
from sensing.inference.turbo import LEAST_GAIN, soft_deviation


def genie(gram: Tensor, matched: Tensor, noise_var: Tensor, support: Tensor, power: float = 1.0) -> Tensor:
    """Gains [* col] of CN(0, power) on a known support [* col], which has as many columns in all problems."""
    index = support.nonzero()[:, -1].reshape(*support.shape[:-1], -1)
    inner = gram[index[..., :, None], index[..., None, :]]
    loading = torch.diag_embed((noise_var / power)[..., None].expand(index.shape).to(gram.dtype))
    gain = torch.linalg.solve(inner + loading, matched.gather(-1, index))
    return torch.zeros_like(matched).scatter(-1, index, gain)


def ista(
    dictionary: Dictionary, matched: Tensor, noise_var: Tensor, iterations: int, weight: float, accelerated: bool
) -> Tensor:
    """Gains [* col] with the penalty `t |x|_1`, `t = weight (noise_var |phi|^2)^(1/2)`, |phi|^2 the mean energy."""
    gram, value, _ = dictionary
    step = 1.0 / value[-1]
    level = gram.diagonal().real.mean().sqrt()
    threshold = (weight * step * level * noise_var.sqrt())[..., None]
    x = point = torch.zeros_like(matched)
    momentum = 1.0
    for _ in range(iterations):
        moved = point + step * (matched - point @ gram.mT)
        size = moved.abs()
        new = moved * ((size - threshold).clamp_min(0.0) / size.where(size > 0, 1.0))
        following = 0.5 * (1.0 + (1.0 + 4.0 * momentum**2) ** 0.5)
        point = new + ((momentum - 1.0) / following if accelerated else 0.0) * (new - x)
        x, momentum = new, following
    return x


def oamp(
    dictionary: Dictionary,
    matched: Tensor,
    noise_var: Tensor,
    power: Tensor,
    odds: float,
    iterations: int,
    damping: float,
) -> Tensor:
    """Gains [* col], the final LMMSE under the soft support included.

    Args:
        dictionary: common to the batch.
        matched: [* col] `Phi^H y`.
        noise_var: [*].
        power: [*] variance of the gains that are present.
        odds: prior log-odds of "active".
        iterations: rounds between the modules.
        damping: share of the new message in (0, 1].
    """
    gram, value, vector = dictionary
    noise, sx2, columns = noise_var[..., None], power[..., None], matched.shape[-1]
    zero = torch.zeros((), dtype=value.dtype)
    prior, mask = SupportPrior(zero, zero, zero + odds), torch.ones_like(matched, dtype=torch.bool)[..., None, :]
    precision, pull = (1.0 / (torch.sigmoid(zero + odds) * sx2)).expand_as(sx2), torch.zeros_like(matched)
    for round_ in range(iterations):
        v_a = 1.0 / precision
        x_a = v_a * pull
        inverse = 1.0 / (v_a * value + noise)
        mean = x_a + v_a * ((((matched - x_a @ gram.mT) @ vector.conj()) * inverse) @ vector.mT)
        v_post = v_a * (1.0 - (v_a * value * inverse).sum(-1, keepdim=True) / columns)
        r, v = _extrinsic(mean, v_post, x_a, v_a, v_post)
        b = support_posterior(r[..., None, :], v, power[..., None], prior, mask, 0)
        if round_ + 1 < iterations:
            x_b, v_b = _extrinsic(b.mean[..., 0, :], b.variance.mean(-1), r, v, sx2)
            precision = precision + damping * (1.0 / v_b - precision)
            pull = pull + damping * (x_b / v_b - pull)
    log_odds = b.log_odds[..., 0, :]
    found = log_odds.sigmoid()
    # re-estimated, the old value counting as one path
    sx2 = ((found * b.energy[..., 0, :]).sum(-1, keepdim=True) + sx2) / (found.sum(-1, keepdim=True) + 1.0)
    variance = soft_deviation(log_odds, v[..., 0], sx2[..., 0]).square()
    root = value.sqrt()
    factor = root[:, None] * vector.mH
    covariance = (factor * variance[..., None, :]) @ factor.mH
    covariance = covariance + torch.diag_embed(noise.expand(*variance.shape[:-1], len(value)).to(factor.dtype))
    seen = ((matched @ vector.conj()) / root)[..., None]
    return variance * (factor.mH @ torch.linalg.solve(covariance, seen))[..., 0]


def _extrinsic(
    mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor, safe_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """As in `turbo`: the posterior less the prior, or the mean with a safe variance where nothing was added."""
    ratio = variance / prior_variance
    clip = ~(ratio < 1.0 - LEAST_GAIN)
    gain = 1.0 - ratio.masked_fill(clip, 0.0)
    return torch.where(clip, mean, (mean - ratio * prior_mean) / gain), torch.where(
        clip, safe_variance, variance / gain
    )
