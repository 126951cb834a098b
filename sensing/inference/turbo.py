"""E-step: LMMSE and support prior exchange extrinsic information (paper 1, equations 1.10 and 1.11).

Module A (LMMSE, scalar prior variance per station) and module B (three-layer prior) talk through virtual AWGN channels.
After `inner` rounds the support probabilities define a Gaussian prior per column (`soft_deviation`), whose exact LMMSE
posterior (mean, full covariance, evidence) is what the M-step and the output use. The power of the gains present is
estimated per station, so that scaling y by c and the noise by c^2 scales everything else along.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sensing.inference.linearisation import per_scene
from sensing.inference.lmmse import lmmse, log_evidence
from sensing.inference.prior import SupportPrior, support_posterior

LEAST_GAIN = 1e-9
"""Least relative precision that a module may add; below it its message is replaced and counted as a clip."""


class Expectation(NamedTuple):
    """Outcome of the E-step."""

    log_odds: Tensor  # [* bs col] of "the station sees the column"
    node_log_odds: Tensor  # [* node]
    mean: Tensor  # [* bs col] complex
    covariance: Tensor  # [* bs col col] complex
    power: Tensor  # [* bs] re-estimated variance of the gains that are present
    log_evidence: Tensor  # [*] at the nominal noise and power, hence comparable between layers
    deviation: Tensor  # [* bs col] prior deviations of the gains behind this evidence
    clipped: Tensor  # [*] int64, extrinsic messages that were replaced by safe ones

    @property
    def probability(self) -> Tensor:
        """P(the station sees the column), [* bs col]; meaningless for padding."""
        return self.log_odds.sigmoid()


def received_power(energy: Tensor, num_entries: int, noise_var: Tensor, num_paths: Tensor) -> Tensor:
    """First guess of the gains' variance: power above the noise, shared among the detected paths.

    Args:
        energy: [* bs] `||y||^2`.
        num_entries: entries of y per station.
        noise_var: [* bs].
        num_paths: [* bs] detected paths, at least one is assumed.

    Returns:
        [* bs]; never below the noise that is left on a gain.
    """
    least = noise_var / num_entries
    return torch.maximum(energy / num_entries - noise_var, least) / num_paths.clamp(min=1)


def expectation(
    gram: Tensor,
    matched: Tensor,
    noise_var: Tensor,
    power: Tensor,
    prior: SupportPrior,
    mask: Tensor,
    num_nodes: int,
    inner: int,
    damping: Tensor,
    noise_scale: Tensor,
    power_scale: Tensor,
) -> Expectation:
    """Support probabilities and the posterior of the gains.

    Args:
        gram: [* bs col col] of the columns.
        matched: [* bs col] `Phi^H y`.
        noise_var: [* bs] nominal noise variance.
        power: [* bs] variance of the gains that are present.
        prior: log-odds of the support layers.
        mask: [* bs col] bool.
        num_nodes: columns `:num_nodes` are common to all stations.
        inner: rounds between the modules.
        damping: [] or [*] share of the new message in (0, 1].
        noise_scale: [] or [*] factor on the noise that the modules assume.
        power_scale: [] or [*] factor on the power that the modules assume.
    """
    power_scale, damping = per_scene(power_scale, power), per_scene(damping, power)
    noise, sx2 = noise_var * per_scene(noise_scale, power), power * power_scale
    count, empty = mask.sum(-1).clamp(min=1), ~mask.any(-1)
    # expected share of columns in use: the first message of B to A
    share = per_scene(prior.activity.sigmoid() * prior.visibility.sigmoid(), sx2).expand(sx2.shape)
    precision, pull = 1.0 / (share * sx2), torch.zeros_like(matched)
    clipped = torch.zeros(mask.shape[:-2], dtype=torch.int64, device=mask.device)
    for round_ in range(inner):
        v_a = 1.0 / precision
        x_a = v_a[..., None] * pull
        a = lmmse(gram, matched, noise, v_a.sqrt()[..., None].expand(mask.shape), x_a)
        v_post = (a.covariance.diagonal(dim1=-2, dim2=-1).real * mask).sum(-1) / count
        v_post = torch.where(empty, v_a, v_post)  # a station without columns learns nothing
        r, v, clip = _extrinsic(a.mean, v_post, x_a, v_a, a.mean, v_post)
        b = support_posterior(r, v, sx2, prior, mask, num_nodes)
        clipped = clipped + clip.sum(-1)
        if round_ + 1 < inner:
            v_b = torch.where(empty, sx2, (b.variance * mask).sum(-1) / count)
            # where B knows less than the channel told it, its own mean with the prior variance is the safe message
            x_new, v_new, clip = _extrinsic(b.mean, v_b, r, v, b.mean, sx2)
            clipped = clipped + clip.sum(-1)
            precision = precision + damping * (1.0 / v_new - precision)
            pull = pull + damping[..., None] * (x_new / v_new[..., None] - pull)
    probability = b.log_odds.sigmoid() * mask
    updated = (probability * b.energy).sum(-1) / (probability.sum(-1) + 1.0)
    updated = updated + power / (probability.sum(-1) + 1.0)  # the old value counts as one path: no division by zero
    deviation = soft_deviation(b.log_odds, v, updated * power_scale) * mask
    final = lmmse(gram, matched, noise, deviation)
    nominal = soft_deviation(b.log_odds, v, updated) * mask
    evidence = log_evidence(gram, matched, noise_var, nominal)
    return Expectation(
        b.log_odds, b.node_log_odds, final.mean, final.covariance, updated, evidence.sum(-1), nominal, clipped
    )


def soft_deviation(log_odds: Tensor, variance: Tensor, power: Tensor) -> Tensor:
    """Standard deviation of the Gaussian prior that stands for a soft support.

    For P = sigmoid(log_odds) the Bernoulli-Gaussian posterior mean of `r = x + CN(0, v)` is `P power / (power + v) r`.
    The Gaussian prior with the same Wiener gain has the variance `P power v / (v + (1 - P) power)`: `power` for P = 1,
    and about `P v` for small P. `P power` would not do: 0.01 of a power 40 dB above v hardly shrinks.

    Args:
        log_odds: [* bs col].
        variance: [* bs] v of the last message to the support prior.
        power: [* bs].

    Returns:
        [* bs col]; formed through the log of P, whose slope stays finite as P -> 0.
    """
    v, sx2 = variance[..., None], power[..., None]
    return torch.exp(0.5 * logsigmoid(log_odds)) * (sx2 * v / (v + torch.sigmoid(-log_odds) * sx2)).sqrt()


def _extrinsic(
    mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor, safe_mean: Tensor, safe_variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a module adds: `1/v = 1/variance - 1/prior_variance`, `x = v (mean/variance - prior_mean/prior_variance)`.

    Returns mean, variance and where the safe message replaced a precision that was not positive.
    """
    ratio = variance / prior_variance
    clip = ~(ratio < 1.0 - LEAST_GAIN)
    gain = 1.0 - torch.where(clip, torch.zeros_like(ratio), ratio)
    v = torch.where(clip, safe_variance, variance / gain)
    x = (mean - ratio[..., None] * prior_mean) / gain[..., None]
    return torch.where(clip[..., None], safe_mean, x), v, clip
