"""Bound for the asynchronous uplink: user, clock offsets and scatterers from single-bounce paths to several stations.

Exact Fisher information of `y = sum_l gain_l a(k_l) exp(-j 2 pi f r_l / c) + noise` for theta = (u, c * offsets,
scatterers), all lengths in metres, the complex gains unknown and eliminated per station. A path is described by
psi = (range, t1, t2), its length and two angles on the tangent basis e1, e2 of its direction k; with
g = (s - u) / |s - u| and r = |s - b| (equation 1.2 of paper 1)

    d psi / d s = [k + g; e1 / r; e2 / r],    d psi / d u = [-g; 0; 0],    d psi / d (c * offset) = [1; 0; 0].

The offsets have a Gaussian prior, so the bound is a hybrid one, given the drawn gains. Without prior the position needs
four scatterers that are seen by two or more connected stations (equation 1.13).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.bounds.fisher import MOVED, eliminate, invert_with_prior
from sensing.checks import check_positive, check_shape
from sensing.containers import Deployment, Scene
from sensing.errors import DomainError
from sensing.geometry import direction_and_range, tangent_basis
from sensing.operators.khatri_rao import extended_operator, path_information
from sensing.units import SPEED_OF_LIGHT


class UplinkBound(NamedTuple):
    """Least standard deviations of unbiased estimators; inf where observation and priors leave a quantity open."""

    ue_position_m: Tensor  # [*] position error bound, sqrt(trace of the covariance of u) [m]
    scatterer_m: Tensor  # [* point] the same of each scatterer [m], inf where no station sees it
    clock_offset_s: Tensor  # [* bs] [s]
    covariance: Tensor  # [* n n] of (u, c * offsets, scatterers) [m^2]; where open: inf on the diagonal, 0 beside it
    num_shared: Tensor  # [*] int64: scatterers seen by two or more stations
    redundancy: Tensor  # [*] int64: sum of (shared scatterers - 1) over connected groups of stations; 3 fix the user
    rank_deficiency: Tensor  # [*] int64: directions of (u, offsets) that the observation alone leaves open
    condition: Tensor  # [*] of the scaled effective information of (u, offsets), priors included
    observable: Tensor  # [*] bool: the user's bound is finite


def uplink_information(scene: Scene, noise_var: Tensor, deployment: Deployment) -> Tensor:
    """Fisher information of the observation alone (no prior), complex gains eliminated.

    Args:
        scene: batch of scenes with gains.
        noise_var: [* bs] noise power per entry.
        deployment: the stations.

    Returns:
        [* n n] over (u, c * offsets, scatterer positions), n = 3 + bs + 3 * point [1/m^2]; rows of unseen scatterers
        are zero.

    Raises:
        ShapeError, DomainError: a field does not fit, the scene has no gains, or a noise variance is not positive.
    """
    path_gain = _check(scene, noise_var, deployment)
    stations, points = scene.visible.shape[-2:]
    # only the visible pairs: sorting them to the front makes the Grams small
    count = max(int(scene.visible.sum(-1).max()), 1) if scene.visible.numel() else 1
    index = scene.visible.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :count]  # [* bs path]
    mask = scene.visible.gather(-1, index)
    position = scene.scatterer_position.double()[..., None, :, :].expand(*scene.visible.shape, 3)
    position = position.gather(-2, index[..., None].expand(*index.shape, 3))
    gain = path_gain.to(torch.complex128).gather(-1, index) * mask

    direction, station_leg = direction_and_range(position, deployment.bs_position[:, None, :])
    user_direction, user_leg = direction_and_range(position, scene.ue_position.double()[..., None, None, :])
    range_m = station_leg + user_leg + SPEED_OF_LIGHT * scene.clock_offset.double()[..., None]
    basis = tangent_basis(direction)
    operator = extended_operator(range_m, direction, deployment, mask, basis)
    information = path_information(operator.gram(), gain, noise_var.double())
    information = information.reshape(*index.shape[:-1], 3 * count, 3 * count)

    # Jacobian of one station's psi with respect to (u, its offset, its scatterers), [* bs path*3 4 + path*3]
    angular = basis.mT / torch.where(station_leg > 0, station_leg, torch.ones_like(station_leg))[..., None, None]
    d_scatterer = torch.cat([(direction + user_direction)[..., None, :], angular], -2)  # [* bs path psi xyz]
    eye = torch.eye(count, dtype=d_scatterer.dtype, device=d_scatterer.device)
    d_scatterer = (d_scatterer[..., None, :] * eye[:, None, :, None]).reshape(information.shape)
    d_common = torch.cat([-user_direction, torch.ones_like(station_leg)[..., None]], -1)  # [* bs path 4]
    d_common = torch.nn.functional.pad(d_common[..., None, :], (0, 0, 0, 2)).flatten(-3, -2)
    jacobian = torch.cat([d_common, d_scatterer], -1)
    local = jacobian.mT @ information @ jacobian

    # where the parameters of a station stand in theta
    place = 3 + stations + 3 * index[..., None] + torch.arange(3, device=index.device)
    user = torch.arange(3, device=index.device).expand(*index.shape[:-1], 3)
    offset = (3 + torch.arange(stations, device=index.device))[:, None].expand(*index.shape[:-1], 1)
    place = torch.cat([user, offset, place.flatten(-2)], -1)
    size = 3 + stations + 3 * points
    cell = place[..., :, None] * size + place[..., None, :]
    flat = local.new_zeros(*index.shape[:-2], size * size)
    return flat.scatter_add(-1, cell.flatten(-3), local.flatten(-3)).unflatten(-1, (size, size))


def uplink_bound(scene: Scene, noise_var: Tensor, deployment: Deployment, height_prior: bool = True) -> UplinkBound:
    """Hybrid Cramer-Rao bound of the asynchronous uplink, per scene.

    The prior is Gaussian: offsets with `deployment.clock_offset_std` (0: synchronous, inf: flat) and, where
    `deployment.ue_height_range` is set, the user's height with the range's standard deviation `width / sqrt(12)`.

    Args:
        scene: batch of scenes with gains.
        noise_var: [* bs] noise power per entry.
        deployment: the stations.
        height_prior: use the height range.

    Returns:
        The bound. What cannot be observed is inf; the rest of the batch and of the scene keeps its numbers.

    Raises:
        ShapeError, DomainError: as `uplink_information`.
    """
    information = uplink_information(scene, noise_var, deployment)
    stations, points = scene.visible.shape[-2:]
    keep = 3 + stations
    parts = eliminate(information, keep)
    total = information.diagonal(dim1=-2, dim2=-1)[..., :keep]
    flat = total.new_full((keep,), torch.inf)
    prior = flat.clone()
    prior[3:] = SPEED_OF_LIGHT * deployment.clock_offset_std
    if height_prior and deployment.ue_height_range is not None:
        prior[2] = (deployment.ue_height_range[1] - deployment.ue_height_range[0]) / 12.0**0.5
    solved = invert_with_prior(parts.effective, total, prior)
    alone = invert_with_prior(parts.effective, total, flat)

    # back to all parameters: s = s_0 - slope (a - a_0)
    eye = torch.eye(keep, dtype=total.dtype, device=total.device)
    lift = torch.cat([eye.expand_as(parts.effective), -parts.slope], -2)
    covariance = lift @ solved.covariance @ lift.mT
    covariance[..., keep:, keep:] += parts.inverse
    motion = (lift @ solved.null).square().sum(-1)
    open_ = motion > MOVED * motion.amax(-1, keepdim=True)
    open_[..., keep:] |= parts.open
    covariance = torch.where(open_[..., :, None] | open_[..., None, :], torch.zeros_like(covariance), covariance)
    variance = torch.where(open_, torch.inf, covariance.diagonal(dim1=-2, dim2=-1))
    covariance.diagonal(dim1=-2, dim2=-1).copy_(variance)

    num_shared, redundancy = shared_scatterers(scene.visible)
    peb = variance[..., :3].sum(-1).sqrt()
    return UplinkBound(
        ue_position_m=peb,
        scatterer_m=variance[..., keep:].unflatten(-1, (points, 3)).sum(-1).sqrt(),
        clock_offset_s=variance[..., 3:keep].sqrt() / SPEED_OF_LIGHT,
        covariance=covariance,
        num_shared=num_shared,
        redundancy=redundancy,
        rank_deficiency=alone.rank_deficiency,
        condition=solved.condition,
        observable=torch.isfinite(peb),
    )


def shared_scatterers(visible: Tensor) -> tuple[Tensor, Tensor]:
    """Shared scatterers and the constraints that they put on the user.

    Stations are connected if they see a common scatterer. Within a group of connected stations one clock is unknown, so
    K shared scatterers leave K - 1 constraints, and the user needs three of them in all groups together.

    Args:
        visible: [* bs point] bool.

    Returns:
        Number of scatterers seen by two or more stations, sum of K - 1 over the groups with K > 0; both [*] int64.
    """
    shared = visible & (visible.sum(-2, keepdim=True) >= 2)
    edges = shared.double()
    reach = (edges @ edges.mT > 0) | torch.eye(visible.shape[-2], dtype=torch.bool, device=visible.device)
    for _ in range(max(visible.shape[-2] - 1, 1).bit_length()):
        reach = reach.double() @ reach.double() > 0
    group = reach.to(torch.uint8).argmax(-1)  # the first station of the group
    first = group == torch.arange(visible.shape[-2], device=visible.device)
    num_shared = shared.any(-2).sum(-1)
    return num_shared, num_shared - (first & shared.any(-1)).sum(-1)


def _check(scene: Scene, noise_var: Tensor, deployment: Deployment) -> Tensor:
    """The gains, after checking every field."""
    if scene.gain is None:
        raise DomainError("scene.gain must hold the path gains for a bound, got None")
    sizes = check_shape("scene.visible", scene.visible, "* bs point", bs=len(deployment.bs_position))
    check_shape("scene.gain", scene.gain, "* bs point", **sizes)
    check_shape("scene.scatterer_position", scene.scatterer_position, "* point xyz", point=sizes["point"], xyz=3)
    check_shape("scene.ue_position", scene.ue_position, "* xyz", xyz=3)
    check_shape("noise_var", noise_var, "* bs", bs=sizes["bs"])
    check_positive("noise_var", noise_var)
    return scene.gain
