"""Weights of a log-linear pool that maximise the generalised Chernoff information (paper 3, equations 9 to 13).

The pool is `g_w = prod_i p_i^w_i / Z(w)` with weights on the simplex, and `GCI(w) = -ln Z(w)`. With samples x_s of a
proposal q, `Z(w) ~ mean_s exp(w.l_s - ln q_s)`, l_s the members' log-densities; `ln Z` is convex, and with the
self-normalised weights `a_s = softmax_s(w.l_s - ln q_s)`

    gradient m = sum_s a_s l_s,        Hessian H = sum_s a_s l_s l_s^T - m m^T.

A damped Newton method with a logarithmic barrier finds the minimum of ln Z; all drops of a batch step together, and a
drop that has converged leaves the batch. The optimal pool is the reverse-KL centre of its members: it is as far from
each member with a positive weight, so weight goes to members that disagree with the rest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import DomainError

BARRIER = (1e-1, 1e-7)
"""Weight of the barrier at the start and at the end."""

SHRINK = 0.1
SUFFICIENT = 1e-4
TO_THE_BOUNDARY = 0.99


class PoolMoments(NamedTuple):
    """ln Z of a pool and its derivatives with respect to the weights."""

    log_z: Tensor  # [*]
    gradient: Tensor  # [* member]
    hessian: Tensor  # [* member member]


class ChernoffWeights(NamedTuple):
    """Optimal weights."""

    weight: Tensor  # [* member] on the simplex
    log_z: Tensor  # [*] at the optimum; the generalised Chernoff information is its negative
    iterations: Tensor  # [*] int64 evaluations of ln Z
    converged: Tensor  # [*] bool


def pool_moments(weight: Tensor, log_density: Tensor, log_proposal: Tensor) -> PoolMoments:
    """Log Z and its derivatives from samples.

    Args:
        weight: [* member].
        log_density: [* sample member] members' normalised log-densities at the samples.
        log_proposal: [* sample] of the proposal from which these were drawn.

    Returns:
        The moments.
    """
    exponent = (log_density @ weight[..., None])[..., 0] - log_proposal
    log_z = exponent.logsumexp(-1)
    share = torch.exp(exponent - log_z[..., None])
    weighted = log_density * share[..., None]
    mean = weighted.sum(-2)
    hessian = weighted.mT @ log_density - mean[..., :, None] * mean[..., None, :]
    return PoolMoments(log_z - math.log(exponent.shape[-1]), mean, hessian)


def chernoff_weights(
    log_density: Tensor,
    log_proposal: Tensor,
    members: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> ChernoffWeights:
    """Weights on the simplex that minimise Z, from equal ones.

    Args:
        log_density: [* sample member].
        log_proposal: [* sample].
        members: [* member] bool: the member exists; None: all do. Others get weight zero.
        tolerance: on the squared Newton decrement.
        max_iterations: evaluations of ln Z before a drop is given up, with its best weights.

    Returns:
        The weights; a result no drop of the batch depends on the others of.

    Raises:
        DomainError: a log-density or proposal that is not finite, or a drop without members.
    """
    batch, count = log_density.shape[:-2], log_density.shape[-1]
    exists = torch.ones(*batch, count, dtype=torch.bool) if members is None else members.expand(*batch, count)
    if not bool(exists.any(-1).all()):
        raise DomainError("every drop must have a member, got one with none")
    density = torch.where(exists[..., None, :], log_density, 0.0).flatten(0, -3) if batch else log_density[None]
    proposal = log_proposal.flatten(0, -2) if batch else log_proposal[None]
    exists = exists.reshape(-1, count)
    if not bool(torch.isfinite(density).all() and torch.isfinite(proposal).all()):
        raise DomainError("log_density and log_proposal must be finite at every sample, got others")
    drops = len(density)
    weight = exists.double() / exists.sum(-1, keepdim=True)
    log_z = torch.empty(drops, dtype=torch.float64)
    iterations = torch.full((drops,), max_iterations)
    converged = torch.zeros(drops, dtype=torch.bool)
    # the drops that are still at work, and their state
    active = torch.arange(drops)
    barrier = torch.full((drops,), BARRIER[0], dtype=torch.float64)
    trial, best = weight.clone(), torch.full((drops,), torch.inf, dtype=torch.float64)
    step = torch.zeros_like(weight)
    slope = torch.zeros(drops, dtype=torch.float64)
    for iteration in range(1, max_iterations + 1):
        here = exists[active]
        moments = pool_moments(trial, density, proposal)
        value = moments.log_z - barrier * torch.where(here, trial, 1.0).log().sum(-1)
        accepted = value <= best + SUFFICIENT * slope
        weight[active] = torch.where(accepted[:, None], trial, weight[active])
        log_z[active] = torch.where(accepted, moments.log_z, log_z[active])
        direction, decrement = _newton(weight[active], moments, barrier, here)
        # a drop whose step failed keeps its old direction and tries half of it
        step = torch.where(accepted[:, None], direction, 0.5 * step)
        slope = torch.where(accepted, -decrement, 0.5 * slope)
        best = torch.where(accepted, value, best)
        settled = accepted & (decrement <= tolerance)
        done = (settled & (barrier <= BARRIER[1] * 1.001)) | (step.abs().amax(-1) < 1e-15)
        finer = torch.where(settled & ~done, barrier * SHRINK, barrier)
        again = finer != barrier  # the objective changed: value and step anew, without another pass over the samples
        barrier = finer
        if bool(again.any()):
            fresh, fresh_decrement = _newton(weight[active], moments, barrier, here)
            step = torch.where(again[:, None], fresh, step)
            slope = torch.where(again, -fresh_decrement, slope)
            anew = moments.log_z - barrier * torch.where(here, weight[active], 1.0).log().sum(-1)
            best = torch.where(again, anew, best)
        iterations[active[done]] = iteration
        converged[active[done]] = True
        keep = ~done
        if not bool(keep.any()):
            break
        if not bool(keep.all()):
            density, proposal = density[keep], proposal[keep]
            active, barrier, best = active[keep], barrier[keep], best[keep]
            step, slope = step[keep], slope[keep]
        start = weight[active]
        room = torch.where(step < 0, -start / step.clamp(max=-1e-300), torch.inf).amin(-1)
        length = (TO_THE_BOUNDARY * room).clamp(max=1.0)
        step, slope = step * length[:, None], slope * length
        trial = start + step
    weight = torch.where(exists, weight, 0.0)
    weight = weight / weight.sum(-1, keepdim=True)
    shape = batch if batch else ()
    return ChernoffWeights(
        weight.reshape(*shape, count), log_z.reshape(shape), iterations.reshape(shape), converged.reshape(shape)
    )


def _newton(weight: Tensor, moments: PoolMoments, barrier: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Newton step of `ln Z - barrier sum ln w` within `sum w = 1`, and its squared decrement."""
    inverse = torch.where(exists, 1.0 / torch.where(exists, weight, 1.0), 1.0)
    gradient = torch.where(exists, moments.gradient - barrier[:, None] * inverse, 0.0)
    curvature = torch.where(exists, barrier[:, None] * inverse.square(), 1.0)
    factor = torch.linalg.cholesky(moments.hessian + torch.diag_embed(curvature))
    ones = exists.to(weight)
    solved = torch.cholesky_solve(torch.stack([gradient, ones], -1), factor)
    multiplier = (ones * solved[..., 0]).sum(-1) / (ones * solved[..., 1]).sum(-1)
    step = torch.where(exists, multiplier[:, None] * solved[..., 1] - solved[..., 0], 0.0)
    return step, -(gradient * step).sum(-1)
