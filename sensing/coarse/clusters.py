"""Clusters of paths that stem from one scatterer, chosen by their evidence.

With the clock offsets aligned (relative to station 0) a scatterer s that n stations see obeys 3 n equations in 4
unknowns, (s, e), where e = ||s - u|| + c delta_0 is common to all stations:

    r_q - D_q = ||s - b_q|| + e,    k_q = (s - b_q) / ||s - b_q||

A cluster is judged by the log ratio of its marginal likelihood (Laplace, uniform prior of (s, e) over the region and
the delay span) to that of n unrelated paths (each uniform over directions and delays). Positive means one scatterer.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.pairs import RayPairs, inside, region_box, wrap
from sensing.containers import Deployment, PathEstimates
from sensing.geometry import direction_and_range

GATE = 16.3  # chi-square with 3 degrees of freedom, 0.1 %


class Clusters(NamedTuple):
    """Scatterers seen by several stations, best evidence first."""

    path: Tensor  # [* cluster bs] int64, index of the member path, -1 where the station has none
    position: Tensor  # [* cluster xyz] [m]
    excess: Tensor  # [* cluster] e = user leg + c delta_0 [m]
    covariance: Tensor  # [* cluster 4 4] of (position, excess)
    log_ratio: Tensor  # [* cluster]
    mask: Tensor  # [* cluster] bool


class KnownUser(NamedTuple):
    """A located user: turns the excess of a cluster from an unknown into a measurement, e = ||s - u|| + beta."""

    ue_position: Tensor  # [* xyz] [m]
    common_offset: Tensor  # [*] beta [m]
    covariance: Tensor  # [* 4 4] of (user, beta)


class _Fit(NamedTuple):
    position: Tensor
    excess: Tensor
    information: Tensor  # [... 4 4]
    chi2: Tensor
    excess_variance: Tensor | None = None  # [...] of the user's prediction of the excess


def gather_members(field: Tensor, path: Tensor) -> Tensor:
    """Fields [b bs path ...] of member paths [b n bs]: [b n bs ...]; a member -1 reads path 0 and must be masked."""
    scene = torch.arange(len(field), device=field.device)[:, None, None]
    station = torch.arange(path.shape[-1], device=field.device)
    return field[scene, station, path.clamp_min(0)]


def fit_clusters(
    path: Tensor,
    position: Tensor,
    excess: Tensor,
    ranges: Tensor,
    paths: PathEstimates,
    deployment: Deployment,
    user: KnownUser | None = None,
    steps: int = 3,
) -> _Fit:
    """Gauss-Newton fit of (s, e) to the member paths of each cluster.

    Args:
        path: [b n bs] members.
        position: [b n xyz] start [m].
        excess: [b n] start [m].
        ranges: [b bs path] aligned ranges r - D [m].
        paths: their directions and information.
        deployment: stations.
        user: predicts the excess, if located.
        steps: Gauss-Newton steps.
    """
    member = (path >= 0).to(position.dtype)
    measured_range = gather_members(ranges, path)
    measured_direction = gather_members(paths.direction, path)
    information = gather_members(paths.information, path) * member[..., None, None]
    ambiguity = deployment.range_ambiguity
    eye = torch.eye(3, dtype=position.dtype, device=position.device)
    variance: Tensor | None = None
    extra: Tensor | float = 0.0
    for step in range(steps + 1):
        difference = position[..., None, :] - deployment.bs_position  # [b n bs xyz]
        leg = difference.norm(dim=-1).clamp_min(1e-3)
        k = difference / leg[..., None]
        residual_range = wrap(leg + excess[..., None] - measured_range, ambiguity)
        residual = torch.cat([residual_range[..., None], k - measured_direction], -1)  # [b n bs 4]
        jacobian = position.new_zeros(*residual.shape, 4)
        jacobian[..., 0, :3] = k
        jacobian[..., 0, 3] = 1.0
        jacobian[..., 1:, :3] = (eye - k[..., :, None] * k[..., None, :]) / leg[..., None, None]
        weighted = information @ jacobian
        normal = (jacobian.mT @ weighted).sum(-3)
        gradient = (weighted.mT @ residual[..., None]).sum(-3).squeeze(-1)
        if user is not None:
            toward, user_leg = direction_and_range(position, user.ue_position[:, None])
            slope = torch.cat([toward, -torch.ones_like(user_leg)[..., None]], -1)
            variance = ((slope @ user.covariance) * slope).sum(-1)
            miss = wrap(user_leg + user.common_offset[:, None] - excess, ambiguity)
            normal = normal + slope[..., :, None] * slope[..., None, :] / variance[..., None, None]
            gradient = gradient + slope * (miss / variance)[..., None]
            extra = miss.square() / variance
        if step == steps:
            break
        scale = normal.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
        scaled = normal * scale[..., :, None] * scale[..., None, :]
        scaled = scaled + 1e-10 * torch.eye(4, dtype=position.dtype, device=position.device)
        delta = -scale * torch.linalg.solve_ex(scaled, scale * gradient)[0]
        delta = torch.nan_to_num(delta).clamp(-10.0, 10.0)
        position, excess = position + delta[..., :3], excess + delta[..., 3]
    chi2 = (residual[..., None, :] @ information @ residual[..., None]).sum((-3, -2, -1)) + extra
    return _Fit(position, excess, normal, chi2, variance)


def log_evidence(
    path: Tensor, fit: _Fit, log_det: Tensor, log_volume: Tensor, log_space: Tensor, log_span: Tensor
) -> Tensor:
    """Log marginal likelihood ratio of one scatterer against unrelated paths, [b n].

    Args:
        path: [b n bs] members.
        fit: fitted clusters.
        log_det: [b bs path] log pseudo-determinant of each path's information.
        log_volume: [] log of the range span times the solid angle in which an unrelated path falls.
        log_space: [] log of the region's volume times the span of the excess.
        log_span: [] log of the span of the excess.
    """
    member = path >= 0
    count = member.sum(-1)
    data = (gather_members(log_det, path) * member).sum(-1)
    sign, posterior = torch.linalg.slogdet(fit.information)
    posterior = torch.where(sign > 0, posterior, torch.full_like(posterior, torch.inf))
    constant = (3.0 * count - 4.0) * (-0.5 * math.log(2.0 * math.pi))
    ratio = 0.5 * data - 0.5 * posterior - 0.5 * fit.chi2 + constant - log_space + count * log_volume
    if fit.excess_variance is not None:  # N(e; ||s - u|| + beta, variance) in place of the uniform excess
        ratio = ratio - 0.5 * torch.log(2.0 * math.pi * fit.excess_variance) + log_span
    return ratio


def path_log_det(paths: PathEstimates) -> Tensor:
    """Log determinant of the 3x3 information of (range, two tangents), [* bs path]; zero for absent paths."""
    lifted = paths.information.clone()
    lifted[..., 1:, 1:] = lifted[..., 1:, 1:] + paths.direction[..., :, None] * paths.direction[..., None, :]
    eye = torch.eye(4, dtype=lifted.dtype, device=lifted.device)
    return torch.logdet(torch.where(paths.mask[..., None, None], lifted, eye))


def form_clusters(
    pairs: RayPairs,
    offset_m: Tensor,
    paths: PathEstimates,
    deployment: Deployment,
    user: KnownUser | None = None,
    limit: int = 20,
    log_odds: float = -3.0,
    keep: int = 96,
) -> Clusters:
    """Greedy choice of clusters by evidence, no path in two of them.

    Every pair proposes a cluster, completed in the other stations by the path that fits best inside a chi-square gate.

    Args:
        pairs: plausible ray pairs.
        offset_m: [b bs] aligned clock offsets D relative to station 0 [m].
        paths: detected paths.
        deployment: stations.
        user: a located user; clusters must then agree with it too.
        limit: most clusters per scene.
        log_odds: prior log odds of a shared scatterer, added to the evidence.
        keep: pairs that pass the offset test, at most so many.

    Returns:
        Clusters packed to the largest number found in the batch (at least 1, then masked).
    """
    ambiguity = deployment.range_ambiguity
    ranges = paths.range_m - offset_m[..., None]
    rows = torch.arange(len(offset_m), device=offset_m.device)[:, None]
    # keep the pairs whose offset difference agrees with the alignment
    aligned = offset_m.gather(1, pairs.station[..., 0]) - offset_m.gather(1, pairs.station[..., 1])
    chi2 = wrap(pairs.offset_difference - aligned, ambiguity).square() / pairs.offset_variance
    rank = torch.where(pairs.mask & (chi2 < 25.0), chi2 - 2.0 * pairs.ray_log_ratio, torch.full_like(chi2, torch.inf))
    size = int(torch.isfinite(rank).sum(-1).clamp(1, keep).max())
    kept, order = rank.topk(size, dim=-1, largest=False)
    valid = torch.isfinite(kept)
    station, member = pairs.station[rows, order], pairs.path[rows, order]
    path = torch.full((*order.shape, offset_m.shape[-1]), -1, dtype=torch.int64, device=order.device)
    path.scatter_(2, station, member)
    position = pairs.position[rows, order]
    first = position - deployment.bs_position[station[..., 0]]
    excess = wrap(ranges[rows, station[..., 0], member[..., 0]] - first.norm(dim=-1), ambiguity)

    fit = fit_clusters(path, position, excess, ranges, paths, deployment, user)
    path = _complete(path, fit, ranges, paths, deployment)
    fit = fit_clusters(path, fit.position, fit.excess, ranges, paths, deployment, user)
    box = region_box(deployment)
    span = (box[1] - box[0]).norm()
    log_det = path_log_det(paths)
    log_volume = torch.log(span * 2.0 * math.pi)
    log_space = torch.log((box[1] - box[0]).prod() * span)
    ratio = log_evidence(path, fit, log_det, log_volume, log_space, torch.log(span)) + log_odds
    dof = 3.0 * (path >= 0).sum(-1) - (4.0 if user is None else 3.0)
    plausible = valid & (fit.chi2 < dof + 5.0 * (2.0 * dof).sqrt()) & inside(fit.position, box, 0.05)
    ratio = torch.where(plausible & torch.isfinite(ratio), ratio, torch.full_like(ratio, -torch.inf))
    return _greedy(path, fit, ratio, limit)


def _complete(path: Tensor, fit: _Fit, ranges: Tensor, paths: PathEstimates, deployment: Deployment) -> Tensor:
    """Add to every cluster the best fitting path of each station that has no member yet."""
    chi2 = innovation(fit, ranges, paths, deployment)  # [b n bs path]
    best, index = chi2.min(-1)
    return torch.where((path < 0) & (best < GATE), index, path)


def innovation(fit: _Fit, ranges: Tensor, paths: PathEstimates, deployment: Deployment) -> Tensor:
    """Squared normalised distance (3 degrees of freedom) of all paths to all clusters, [b n bs path]; inf if absent."""
    eye4 = torch.eye(4, dtype=ranges.dtype, device=ranges.device)
    scale = fit.information.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    scaled = fit.information * scale[..., :, None] * scale[..., None, :] + 1e-10 * eye4
    covariance = torch.linalg.inv_ex(scaled)[0] * scale[..., :, None] * scale[..., None, :]
    difference = fit.position[..., None, :] - deployment.bs_position
    leg = difference.norm(dim=-1).clamp_min(1e-3)
    k = difference / leg[..., None]  # [b n bs xyz]
    eye = eye4[:3, :3]
    jacobian = ranges.new_zeros(*k.shape[:-1], 4, 4)
    jacobian[..., 0, :3] = k
    jacobian[..., 0, 3] = 1.0
    jacobian[..., 1:, :3] = (eye - k[..., :, None] * k[..., None, :]) / leg[..., None, None]
    predicted = jacobian @ covariance[..., None, :, :] @ jacobian.mT  # [b n bs 4 4]
    residual_range = wrap((leg + fit.excess[..., None])[..., None] - ranges[:, None], deployment.range_ambiguity)
    residual = torch.cat([residual_range[..., None], k[..., None, :] - paths.direction[:, None]], -1)  # [b n bs path 4]
    total = predicted[..., None, :, :] + paths.covariance[:, None]
    # a direction has no component along itself: give that component unit variance
    total[..., 1:, 1:] = total[..., 1:, 1:] + (paths.direction[..., :, None] * paths.direction[..., None, :])[:, None]
    near = (residual_range.abs() < 6.0 * total[..., 0, 0].sqrt()) & paths.mask[:, None]
    solved = torch.linalg.solve_ex(total, residual)[0]
    chi2 = (residual * solved).sum(-1)
    return torch.where(near & torch.isfinite(chi2), chi2, torch.full_like(chi2, torch.inf))


def _greedy(path: Tensor, fit: _Fit, ratio: Tensor, limit: int) -> Clusters:
    """Take the best cluster, forbid its paths, repeat."""
    batch, size, _ = path.shape
    rows = torch.arange(batch, device=path.device)
    chosen, scores = [], []
    conflict_free = ratio.clone()
    for _ in range(min(limit, size)):
        best, index = conflict_free.max(-1)
        taken = best > 0
        if not taken.any():
            break
        chosen.append(torch.where(taken, index, torch.full_like(index, -1)))
        scores.append(best)
        used = path[rows, index]  # [b bs]
        clash = ((path == used[:, None]) & (path >= 0)).any(-1) & taken[:, None]
        conflict_free = torch.where(clash, torch.full_like(conflict_free, -torch.inf), conflict_free)
    if not chosen:
        chosen, scores = [torch.full_like(rows, -1)], [torch.zeros_like(ratio[:, 0])]
    index = torch.stack(chosen, 1)
    mask = index >= 0
    index = index.clamp_min(0)
    rows = rows[:, None]
    path = torch.where(mask[..., None], path[rows, index], torch.full_like(path[rows, index], -1))
    eye = torch.eye(4, dtype=ratio.dtype, device=ratio.device)
    information = torch.where(mask[..., None, None], fit.information[rows, index], eye)
    scale = information.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    scaled = information * scale[..., :, None] * scale[..., None, :] + 1e-10 * eye
    covariance = torch.linalg.inv_ex(scaled)[0] * scale[..., :, None] * scale[..., None, :]
    zero = torch.zeros_like(ratio[rows, index])
    return Clusters(
        path,
        fit.position[rows, index],
        torch.where(mask, fit.excess[rows, index], zero),
        covariance,
        torch.where(mask, torch.stack(scores, 1), zero),
        mask,
    )
