"""Path-level weighted least squares of user, clock offsets and shared scatterers.

    min  sum_{k,q in k} r_kq^T W_kq r_kq + sum_q d_q^T W_q d_q + sum_q (c delta_q)^2 / (c sigma)^2 + height + walls,
    r_kq = [ ||s_k - b_q|| + ||s_k - u|| + c delta_q - range_q ; (s_k - b_q)/||s_k - b_q|| - direction_q ]
    d_q  = [ ||u - b_q|| + c delta_q - range_q ; (u - b_q)/||u - b_q|| - direction_q ]     (line of sight, where seen)

with W the full information of each detected path, so that it is the maximum a posteriori estimate given the detections.
Levenberg-Marquardt with the scatterers eliminated (3x3 blocks); everything is batched over scenes and starts. It
converges from anywhere in a hall, unlike the refinement on the signal itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.measurements import Measurements
from sensing.coarse.normal_equations import (
    LocationPrior,
    System,
    assemble,
    eliminated,
    inverse_information,
    location_prior,
    unit_scale,
)
from sensing.containers import Deployment


class Solution(NamedTuple):
    """Minimiser and its quality."""

    ue_position: Tensor  # [* xyz]
    offset_m: Tensor  # [* bs]
    position: Tensor  # [* cluster xyz]
    cost: Tensor  # [*] minimum of the objective
    information: Tensor  # [* 3+bs 3+bs] of (user, offsets), scatterers eliminated, priors included
    node_covariance: Tensor  # [* cluster 3 3]


def _step(system: System, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Gauss-Newton step of (user, offsets) [* n] and of the scatterers [* cluster 3]."""
    reduced, gradient, inverse, _ = eliminated(system, damping)
    scale = unit_scale(system.common)
    scaled = reduced * scale[..., :, None] * scale[..., None, :]
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    scaled = scaled + (damping[..., None, None] + 1e-12) * eye
    delta = -scale * torch.linalg.solve_ex(scaled, scale * gradient)[0]
    node = -(inverse @ (system.node_gradient[..., None] + system.cross.mT @ delta[..., None, :, None])).squeeze(-1)
    return delta, node


def solve_location(
    data: Measurements,
    ue: Tensor,
    offset: Tensor,
    position: Tensor,
    deployment: Deployment,
    steps: int = 20,
    cap_m: float = 20.0,
    tolerance: float = 1e-4,
    prior: LocationPrior | None = None,
) -> Solution:
    """Levenberg-Marquardt from given starts.

    Args:
        data: member paths [* cluster bs].
        ue: [* xyz] start [m].
        offset: [* bs] start [m].
        position: [* cluster xyz] start [m].
        deployment: stations and priors.
        steps: most iterations.
        cap_m: longest step of any coordinate [m].
        tolerance: a scene stops when its cost falls by less than this (squared residual units).
        prior: of user and offsets, [* 3+bs]; that of the deployment when None.

    Returns:
        The best point visited.
    """
    prior = location_prior(deployment) if prior is None else prior
    system = assemble(ue, offset, position, data, prior, deployment)
    damping = torch.full_like(system.cost, 1e-4)
    active = torch.ones_like(system.cost, dtype=torch.bool)
    for _ in range(steps):
        delta, node = _step(system, damping)
        delta, node = torch.nan_to_num(delta).clamp(-cap_m, cap_m), torch.nan_to_num(node).clamp(-cap_m, cap_m)
        trial = (ue + delta[..., :3], offset + delta[..., 3:], position + node)
        trial_system = assemble(*trial, data, prior, deployment)
        # a scene that has converged rests, so that no scene depends on the others of its batch
        better = active & (trial_system.cost < system.cost)
        gain = torch.where(better, system.cost - trial_system.cost, torch.zeros_like(system.cost))
        ue, offset, position = (
            torch.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)
            for new, old in zip(trial, (ue, offset, position), strict=True)
        )
        system = System(
            *(
                torch.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, old)
                for new, old in zip(trial_system, system, strict=True)
            )
        )
        damping = torch.where(better, damping / 5.0, damping * 8.0).clamp(1e-9, 1e9)
        active = active & ((gain > tolerance) | (~better & (damping < 1e2)))
        if not active.any():
            break
    return _finish(ue, offset, position, system)


def _finish(ue: Tensor, offset: Tensor, position: Tensor, system: System) -> Solution:
    """Information of (user, offsets) and covariance of the scatterers at a solution."""
    reduced, _, inverse, half = eliminated(system, 0.0)
    reduced = 0.5 * (reduced + reduced.mT)
    # the law of a user at a wall is cut off there, not narrow: the walls tell nothing about the errors
    reduced[..., :3, :3] -= torch.diag_embed(system.wall)
    covariance = inverse_information(reduced)
    node = inverse + half.mT @ covariance[..., None, :, :] @ half
    return Solution(ue, offset, position, system.cost, reduced, node)


def eliminated_system(
    solution: Solution, data: Measurements, deployment: Deployment, further: Tensor
) -> tuple[Tensor, Tensor]:
    """Cost and log determinant of the information over (user, offsets, present scatterers) at a solution, [*] each.

    Args:
        solution: where to evaluate.
        data: member paths.
        deployment: stations and priors.
        further: [3+bs] precision of user and offsets beyond the prior's.
    """
    system = assemble(
        solution.ue_position, solution.offset_m, solution.position, data, location_prior(deployment), deployment
    )
    reduced, _, inverse, _ = eliminated(system, 0.0)
    present = system.block.diagonal(dim1=-2, dim2=-1).sum(-1) > 0
    blocks = torch.where(present, -torch.linalg.slogdet(inverse).logabsdet, torch.zeros_like(system.cost)[..., None])
    sign, log_det = torch.linalg.slogdet(reduced + torch.diag(further))
    return system.cost, torch.where(sign > 0, log_det, torch.full_like(log_det, torch.inf)) + blocks.sum(-1)


def differentiable_step(
    data: Measurements, ue: Tensor, offset: Tensor, position: Tensor, deployment: Deployment
) -> tuple[Tensor, Tensor, Tensor]:
    """A converged solution, unchanged in value, with the derivative of an undamped Gauss-Newton step.

    At the minimiser that is `-H^-1 d gradient` with H the Gauss-Newton curvature: the implicit derivative of the arg
    min by the measurements and their weights. The value stays, so that training and evaluation see the same.
    """
    system = assemble(ue.detach(), offset.detach(), position.detach(), data, location_prior(deployment), deployment)
    delta, node = _step(system, torch.zeros_like(system.cost))
    common = torch.nan_to_num(delta - delta.detach())
    return ue + common[..., :3], offset + common[..., 3:], position + torch.nan_to_num(node - node.detach())
