"""Pairs of rays of different stations that may have met at one scatterer (paper 1, equations 20 to 23).

Every path of a station is a ray from it; two paths of one scatterer are rays that cross, and their crossing point
explains the difference of their path lengths up to the difference of the two clock offsets, because the user's leg
cancels:

    (r_q - |s - b_q|) - (r_p - |s - b_p|) = c (delta_q - delta_p)   (modulo the range ambiguity)

which needs neither the user nor any prior. The vote over these differences is in `alignment`.
"""

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Deployment, PathEstimates


class RayPairs(NamedTuple):
    """Plausible pairs of rays, packed along one axis with the closest crossing first."""

    station: Tensor  # [* pair 2] int64, the smaller index first
    path: Tensor  # [* pair 2] int64
    position: Tensor  # [* pair xyz] crossing point [m]
    offset_difference: Tensor  # [* pair] c (delta_first - delta_second) [m]
    offset_variance: Tensor  # [* pair] [m^2]
    ray_log_ratio: Tensor  # [*] pair log-likelihood ratio of the ray distance, true pair against accidental one
    mask: Tensor  # [* pair] bool


def wrap(length: Tensor, ambiguity: Tensor) -> Tensor:
    """Representative of a length modulo the ambiguity in [-ambiguity / 2, ambiguity / 2]."""
    if not torch.isfinite(ambiguity):
        return length
    return length - ambiguity * torch.round(length / ambiguity)


def direction_covariance(paths: PathEstimates) -> Tensor:
    """Covariance of the direction, [* bs path 3 3] (rank 2)."""
    return paths.covariance[..., 1:, 1:]


def region_box(deployment: Deployment) -> Tensor:
    """Box [2 xyz] in which scatterers and the user may lie [m]: the region, or else the stations' surroundings."""
    if deployment.region is not None:
        return deployment.region
    lower, upper = deployment.bs_position.amin(0), deployment.bs_position.amax(0)
    reach = 0.5 * (upper - lower).norm().clamp_min(10.0)
    return torch.stack([lower - reach, upper + reach])


def inside(position: Tensor, box: Tensor, margin: float = 0.0) -> Tensor:
    """Whether points [* xyz] lie in a box [2 xyz] grown by a fraction of its size on every side, [*] bool."""
    slack = margin * (box[1] - box[0])
    return ((position >= box[0] - slack) & (position <= box[1] + slack)).all(-1)


def ray_pairs(paths: PathEstimates, deployment: Deployment, gate: float = 16.0, limit: int = 256) -> RayPairs:
    """All pairs of rays of different stations whose distance passes a chi-square gate.

    With rays b_1 + t_1 k_1 and b_2 + t_2 k_2, w = b_2 - b_1 and g = k_1.k_2 (equation 1.6):
    `t_1 = (w.k_1 - g w.k_2) / (1 - g^2)`, `t_2 = (g w.k_1 - w.k_2) / (1 - g^2)`, and the distance along the common
    normal n has variance `t_1^2 n^T C_1 n + t_2^2 n^T C_2 n`.

    Args:
        paths: detected paths [* bs path]; exactly one batch axis.
        deployment: stations and region.
        gate: largest squared normalised ray distance (chi-square, 1 degree of freedom).
        limit: most pairs kept per scene.

    Returns:
        Pairs packed to the largest number found in the batch, at most `limit`, at least 1 (then masked).
    """
    combos = list(combinations(range(len(deployment.bs_position)), 2))
    count = paths.mask.shape[-1]
    device = paths.range_m.device
    if not combos:
        combos = [(0, 0)]  # one station: a single, masked pair slot keeps the shapes alive
    first, second = (torch.tensor(index, device=device) for index in zip(*combos, strict=True))
    covariance = direction_covariance(paths)

    def left(field: Tensor) -> Tensor:
        return field[:, first].unsqueeze(3)

    def right(field: Tensor) -> Tensor:
        return field[:, second].unsqueeze(2)

    k1, k2 = left(paths.direction), right(paths.direction)  # [b combo path 1 xyz], [b combo 1 path xyz]
    b1 = deployment.bs_position[first][:, None, None]
    b2 = deployment.bs_position[second][:, None, None]
    w = b2 - b1
    g = (k1 * k2).sum(-1)
    normal = torch.linalg.cross(k1.expand(*g.shape, 3), k2.expand(*g.shape, 3))
    sine2 = normal.square().sum(-1)
    safe = torch.where(sine2 > 1e-6, sine2, torch.ones_like(sine2))
    wk1, wk2 = (w * k1).sum(-1), (w * k2).sum(-1)
    t1, t2 = (wk1 - g * wk2) / safe, (g * wk1 - wk2) / safe
    normal = normal / safe.sqrt()[..., None]
    distance = (w * normal).sum(-1)
    var1 = torch.einsum("bcxyi,bcxyij,bcxyj->bcxy", normal, left(covariance).expand(*g.shape, 3, 3), normal)
    var2 = torch.einsum("bcxyi,bcxyij,bcxyj->bcxy", normal, right(covariance).expand(*g.shape, 3, 3), normal)
    var1, var2 = t1.square() * var1, t2.square() * var2
    variance = var1 + var2
    chi2 = distance.square() / torch.where(variance > 0, variance, torch.ones_like(variance))
    # crossing point: on the segment between the two closest points, nearer to the surer ray
    share = (var2 / torch.where(variance > 0, variance, torch.ones_like(variance)))[..., None]
    position = share * (b1 + t1[..., None] * k1) + (1.0 - share) * (b2 + t2[..., None] * k2)
    box = region_box(deployment)
    keep = left(paths.mask) & right(paths.mask) & (first != second)[:, None, None]
    keep = keep & (sine2 > 1e-6) & (t1 > 0) & (t2 > 0) & (variance > 0) & (chi2 < gate) & inside(position, box, 0.1)

    diagonal = (box[1] - box[0]).norm()
    log_ratio = 0.5 * torch.log(
        diagonal.square() / (2.0 * torch.pi * torch.where(keep, variance, torch.ones_like(variance)))
    )
    log_ratio = log_ratio - 0.5 * chi2
    flat = torch.where(keep, chi2, torch.full_like(chi2, torch.inf)).flatten(1)
    size = int(keep.flatten(1).sum(-1).clamp(1, limit).max())
    chi2_kept, order = flat.topk(min(size, flat.shape[1]), dim=-1, largest=False)
    combo = order // (count * count)
    station = torch.stack([first[combo], second[combo]], -1)
    path = torch.stack([order // count % count, order % count], -1)
    mask = torch.isfinite(chi2_kept)
    position = position.flatten(1, 3).gather(1, order[..., None].expand(-1, -1, 3))
    difference, spread = _offset_difference(position, station, path, paths, deployment)
    return RayPairs(station, path, position, difference, spread, log_ratio.flatten(1).gather(1, order), mask)


def _offset_difference(
    position: Tensor, station: Tensor, path: Tensor, paths: PathEstimates, deployment: Deployment
) -> tuple[Tensor, Tensor]:
    """Difference c (delta_q - delta_p) of packed pairs and its variance, first order in ranges and directions."""
    scene = torch.arange(len(position), device=position.device)[:, None, None]
    bs = deployment.bs_position[station]  # [b pair 2 xyz]
    leg = (position[:, :, None] - bs).norm(dim=-1)  # [b pair 2]
    k = paths.direction[scene, station, path]
    covariance = paths.covariance[scene, station, path]  # [b pair 2 4 4]
    # angle errors move the crossing point: its covariance is the inverse of the two rays' information
    eye = torch.eye(3, dtype=k.dtype, device=k.device)
    along = k[..., :, None] * k[..., None, :]
    across = torch.linalg.inv_ex(covariance[..., 1:, 1:] + along)[0] - along
    precision = (across / leg.square()[..., None, None].clamp_min(1e-300)).sum(2)
    ridge = precision.diagonal(dim1=-2, dim2=-1).sum(-1) * 1e-9
    cov_position = torch.linalg.inv_ex(precision + ridge[..., None, None] * eye)[0]
    slope = k[:, :, 1] - k[:, :, 0]
    variance = covariance[..., 0, 0].sum(-1) + torch.einsum("bhi,bhij,bhj->bh", slope, cov_position, slope)
    ranges = paths.range_m[scene, station, path]
    difference = (ranges[..., 0] - leg[..., 0]) - (ranges[..., 1] - leg[..., 1])
    plausible = torch.isfinite(variance) & (variance > 0) & torch.isfinite(difference)
    variance = torch.where(plausible, variance, torch.ones_like(variance))
    return wrap(torch.where(plausible, difference, torch.zeros_like(difference)), deployment.range_ambiguity), variance
