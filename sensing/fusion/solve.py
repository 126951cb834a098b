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


class Problem(NamedTuple):
    """A weighted pool as a least-squares problem."""

    bs_position: Tensor  # [bs xyz] or [* bs xyz] [m]
    range_m: Tensor  # [* bs] bias taken off [m]
    direction: Tensor  # [* bs xyz]
    strength: Tensor  # [* 2 bs] weights times precisions, of ranges and directions
    unknown: list[int]  # coordinates to solve for


class Normal(NamedTuple):
    """Normal equations at a position, and what they are made of."""

    information: Tensor  # [* n n] weighted
    vector: Tensor  # [* n]
    cost: Tensor  # [*]
    distance: Tensor  # [* bs]
    unit: Tensor  # [* bs xyz] from the station to the position


def pose(
    measured: StationMeasurements,
    weight: Tensor,
    bias_m: Tensor | None,
    unknown: list[int],
    direction: Tensor | None = None,
) -> Problem:
    """The problem of a pool.

    Args:
        measured: [* bs].
        weight: [* 2 bs] of ranges and directions.
        bias_m: [* bs] to be taken off the ranges [m]; None: nothing.
        unknown: coordinates to solve for.
        direction: [* bs xyz] `measured.direction`, where it is known already.
    """
    range_m = measured.range_m if bias_m is None else measured.range_m - bias_m
    direction = measured.direction if direction is None else direction
    return Problem(measured.bs_position, range_m, direction, weight * measured.precision, unknown)


def normal_equations(position: Tensor, problem: Problem) -> Normal:
    """Gauss-Newton equations at a position [* xyz].

    With u = (p - b) / r, on the unknown coordinates: `d mu / d p = (I - u u^T) / r`, a projection, so that its square
    is `(I - u u^T) / r^2`.
    """
    unknown = problem.unknown
    offset = position[..., None, :] - problem.bs_position
    distance = torch.linalg.vector_norm(offset, dim=-1)
    inverse = torch.where(distance > 0, distance, 1.0).reciprocal()
    unit = offset * inverse[..., None]
    ranges, directions = problem.strength.unbind(-2)
    excess = problem.range_m - distance
    miss = problem.direction - unit
    along = unit if len(unknown) == 3 else unit[..., unknown]
    pull = directions * inverse
    across = pull * inverse
    information = ((ranges - across)[..., None] * along).mT @ along
    information = information + across.sum(-1)[..., None, None] * torch.eye(len(unknown), dtype=unit.dtype)
    radial = ranges * excess - pull * (unit * miss).sum(-1)
    aside = miss if len(unknown) == 3 else miss[..., unknown]
    vector = (radial[..., None] * along + pull[..., None] * aside).sum(-2)
    cost = 0.5 * (ranges * excess.square() + directions * miss.square().sum(-1)).sum(-1)
    return Normal(information, vector, cost, distance, unit)


def ridge(information: Tensor) -> Tensor:
    """What a step adds to the information, [* n n].

    Where there is no information at all, as in x and y below a lone range's station, the gradient is zero too, and any
    ridge makes the step zero.
    """
    trace = information.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    size = information.shape[-1]
    return torch.where(trace > 0, DAMPING * trace, 1.0) * torch.eye(size, dtype=information.dtype)


def solve_small(matrix: Tensor, right: Tensor) -> Tensor:
    """Solution [* n k] of positive definite systems [* n n]; two unknowns in closed form, which is much faster."""
    if matrix.shape[-1] != 2:
        return torch.linalg.solve(matrix, right)
    (a, b), (c, d) = (row.unbind(-1) for row in matrix.unbind(-2))
    first, second = right.unbind(-2)
    scale = (a * d - b * c).reciprocal()[..., None]
    upper = (d[..., None] * first - b[..., None] * second) * scale
    return torch.stack([upper, (a[..., None] * second - c[..., None] * first) * scale], -2)


def solve_position(
    start: Tensor,
    measured: StationMeasurements,
    weight: Tensor,
    bias_m: Tensor | None = None,
    unknown: list[int] | None = None,
    steps: int = 8,
    direction: Tensor | None = None,
) -> Solution:
    """Position of a pool, from a start.

    Args:
        start: [* xyz] [m]; known coordinates have their values.
        measured: [* bs].
        weight: [* 2 bs].
        bias_m: [* bs] or None.
        unknown: coordinates to solve for; x and y by default.
        steps: Gauss-Newton steps, each no longer than the distance to the nearest station.
        direction: [* bs xyz] `measured.direction`, where it is known already.

    Returns:
        The solution, differentiable in weights and bias.
    """
    unknown = [0, 1] if unknown is None else unknown
    position = start
    problem = pose(measured, weight, bias_m, unknown, direction)
    for _ in range(steps):
        normal = normal_equations(position, problem)
        information = normal.information
        step = solve_small(information + ridge(information), normal.vector[..., None])[..., 0]
        longest = normal.distance.amin(-1, keepdim=True)
        length = torch.linalg.vector_norm(step, dim=-1, keepdim=True)
        step = step * torch.clamp(longest / torch.where(length > 0, length, 1.0), max=1.0)
        full = torch.zeros_like(position)
        full[..., unknown] = step
        position = position + full
    return Solution(position, information, normal.cost)
