"""Position of a weighted pool by damped Gauss-Newton steps, a differentiable layer.

The most likely position of a log-linear pool minimises, with weights w and precisions 1 / std^2,

    sum_i w_i (d_i - bias_i - |p - b_i|)^2 / std_i^2 + sum_j w_j kappa_j |u_j - mu_j(p)|^2,

because `kappa (1 - mu.u) = kappa |u - mu|^2 / 2`: a nonlinear least-squares problem in two or three coordinates. All
drops step together; nothing in a step depends on which drops it is done with.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.fusion.measurements import StationMeasurements

DAMPING = 1e-6
"""Relative to the trace of the normal matrix: keeps a step finite where a coordinate is open, and changes no other."""


class Solution(NamedTuple):
    """Position and what surrounds it."""

    position: Tensor  # [* xyz] [m]
    information: Tensor  # [* n n] of the weighted problem, over the unknown coordinates [1/m^2]
    cost: Tensor  # [*] half the weighted squared residuals at the position before the last step


class Normal(NamedTuple):
    """Normal equations of every station, which add up."""

    matrix: Tensor  # [* bs n n] weighted
    vector: Tensor  # [* bs n]
    cost: Tensor  # [*]
    distance: Tensor  # [* bs]
    unit: Tensor  # [* bs xyz] from the station to the position


def normal_equations(
    position: Tensor, measured: StationMeasurements, weight: Tensor, bias_m: Tensor | None, unknown: list[int]
) -> Normal:
    """Gauss-Newton equations at a position.

    Args:
        position: [* xyz] [m].
        measured: [* bs].
        weight: [* 2 bs] of ranges and directions.
        bias_m: [* bs] to be taken off the ranges [m]; None: nothing.
        unknown: coordinates to solve for.
    """
    offset = position[..., None, :] - measured.bs_position
    distance = torch.linalg.vector_norm(offset, dim=-1)
    safe = torch.where(distance > 0, distance, torch.ones_like(distance))
    unit = offset / safe[..., None]
    strength = (weight * measured.precision).unbind(-2)
    excess = measured.range_m - distance if bias_m is None else measured.range_m - bias_m - distance
    miss = measured.direction - unit
    along = unit[..., unknown]
    across = (torch.eye(3, dtype=unit.dtype)[:, unknown] - unit[..., :, None] * along[..., None, :]) / safe[
        ..., None, None
    ]
    # across has rows d mu / d p; across^T across = (I - u u^T) / r^2 on the unknown coordinates
    matrix = strength[0][..., None, None] * along[..., :, None] * along[..., None, :]
    matrix = matrix + strength[1][..., None, None] * (across.mT @ across)
    vector = (strength[0] * excess)[..., None] * along
    vector = vector + strength[1][..., None] * (across.mT @ miss[..., None])[..., 0]
    cost = 0.5 * (strength[0] * excess.square() + strength[1] * miss.square().sum(-1)).sum(-1)
    return Normal(matrix, vector, cost, distance, unit)


def solve_position(
    start: Tensor,
    measured: StationMeasurements,
    weight: Tensor,
    bias_m: Tensor | None = None,
    unknown: list[int] | None = None,
    steps: int = 8,
) -> Solution:
    """Position of a pool, from a start.

    Args:
        start: [* xyz] [m]; known coordinates have their values.
        measured: [* bs].
        weight: [* 2 bs].
        bias_m: [* bs] or None.
        unknown: coordinates to solve for; x and y by default.
        steps: Gauss-Newton steps, each no longer than the distance to the nearest station.

    Returns:
        The solution, differentiable in weights and bias.
    """
    unknown = [0, 1] if unknown is None else unknown
    position = start
    for _ in range(steps):
        normal = normal_equations(position, measured, weight, bias_m, unknown)
        information = normal.matrix.sum(-3)
        trace = information.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        ridge = DAMPING * trace * torch.eye(len(unknown), dtype=information.dtype)
        step = torch.linalg.solve(information + ridge, normal.vector.sum(-2))
        longest = normal.distance.amin(-1, keepdim=True)
        length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
        step = step * torch.clamp(longest / torch.where(length > 0, length, 1.0), max=1.0)
        full = torch.zeros_like(position)
        full[..., unknown] = step
        position = position + full
    return Solution(position, information, normal.cost)
