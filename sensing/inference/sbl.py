"""Sparse Bayesian learning: one prior variance per column, found by maximising the evidence.

    y = Phi x + CN(0, s2),   x_g ~ CN(0, v_g),   v_g -> 0 removes column g
    Sigma = (Phi^H Phi / s2 + V^-1)^-1,   mu = Sigma Phi^H y / s2,   w_g = 1 - Sigma_gg / v_g in [0, 1]

w_g is how much of gain g the data determine. The fixed points of the three updates are the same (stationary points of
`ln p(y | v) - sparsity * sum ln v`), the speeds are not (sums over the columns that share a variance, n of them):

    em       v = sum(|mu|^2 + Sigma) / (n + sparsity)                       monotone, slow
    mackay   v = sum |mu|^2 / (sum w + sparsity)                            fast, not monotone
    convex   z v^2 + sparsity v = sum |mu|^2,  z = sum w / v                monotone, between the two

References: Tipping, "Sparse Bayesian learning and the relevance vector machine", JMLR 2001 (em, mackay); Wipf and
Nagarajan, "A new view of automatic relevance determination", NIPS 2007 (convex); Wipf and Rao, "An empirical Bayesian
strategy for solving the simultaneous sparse approximation problem", IEEE TSP 2007 (shared variances).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import ConfigError

UPDATES = ("em", "mackay", "convex")
_WORTH_GATHERING = 0.75  # share of columns left at which a smaller matrix pays for its copy


class SparseBayes(NamedTuple):
    """Where the evidence is (locally) largest."""

    mean: Tensor  # [* bs col] complex gains
    variance: Tensor  # [* bs col] their prior variances; zero where a column was pruned
    determined: Tensor  # [* bs col] w
    noise_var: Tensor  # [* bs] given or learned
    log_evidence: Tensor  # [*] ln p(y) of all stations, up to a constant
    iterations: Tensor  # [*] int64


class Posterior(NamedTuple):
    """What an update of the variances needs."""

    mean: Tensor  # [* bs col]
    determined: Tensor  # [* bs col]
    log_evidence: Tensor  # [*]


class Settings(NamedTuple):
    """How the evidence is climbed.

    Args:
        update: em, mackay or convex.
        shared: the stations of a scene share the variance of a column.
        learn_noise: learn the noise variance of every station.
        sparsity: weight of the hyperprior `p(v) = v^-sparsity`; 0 is flat, 1 has no scale.
        prune: a column leaves when its variance times its energy falls below this multiple of the noise variance.
        iterations: most updates.
        tolerance: finished when the evidence of a scene changes by less [nats].
    """

    update: str = "em"
    shared: bool = False
    learn_noise: bool = False
    sparsity: float = 1.0
    prune: float = 1e-3
    iterations: int = 30
    tolerance: float = 0.01

    def validate(self) -> "Settings":
        """The settings themselves; raises ConfigError for a value that makes no sense."""
        if self.update not in UPDATES:
            raise ConfigError(f"update must be one of {UPDATES}, got {self.update!r}")
        if self.iterations < 1 or not all(value >= 0 for value in (self.sparsity, self.prune, self.tolerance)):
            raise ConfigError(
                "sparse Bayesian learning needs iterations >= 1 and sparsity, prune, tolerance >= 0, got "
                f"{self.iterations}, {self.sparsity}, {self.prune}, {self.tolerance}"
            )
        return self


def sparse_bayes(
    gram: Tensor,
    matched: Tensor,
    energy: Tensor,
    noise_var: Tensor,
    entries: int,
    settings: Settings | None = None,
) -> SparseBayes:
    """Maximise the evidence over the prior variances.

    Args:
        gram: [* bs col col] `Phi^H Phi`; zero rows and columns stand for padding.
        matched: [* bs col] `Phi^H y`.
        energy: [* bs] `|y|^2`.
        noise_var: [* bs]; where the noise is learned, where to start.
        entries: length of y, antennas times pilots.
        settings: the defaults when None.

    Returns:
        SparseBayes.

    Raises:
        ConfigError: a setting that makes no sense.
    """
    update, shared, learn_noise, sparsity, prune, iterations, tolerance = (settings or Settings()).validate()
    power = gram.diagonal(dim1=-2, dim2=-1).real
    total = power.sum(-1, keepdim=True)
    variance = (energy[..., None] / total.where(total > 0, 1.0)).expand(power.shape) * (power > 0)
    if shared:
        variance = variance.mean(-2, keepdim=True).expand(variance.shape) * (power > 0).any(-2, keepdim=True)
    columns = torch.arange(power.shape[-1], device=power.device).expand(power.shape)
    last = torch.full_like(energy[..., 0], -torch.inf)
    done, count = torch.zeros_like(last, dtype=torch.bool), torch.zeros_like(last, dtype=torch.int64)
    for _ in range(iterations):
        posterior = _posterior(gram, matched, energy, noise_var, variance, entries)
        done = done | ((posterior.log_evidence - last).abs() < tolerance)
        if bool(done.all()):
            break
        last, count = posterior.log_evidence, count + (~done).to(count.dtype)
        ceiling = gram.diagonal(dim1=-2, dim2=-1).real / noise_var[..., None]
        new = updated(variance, posterior, ceiling, update, shared, sparsity)
        alive = new * ceiling >= prune
        new = new * (alive.any(-2, keepdim=True) if shared else alive)
        variance = torch.where(done[..., None, None], variance, new)
        if learn_noise:
            learned = _learned_noise(gram, matched, energy, noise_var, posterior, entries, update)
            noise_var = torch.where(done[..., None], noise_var, learned)
        if (kept := int((variance > 0).sum(-1).max())) < _WORTH_GATHERING * variance.shape[-1]:
            # a stable sort gives stations that share their variances the same columns
            order = (variance > 0).to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., : max(kept, 1)]
            rows = gram.gather(-2, order[..., None].expand(*order.shape, gram.shape[-1]))
            gram = rows.gather(-1, order[..., None, :].expand(*order.shape, order.shape[-1]))
            matched, variance, columns = (each.gather(-1, order) for each in (matched, variance, columns))
    posterior = _posterior(gram, matched, energy, noise_var, variance, entries)

    def whole(values: Tensor) -> Tensor:
        return values.new_zeros(power.shape).scatter(-1, columns, values)

    mean, determined = whole(posterior.mean), whole(posterior.determined)
    return SparseBayes(mean, whole(variance), determined, noise_var, posterior.log_evidence, count)


def _posterior(
    gram: Tensor, matched: Tensor, energy: Tensor, noise_var: Tensor, variance: Tensor, entries: int
) -> Posterior:
    """With `B = I + V^1/2 G V^1/2 / s2`: `Sigma = V^1/2 B^-1 V^1/2`, `w = 1 - diag B^-1`; B is never singular."""
    deviation = variance.sqrt()
    weight = deviation[..., :, None] * deviation[..., None, :] / noise_var[..., None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    chol = torch.linalg.cholesky(eye + weight * gram)
    inverse = torch.linalg.solve_triangular(chol, eye.expand(chol.shape), upper=False)
    white = (inverse @ (deviation / noise_var[..., None] * matched)[..., None])[..., 0]
    mean = deviation * (inverse.mH @ white[..., None])[..., 0]
    fit = white.abs().square().sum(-1) - 2.0 * chol.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
    evidence = fit - energy / noise_var - entries * noise_var.log()
    determined = (1.0 - inverse.abs().square().sum(-2)).clamp(0.0, 1.0)
    return Posterior(mean, determined, evidence.sum(-1))


def updated(
    variance: Tensor, posterior: Posterior, ceiling: Tensor, update: str, shared: bool, sparsity: float
) -> Tensor:
    """New prior variances [* bs col]; pruned columns stay at zero. `ceiling` is |phi|^2 / s2, [* bs col]."""

    def pool(values: Tensor) -> Tensor:
        return values.sum(-2, keepdim=True).expand(values.shape) if shared else values

    present = variance > 0
    energy, determined = pool(posterior.mean.abs().square()), pool(posterior.determined)
    if update == "em":
        spread = pool(variance * (1.0 - posterior.determined))
        new = (energy + spread) / (pool(torch.ones_like(variance)) + sparsity)
    elif update == "mackay":
        scale = determined + sparsity
        new = energy / scale.where(scale > 0, 1.0)
    else:
        # z = phi^H C^-1 phi is at most |phi|^2 / s2, and exactly this where w is lost in rounding
        most = pool(ceiling)
        slope = (determined / variance.where(present, 1.0)).minimum(most)
        slope = slope.where(determined > torch.finfo(variance.dtype).eps * variance.shape[-1], most)
        # the positive root, in the form that loses no digits for small slopes
        new = 2.0 * energy / (sparsity + (sparsity**2 + 4.0 * slope * energy).sqrt()).where(energy > 0, 1.0)
    return new.where(present, 0.0)


def _learned_noise(
    gram: Tensor,
    matched: Tensor,
    energy: Tensor,
    noise_var: Tensor,
    posterior: Posterior,
    entries: int,
    update: str,
) -> Tensor:
    """`(|y - Phi mu|^2 + s2 sum w) / entries`, or MacKay's `|y - Phi mu|^2 / (entries - sum w)`, [* bs]."""
    mean = posterior.mean
    cross = (mean.conj() * (2.0 * matched - (gram @ mean[..., None])[..., 0])).real.sum(-1)
    misfit, used = energy - cross, posterior.determined.sum(-1)
    # below rounding of the energy the misfit is no measurement
    misfit = misfit.clamp_min(0.0) + torch.finfo(misfit.dtype).eps * energy
    if update == "mackay":
        return misfit / (entries - used).clamp_min(torch.finfo(used.dtype).eps * entries)
    return (misfit + noise_var * used) / entries
