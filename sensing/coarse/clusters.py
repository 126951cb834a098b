"""Clusters of paths that stem from one scatterer, chosen by their evidence (see `cluster_fit`), no path in two."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.cluster_fit import (
    ClusterFit,
    KnownUser,
    fit_clusters,
    innovation,
    inverse,
    log_evidence,
    path_log_det,
)
from sensing.coarse.pairs import RayPairs, inside, region_box, wrap
from sensing.containers import Deployment, PathEstimates

GATE = 16.3  # chi-square with 3 degrees of freedom, 0.1 %


class Clusters(NamedTuple):
    """Scatterers seen by several stations, best evidence first."""

    path: Tensor  # [* cluster bs] int64, index of the member path, -1 where the station has none
    position: Tensor  # [* cluster xyz] [m]
    excess: Tensor  # [* cluster] e = user leg + c delta_0 [m]
    covariance: Tensor  # [* cluster 4 4] of (position, excess)
    log_ratio: Tensor  # [* cluster]
    mask: Tensor  # [* cluster] bool


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


def _complete(path: Tensor, fit: ClusterFit, ranges: Tensor, paths: PathEstimates, deployment: Deployment) -> Tensor:
    """Add to every cluster the best fitting path of each station that has no member yet."""
    chi2 = innovation(fit, ranges, paths, deployment)  # [b n bs path]
    best, index = chi2.min(-1)
    return torch.where((path < 0) & (best < GATE), index, path)


def _greedy(path: Tensor, fit: ClusterFit, ratio: Tensor, limit: int) -> Clusters:
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
    covariance = inverse(torch.where(mask[..., None, None], fit.information[rows, index], eye))
    zero = torch.zeros_like(ratio[rows, index])
    return Clusters(
        path,
        fit.position[rows, index],
        torch.where(mask, fit.excess[rows, index], zero),
        covariance,
        torch.where(mask, torch.stack(scores, 1), zero),
        mask,
    )
