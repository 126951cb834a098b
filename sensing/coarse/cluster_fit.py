"""Fit of (position, excess) to the paths of a cluster, its evidence, and what other paths are from it.

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

from sensing.coarse.pairs import wrap
from sensing.containers import Deployment, PathEstimates
from sensing.geometry import direction_and_range


class KnownUser(NamedTuple):
    """A located user: turns the excess of a cluster from an unknown into a measurement, e = ||s - u|| + beta."""

    ue_position: Tensor  # [* xyz] [m]
    common_offset: Tensor  # [*] beta [m]
    covariance: Tensor  # [* 4 4] of (user, beta)


class ClusterFit(NamedTuple):
    """Clusters fitted to their members, leading axes [b n]."""

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


def _seen_from(position: Tensor, deployment: Deployment) -> tuple[Tensor, Tensor, Tensor]:
    """Points from the stations: leg, direction, and slope [* bs 4 4] of (range, direction) by (position, excess)."""
    difference = position[..., None, :] - deployment.bs_position  # [b n bs xyz]
    leg = difference.norm(dim=-1).clamp_min(1e-3)
    k = difference / leg[..., None]
    eye = torch.eye(3, dtype=position.dtype, device=position.device)
    slope = position.new_zeros(*leg.shape, 4, 4)
    slope[..., 0, :3], slope[..., 0, 3] = k, 1.0
    slope[..., 1:, :3] = (eye - k[..., :, None] * k[..., None, :]) / leg[..., None, None]
    return leg, k, slope


def inverse(information: Tensor) -> Tensor:
    """Covariance [* 4 4] of an information matrix, by way of a unit diagonal."""
    scale = information.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    eye = torch.eye(4, dtype=information.dtype, device=information.device)
    scaled = information * scale[..., :, None] * scale[..., None, :] + 1e-10 * eye
    return torch.linalg.inv_ex(scaled)[0] * scale[..., :, None] * scale[..., None, :]


def fit_clusters(
    path: Tensor,
    position: Tensor,
    excess: Tensor,
    ranges: Tensor,
    paths: PathEstimates,
    deployment: Deployment,
    user: KnownUser | None = None,
    steps: int = 3,
) -> ClusterFit:
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
    variance: Tensor | None = None
    extra: Tensor | float = 0.0
    for step in range(steps + 1):
        leg, k, jacobian = _seen_from(position, deployment)
        residual_range = wrap(leg + excess[..., None] - measured_range, ambiguity)
        residual = torch.cat([residual_range[..., None], k - measured_direction], -1)  # [b n bs 4]
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
    return ClusterFit(position, excess, normal, chi2, variance)


def log_evidence(
    path: Tensor, fit: ClusterFit, log_det: Tensor, log_volume: Tensor, log_space: Tensor, log_span: Tensor
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


def innovation(fit: ClusterFit, ranges: Tensor, paths: PathEstimates, deployment: Deployment) -> Tensor:
    """Squared normalised distance (3 degrees of freedom) of all paths to all clusters, [b n bs path]; inf if absent."""
    leg, k, jacobian = _seen_from(fit.position, deployment)
    predicted = jacobian @ inverse(fit.information)[..., None, :, :] @ jacobian.mT  # [b n bs 4 4]
    residual_range = wrap((leg + fit.excess[..., None])[..., None] - ranges[:, None], deployment.range_ambiguity)
    residual = torch.cat([residual_range[..., None], k[..., None, :] - paths.direction[:, None]], -1)  # [b n bs path 4]
    total = predicted[..., None, :, :] + paths.covariance[:, None]
    # a direction has no component along itself: give that component unit variance
    total[..., 1:, 1:] = total[..., 1:, 1:] + (paths.direction[..., :, None] * paths.direction[..., None, :])[:, None]
    near = (residual_range.abs() < 6.0 * total[..., 0, 0].sqrt()) & paths.mask[:, None]
    solved = torch.linalg.solve_ex(total, residual)[0]
    chi2 = (residual * solved).sum(-1)
    return torch.where(near & torch.isfinite(chi2), chi2, torch.full_like(chi2, torch.inf))
