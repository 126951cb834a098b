"""Weights of a log-linear pool that maximise the generalised Chernoff information (paper 3, equations 9 to 13).

The pool is `g_w = prod_i p_i^w_i / Z(w)` with weights on the simplex, and `GCI(w) = -ln Z(w)`. With samples x_s of a
proposal q, `Z(w) ~ mean_s exp(w.l_s - ln q_s)`, l_s the members' log-densities; `ln Z` is convex, and with the
self-normalised weights `a_s = softmax_s(w.l_s - ln q_s)`

    gradient m = sum_s a_s l_s,        Hessian H = sum_s a_s l_s l_s^T - m m^T.

A damped Newton method finds the minimum of ln Z: each pass over the samples gives a quadratic model, whose minimum on
the simplex an interior-point method finds without the samples. It starts from the optimum of every sixteenth sample.
All drops of a batch step together, and a drop that has converged leaves the batch. The optimal pool is the reverse-KL
centre of its members: it is as far from each member with a positive weight, so weight goes to members that disagree
with the rest.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import DomainError

THINNED, FEWEST = 16, 16
"""The first optimum is that of every 16th sample, if these are at least 16 for each member."""

SUFFICIENT = 1e-4
"""Armijo's share of the predicted decrease."""

INTERIOR_STEPS, CENTRING, TO_THE_BOUNDARY = 12, 0.03, 0.99
"""Steps of the interior-point method; each aims at 3 % of the duality gap and stays inside."""

ROUNDING = 1e3
"""Units in the last place by which the Hessian's diagonal is raised."""

BLOCK = 262_144
"""Log-densities that are passed over at once: as many as stay in a core's cache."""


class PoolMoments(NamedTuple):
    """ln Z of a pool and its derivatives with respect to the weights."""

    log_z: Tensor  # [*]
    gradient: Tensor  # [* member]
    hessian: Tensor  # [* member member]


class ChernoffWeights(NamedTuple):
    """Optimal weights."""

    weight: Tensor  # [* member] on the simplex
    log_z: Tensor  # [*] at the optimum; the generalised Chernoff information is its negative
    iterations: Tensor  # [*] int64 passes over all samples
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
    members = log_density.mT  # [* member sample]: rows that lie in memory one after the other
    share = (weight[..., None, :] @ members)[..., 0, :].sub_(log_proposal)
    peak = share.amax(-1, keepdim=True)
    share = share.sub_(peak).exp_()
    total = share.sum(-1)
    weighted = members * share[..., None, :]
    mean = weighted.sum(-1) / total[..., None]
    second = weighted @ log_density / total[..., None, None]
    log_z = total.log() + peak[..., 0] - math.log(share.shape[-1])
    return PoolMoments(log_z, mean, second - mean[..., :, None] * mean[..., None, :])


def chernoff_weights(
    log_density: Tensor,
    log_proposal: Tensor,
    members: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> ChernoffWeights:
    """Weights on the simplex that minimise Z.

    Args:
        log_density: [* sample member].
        log_proposal: [* sample].
        members: [* member] bool: the member exists; None: all do. Others get weight zero.
        tolerance: on the squared Newton decrement, twice the decrease of ln Z that is left.
        max_iterations: passes over the samples before a drop is given up, with its best weights.

    Returns:
        The weights; a result no drop of the batch depends on the others of.

    Raises:
        DomainError: a log-density or proposal that is not finite, or a drop without members.
    """
    batch, (samples, count) = log_density.shape[:-2], log_density.shape[-2:]
    exists = torch.ones(*batch, count, dtype=torch.bool) if members is None else members.expand(*batch, count)
    if not bool(exists.any(-1).all()):
        raise DomainError("every drop must have a member, got one with none")
    density = log_density if bool(exists.all()) else torch.where(exists[..., None, :], log_density, 0.0)
    if not (math.isfinite(float(density.sum())) and math.isfinite(float(log_proposal.sum()))):
        raise DomainError("log_density and log_proposal must be finite at every sample, got others")
    rows, proposal = density.mT.reshape(-1, count, samples), log_proposal.reshape(-1, samples)
    exists = exists.reshape(-1, count)
    weight = exists.double() / exists.sum(-1, keepdim=True)
    if samples >= THINNED * FEWEST * count:
        few, few_proposal = rows[..., ::THINNED].contiguous(), proposal[:, ::THINNED].contiguous()
        weight = _minimise(weight, few, few_proposal, exists, tolerance, max_iterations).weight
    found = _minimise(weight, rows, proposal, exists, tolerance, max_iterations)
    return ChernoffWeights(found.weight.reshape(*batch, count), *(field.reshape(batch) for field in found[1:]))


def _minimise(
    weight: Tensor, rows: Tensor, proposal: Tensor, exists: Tensor, tolerance: float, max_iterations: int
) -> ChernoffWeights:
    """Damped Newton steps from given weights [drop member] until each drop has converged; rows [drop member sample]."""
    drops = len(weight)
    found = ChernoffWeights(
        weight.clone(),
        torch.full((drops,), torch.inf, dtype=torch.float64),
        torch.full((drops,), max_iterations),
        torch.zeros(drops, dtype=torch.bool),
    )
    size = max(1, BLOCK // rows[0].numel())
    active, here = torch.arange(drops), exists  # the drops that are still at work
    trial, start, best = weight, weight, found.log_z
    step, slope = torch.zeros_like(weight), torch.zeros_like(best)
    for iteration in range(1, max_iterations + 1):
        parts = [
            pool_moments(weight, rows[index].mT, proposal[index])
            for weight, index in zip(trial.split(size), active.split(size), strict=True)
        ]
        moments = PoolMoments(*map(torch.cat, zip(*parts, strict=True)))
        accepted = moments.log_z <= best + SUFFICIENT * slope
        start = torch.where(accepted[:, None], trial, start)
        # a drop whose step failed keeps its direction and goes to where the tangents at both ends meet
        there = (moments.gradient * step).sum(-1)
        shorter = ((best - moments.log_z + there) / (there - slope)).nan_to_num(0.5).clamp(0.01, 0.9)
        new_step, new_slope = _model_step(start, moments, here)
        step = torch.where(accepted[:, None], new_step, shorter[:, None] * step)
        slope = torch.where(accepted, new_slope, shorter * slope)
        best = torch.where(accepted, moments.log_z, best)
        done = (accepted & (-slope <= tolerance)) | (step.abs().amax(-1) < 1e-15)
        # the last step is as good as free: what it gains is below the tolerance and known from the model
        trial = start + step
        found.weight[active] = torch.where(done[:, None], trial, start)
        found.log_z[active] = best + torch.where(done, 0.5 * slope, 0.0)
        found.iterations[active[done]] = iteration
        found.converged[active[done]] = True
        if bool(done.all()):
            break
        if bool(done.any()):
            keep = ~done
            active, here, trial, start = active[keep], here[keep], trial[keep], start[keep]
            best, step, slope = best[keep], step[keep], slope[keep]
    return found


def _model_step(weight: Tensor, moments: PoolMoments, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Step to the minimum on the simplex of `m.d + d.H d / 2`, and the slope m.d there.

    Primal-dual interior point: `m + H d - nu - z = 0`, `(w + d) z = mu`, `sum d = 0`, with mu towards 0.
    """
    scale = moments.hessian.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    spread = (moments.gradient - moments.gradient.amin(-1, keepdim=True)).amax(-1, keepdim=True)
    # members that are flat on the domain leave a Hessian of rounding errors alone, of either sign
    least = torch.finfo(scale.dtype).eps * moments.gradient.square().amax(-1, keepdim=True)
    scale = (scale + spread).maximum(least).clamp_min(torch.finfo(scale.dtype).tiny)
    gradient, hessian = moments.gradient / scale, moments.hessian / scale[..., None]
    # rounding of H, the difference of two larger matrices, and of its factors must not make it indefinite
    rounding = torch.finfo(scale.dtype).eps * (1.0 + moments.gradient.square().amax(-1, keepdim=True) / scale)
    hessian = hessian + torch.diag_embed((ROUNDING * rounding).expand_as(weight))
    ones = exists.to(weight)
    number = ones.sum(-1, keepdim=True)
    gradient = torch.where(exists, gradient - gradient.amin(-1, keepdim=True), 0.0)
    place = 0.9 * weight + 0.1 * ones / number  # inside
    dual = torch.where(exists, 1.0, 0.0)
    for _ in range(INTERIOR_STEPS):
        gap = (place * dual).sum(-1, keepdim=True) / number
        safe = torch.where(exists, place, 1.0)
        rest = gradient + (hessian @ (place - weight)[..., None])[..., 0] - CENTRING * gap / safe
        factor = torch.linalg.cholesky(hessian + torch.diag_embed(torch.where(exists, dual / safe, 1.0)))
        solved = torch.cholesky_solve(torch.stack([rest * ones, ones], -1), factor)
        multiplier = (ones * solved[..., 0]).sum(-1, keepdim=True) / (ones * solved[..., 1]).sum(-1, keepdim=True)
        move = (multiplier * solved[..., 1] - solved[..., 0]) * ones
        turn = CENTRING * gap / safe - dual * (1.0 + move / safe)
        place = place + _room(place, move) * move
        dual = torch.where(exists, dual + _room(dual, turn) * turn, 0.0)
    place = place / place.sum(-1, keepdim=True)
    step = place - weight
    return step, (moments.gradient * step).sum(-1)


def _room(value: Tensor, move: Tensor) -> Tensor:
    """Largest share of a move, at most 1, that keeps all values positive."""
    share = torch.where(move < 0, -value / move.clamp(max=-1e-300), torch.inf).amin(-1, keepdim=True)
    return (TO_THE_BOUNDARY * share).clamp(max=1.0)
