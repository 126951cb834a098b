"""Posterior mean of sparse gains by Gibbs sampling of their support: what no estimator can beat on average.

The support is a list of slots, each with a column or none. One slot at a time is drawn given all others, the gains
integrated out: with C the covariance of y under the others, `q = phi^H C^-1 y` and `s = phi^H C^-1 phi`, column g has
the odds `p / (1 - p) exp(|q|^2 v / (1 + v s)) / (1 + v s)` against none. A set of k columns can lie in the slots in
`n! / (n - k)!` ways, for which a column's odds are divided by the number of empty slots. The mean is that of the gains
given each state, with the slot in hand averaged over its odds. This takes hundreds of times the iterations of the
others; a chain that starts elsewhere and agrees says that it was long enough.
"""

import math

import torch
from torch import Tensor


def gibbs(
    gram: Tensor,
    matched: Tensor,
    noise_var: Tensor,
    start: Tensor,
    generator: torch.Generator,
    active: float = 8.0,
    power: float = 1.0,
    slots: int = 16,
    sweeps: int = 60,
    burn_in: int = 20,
) -> Tensor:
    """Posterior mean of the gains, [* col].

    Args:
        gram: [col col], common to the batch.
        matched: [* col] `Phi^H y`.
        noise_var: [*].
        start: [* col] log-odds of each column, of which the largest positive ones fill the slots.
        generator: of the draws.
        active: expected number of active columns.
        power: variance v of their gains.
        slots: most active columns.
        sweeps: draws of every slot.
        burn_in: first sweeps, which do not count.
    """
    size = matched.shape[-1]
    padded = torch.zeros(size + 1, size + 1, dtype=gram.dtype)  # column `size` is none
    padded[:size, :size] = gram
    seen = torch.cat([matched, torch.zeros_like(matched[..., :1])], -1)
    best = start.topk(min(slots, size), -1)
    held = torch.where(best.values > 0, best.indices, size)
    held = torch.nn.functional.pad(held, (0, slots - held.shape[-1]), value=size)
    energy, odds = gram.diagonal().real, math.log(active / (size - active)) if active < size else math.inf
    total, count = torch.zeros_like(matched), 0
    for sweep in range(sweeps):
        for slot in range(slots):
            others = torch.cat([held[..., :slot], held[..., slot + 1 :]], -1)
            inner = padded[others[..., :, None], others[..., None, :]]
            loading = torch.diag_embed((noise_var / power)[..., None].expand(others.shape).to(gram.dtype))
            chol = torch.linalg.cholesky(inner + loading)
            cross = torch.linalg.solve_triangular(chol, padded[others][..., :size], upper=False)
            white = torch.linalg.solve_triangular(chol, seen.gather(-1, others)[..., None], upper=False)
            q = (matched - (cross.mH @ white)[..., 0]) / noise_var[..., None]
            s = (energy - cross.abs().square().sum(-2)).clamp_min(0.0) / noise_var[..., None]
            shrink = power / (1.0 + power * s)
            free = slots - (others < size).sum(-1)
            weight = odds + q.abs().square() * shrink - torch.log1p(power * s) - free[..., None].double().log()
            used = torch.zeros_like(seen, dtype=torch.bool).scatter(-1, others, True)[..., :size]
            weight = torch.cat([weight.masked_fill(used, -math.inf), torch.zeros_like(weight[..., :1])], -1)
            share = weight.softmax(-1)
            if sweep >= burn_in:
                own = (share[..., :size] * shrink) * q
                rest = white - cross @ own[..., None].to(cross.dtype)
                rest = torch.linalg.solve_triangular(chol.mH, rest, upper=True)[..., 0]
                total = total + own + torch.zeros_like(seen).scatter_add(-1, others, rest)[..., :size]
                count += 1
            held[..., slot] = torch.multinomial(share, 1, generator=generator)[..., 0]
    return total / count
