"""Gradient and curvature of the EM surrogate, per path and in the unknowns of the location domain (equation 1.12).

Per path, with psi = (range, two tangent coordinates of the direction), d_lc = d phi_l / d psi_c, gains of posterior
mean mu and covariance Sigma, M = mu mu^H + Sigma, C = d^H Phi and B = d^H d:

    gradient  = (2/s2) Re{ conj(mu_l) d_lc^H y - sum_j C_lc,j M_jl }
    complete  = (2/s2) Re{ M_l'l B }                                   curvature of EM: gains as if observed
    marginal  = (2/s2) Re{ conj(mu_l) mu_l' (B - C Sigma C^H / s2) }   gains eliminated (Louis' observed information)

The location domain has the unknowns theta = (u, c * offsets, nodes) common to all stations, to which the located
columns are tied by d range/d s = k + g, d t_i/d s = e_i / r, d range/d u = -g, d range/d offset = 1 (k, g: unit vectors
from the station and from the user to the node), and the free paths of each station, which keep their own psi.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class System(NamedTuple):
    """Normal equations `H step = gradient`, bordered: free paths couple to theta and to those of their station only.

    `theta` is (u, c * offsets [bs], nodes), size 3 + bs + 3 node; `free` is (range, t1, t2) per free path, size 3 free.
    """

    gradient: Tensor  # [* theta]
    curvature: Tensor  # [* theta theta]
    cross: Tensor  # [* bs theta free]
    free_gradient: Tensor  # [* bs free]
    free_curvature: Tensor  # [* bs free free]


def per_scene(value: Tensor, like: Tensor) -> Tensor:
    """A number [] or one per scene [*], shaped to scale a tensor [* ...]."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def path_gradient(gram: Tensor, matched: Tensor, mean: Tensor, covariance: Tensor, noise_var: Tensor) -> Tensor:
    """Derivative of the surrogate with respect to psi of every path.

    Args:
        gram: [* bs col 4 col 4] of the extended operator.
        matched: [* bs col 4] its `rmatvec(y)`.
        mean: [* bs col] posterior mean of the gains.
        covariance: [* bs col col] their posterior covariance.
        noise_var: [* bs].

    Returns:
        [* bs col 3] per metre, radian, radian.
    """
    moment = mean[..., :, None] * mean[..., None, :].conj() + covariance
    expected = (gram[..., :, 1:, :, 0] * moment.mT[..., :, None, :]).sum(-1)
    slope = mean.conj()[..., None] * matched[..., 1:] - expected
    return slope.real * (2.0 / noise_var)[..., None, None]


def path_curvature(
    gram: Tensor, mean: Tensor, covariance: Tensor, noise_var: Tensor, missing: Tensor | float
) -> Tensor:
    """`complete + missing * (marginal - complete)`, the curvature in psi of all paths of a station.

    Args:
        gram: [* bs col 4 col 4] of the extended operator.
        mean: [* bs col].
        covariance: [* bs col col].
        noise_var: [* bs].
        missing: [] or [*] weight of the missing information in [0, 1]; 0 is EM, 1 eliminates the gains.

    Returns:
        [* bs col 3 col 3] real and symmetric.
    """
    cross, inner = gram[..., :, 1:, :, 0], gram[..., :, 1:, :, 1:]
    means = mean.conj()[..., :, None] * mean[..., None, :]
    flat = cross.flatten(-3, -2)
    absorbed = (flat @ covariance @ flat.mH).reshape(inner.shape) / noise_var[..., None, None, None, None]
    spread = covariance.mT[..., :, None, :, None] * inner
    means = means[..., :, None, :, None]
    missing = per_scene(missing, inner) if isinstance(missing, Tensor) else missing
    curvature = means * (inner - missing * absorbed) + (1.0 - missing) * spread
    return curvature.real * (2.0 / noise_var)[..., None, None, None, None]


def location_jacobian(
    direction: Tensor, basis: Tensor, station_leg: Tensor, user_direction: Tensor, mask: Tensor
) -> Tensor:
    """Derivative of psi with respect to theta of the located columns.

    Args:
        direction: [* bs node xyz] unit vectors k from station to node.
        basis: [* bs node xyz 2] tangents at the direction.
        station_leg: [* bs node] distance r [m].
        user_direction: [* node xyz] unit vectors g from user to node.
        mask: [* node] bool.

    Returns:
        [* bs node 3 theta], zero for padding.
    """
    *batch, bs, node, _ = direction.shape
    leg = torch.where(mask[..., None, :] & (station_leg > 0), station_leg, torch.ones_like(station_leg))
    towards = user_direction[..., None, :, :].expand_as(direction)
    own = torch.cat([(direction + towards)[..., None, :], basis.mT / leg[..., None, None]], -2)  # [* bs node 3 xyz]
    eye = torch.eye(node, dtype=own.dtype, device=own.device)
    nodes = (eye[:, None, :, None] * own[..., None, :]).flatten(-2)
    on_range = own.new_tensor([1.0, 0.0, 0.0])[:, None]
    user = on_range * -towards[..., None, :]
    clocks = torch.eye(bs, dtype=own.dtype, device=own.device)[:, None, None, :] * on_range
    jacobian = torch.cat([user, clocks.expand(*batch, bs, node, 3, bs), nodes], -1)
    return jacobian * mask[..., None, :, None, None]


def location_system(gradient: Tensor, curvature: Tensor, jacobian: Tensor) -> System:
    """Chain rule from the paths to the location domain.

    Args:
        gradient: [* bs col 3] from `path_gradient`.
        curvature: [* bs col 3 col 3] from `path_curvature`.
        jacobian: [* bs node 3 theta] from `location_jacobian`; the first `node` columns are the located ones.
    """
    node, columns = jacobian.shape[-3], gradient.shape[-2]
    chain = jacobian.flatten(-3, -2)  # [* bs node*3 theta]
    batch = gradient.shape[:-2]
    flat = curvature.reshape(*batch, 3 * columns, 3 * columns)
    located, free = slice(0, 3 * node), slice(3 * node, 3 * columns)
    slope = gradient.reshape(*batch, 3 * columns, 1)
    common = chain.mT @ flat[..., located, located] @ chain
    return System(
        gradient=(chain.mT @ slope[..., located, :])[..., 0].sum(-2),
        curvature=common.sum(-3),
        cross=chain.mT @ flat[..., located, free],
        free_gradient=slope[..., free, 0],
        free_curvature=flat[..., free, free],
    )
