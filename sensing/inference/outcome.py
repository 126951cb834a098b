"""From the final evaluation to an Estimate: channel, positions, clock offsets and their covariances."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Estimate, Geometry
from sensing.geometry import bounce_on_ray, direction_and_range
from sensing.inference import m_step
from sensing.inference.state import Evaluation, Problem, column_operator, final_system
from sensing.units import SPEED_OF_LIGHT

LEAST_SLOPE = 1e-3
"""Least 1 + k.g of a free path's scatterer: on the segment station - user its range says nothing about its place."""


class Covariances(NamedTuple):
    """Posterior covariances, priors included; huge but finite where nothing is observed."""

    common: Tensor  # [* 3+bs 3+bs] of (u, c * offsets) [m^2]
    node: Tensor  # [* node 3 3] [m^2]
    free: Tensor  # [* bs free 3 3] of the scatterers of the free paths [m^2]


def covariances(evaluation: Evaluation, problem: Problem) -> Covariances:
    """Inverse of the marginal information (gains eliminated)."""
    geometry, system = evaluation.geometry, final_system(evaluation, problem)
    bs, nodes = geometry.offset_m.shape[-1], geometry.node_mask.shape[-1]
    factors = m_step.factorise(system, problem.scales, torch.zeros_like(evaluation.objective), m_step.VAGUE)
    eye = torch.eye(system.gradient.shape[-1], dtype=system.gradient.dtype, device=system.gradient.device)
    white = (
        torch.linalg.solve_triangular(factors.chol, eye.expand(factors.chol.shape), upper=False)
        * factors.scale[..., None, :]
    )
    full = white.mT @ white
    at = 3 + bs
    blocks = full[..., at:, at:].unflatten(-1, (nodes, 3)).unflatten(-3, (nodes, 3))
    node = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3) if nodes else blocks.reshape(*full.shape[:-2], 0, 3, 3)
    return Covariances(full[..., :at, :at], node, _free_covariance(geometry, problem, factors, full))


def _free_covariance(geometry: Geometry, problem: Problem, factors: m_step.Factors, full: Tensor) -> Tensor:
    """Covariance of the bounce point of each free path: its psi is correlated with u and the offset of its station.

    With `range = |p - b| + |p - u| + offset`: `d range = (k + g).dp - g.du + d offset` and `dt_i = e_i.dp / r`, so
    `dp = k ((d range - d offset + g.du) - r g.(E dt)) / (1 + k.g) + r E dt`.
    """
    position, _ = free_positions(geometry, problem)
    bs, free = geometry.free_mask.shape[-2:]
    k, radius = direction_and_range(position, problem.deployment.bs_position[:, None, :])
    g, _ = direction_and_range(position, geometry.ue_position[..., None, None, :])
    along = (geometry.free_direction / (1.0 + (k * g).sum(-1)).clamp(min=LEAST_SLOPE)[..., None])[
        ..., None
    ]  # [* bs free xyz 1]
    tangents = radius[..., None, None] * m_step.free_tangents(geometry)
    lever = torch.cat([along, tangents - along * (g[..., None, :] @ tangents)], -1)  # [* bs free xyz psi]
    # psi = -slope theta + independent part, in the units of the unscaled problem
    eye = torch.eye(3 * free, dtype=full.dtype, device=full.device).expand(factors.free_chol.shape)
    white = torch.linalg.solve_triangular(factors.free_chol, eye, upper=False) * factors.free_scale[..., None, :]
    slope = white.mT @ (factors.half / factors.scale[..., None, None, :])
    motion = -slope.unflatten(-2, (free, 3))  # [* bs free psi theta]
    direct = torch.zeros_like(motion)
    direct[..., 0, :3] = g
    direct[..., 0, 3 : 3 + bs] = -torch.eye(bs, dtype=full.dtype, device=full.device)[:, None, :]
    motion = lever @ (motion + direct)
    own = lever @ (white.unflatten(-1, (free, 3)).movedim(-2, -3)).mT
    return motion @ full[..., None, None, :, :] @ motion.mT + own @ own.mT


def free_positions(geometry: Geometry, problem: Problem) -> tuple[Tensor, Tensor]:
    """Where the free paths bounce, [* bs free xyz] [m], given user and offsets, and whether one bounce does."""
    length = geometry.free_range_m - geometry.offset_m[..., None]
    bs, ue = problem.deployment.bs_position[:, None, :], geometry.ue_position[..., None, None, :]
    ambiguity = problem.deployment.range_ambiguity
    position, valid = bounce_on_ray(geometry.free_direction, length, bs, ue, ambiguity)
    return position, valid & geometry.free_mask


def to_estimate(evaluation: Evaluation, problem: Problem) -> Estimate:
    """All outputs of the refinement.

    Nodes are the located ones, then the free paths of station 0, 1, ..., so `node = K + bs * F`; a free path has
    support and gain at its own station only. A node is believed to exist if it is more likely than not (and, for a free
    path, if a single bounce explains it).
    """
    geometry, posterior = evaluation.geometry, evaluation.expectation
    bs, nodes = geometry.member.shape[-2:]
    spread = covariances(evaluation, problem)
    position, valid = free_positions(geometry, problem)

    def own_station(values: Tensor) -> Tensor:
        """[* bs free] to [* bs bs*free], zero for the paths of others."""
        eye = torch.eye(bs, dtype=values.dtype, device=values.device)
        return (eye[:, :, None] * values[..., :, None, :]).flatten(-2)

    mask = torch.cat([geometry.node_mask[..., None, :].expand(*geometry.member.shape), geometry.free_mask], -1)
    probability = posterior.probability * mask
    gain = posterior.mean * mask
    exists = torch.cat(
        [
            geometry.node_mask & (posterior.node_log_odds > 0),
            (valid & (posterior.log_odds[..., nodes:] > 0)).flatten(-2),
        ],
        -1,
    )
    operator = column_operator(geometry, problem.deployment)
    return Estimate(
        channel=operator.matvec(gain),
        ue_position=geometry.ue_position,
        clock_offset=geometry.offset_m / SPEED_OF_LIGHT,
        covariance=spread.common,
        scatterer_position=torch.cat([geometry.node_position, position.flatten(-3, -2)], -2),
        scatterer_covariance=torch.cat([spread.node, spread.free.flatten(-4, -3)], -3),
        scatterer_mask=exists,
        support=torch.cat([probability[..., :nodes], own_station(probability[..., nodes:])], -1),
        gain=torch.cat([gain[..., :nodes], own_station(gain[..., nodes:])], -1),
    )
