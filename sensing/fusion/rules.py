"""Fixed rules for the weights of a pool, beside the optimal ones of `sensing.fusion.chernoff`.

All return [* member] weights that sum to one, in the order ranges of all stations, then directions; members that do not
exist get none. Scaling all weights does not move the most likely position.
"""

import torch
from torch import Tensor

from sensing.errors import DomainError
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.solve import Problem, normal_equations, pose


def equal_weights(measured: StationMeasurements) -> Tensor:
    """The same for all: the maximum likelihood position, where variances are right and ranges unbiased (eq. 3.9)."""
    members = measured.members.double()
    return members / members.sum(-1, keepdim=True)


def fixed_range_weight(measured: StationMeasurements, factor: float) -> Tensor:
    """Ranges count `factor` times as much as directions, in all drops.

    Raises:
        DomainError: the factor is not positive.
    """
    if not 0 < factor < float("inf"):
        raise DomainError(f"the factor of a fixed range weight must be positive, got {factor}")
    stations = measured.range_m.shape[-1]
    weight = measured.members.double()
    weight = torch.cat([factor * weight[..., :stations], weight[..., stations:]], -1)
    return weight / weight.sum(-1, keepdim=True)


def inverse_variance(measured: StationMeasurements, position: Tensor, unknown: list[int]) -> Tensor:
    """Weights in proportion to the position information of each member at a position (trace of it).

    Args:
        measured: [* bs].
        position: [* xyz] where the information is taken [m].
        unknown: unknown coordinates.
    """
    trace = _informations(measured, position, unknown).diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace / trace.sum(-1, keepdim=True)


def covariance_intersection(
    measured: StationMeasurements, position: Tensor, unknown: list[int], steps: int = 60
) -> Tensor:
    """Weights that minimise the determinant of `(sum_i w_i J_i)^-1`, J_i the members' information at a position.

    The multiplicative update `w_i <- w_i tr(J(w)^-1 J_i) / n` raises the determinant in every step (Titterington).

    Args:
        measured: [* bs].
        position: [* xyz] [m].
        unknown: the n unknown coordinates.
        steps: updates.
    """
    each = _informations(measured, position, unknown)
    weight = equal_weights(measured)
    scale = each.diagonal(dim1=-2, dim2=-1).sum(-1).amax(-1)[..., None, None]
    ridge = 1e-12 * scale * torch.eye(len(unknown), dtype=each.dtype)
    for _ in range(steps):
        total = (weight[..., None, None] * each).sum(-3) + ridge
        gain = torch.linalg.solve(total[..., None, :, :], each).diagonal(dim1=-2, dim2=-1).sum(-1)
        weight = weight * gain / len(unknown)
        weight = weight / weight.sum(-1, keepdim=True)
    return weight


def best_station(measured: StationMeasurements, position: Tensor, unknown: list[int]) -> Tensor:
    """All weight on the members of the station that alone has the least trace of the position's covariance.

    Where no station alone determines the position (ranges alone), the one with the largest trace of the information.
    """
    stations = measured.range_m.shape[-1]
    each = _informations(measured, position, unknown).unflatten(-3, (2, stations)).sum(-4)  # [* bs n n]
    value = torch.linalg.eigvalsh(each)
    known = value > 1e3 * torch.finfo(value.dtype).eps * value.amax(-1, keepdim=True)  # the rest is rounding
    trace = torch.where(known, 1.0 / torch.where(known, value, 1.0), torch.inf).sum(-1)
    undetermined = torch.isinf(trace).all(-1, keepdim=True)
    best = torch.where(undetermined, -value.sum(-1), trace).argmin(-1)
    chosen = torch.nn.functional.one_hot(best, stations).bool()
    weight = (measured.members & torch.cat([chosen, chosen], -1)).double()
    return weight / weight.sum(-1, keepdim=True)


def _informations(measured: StationMeasurements, position: Tensor, unknown: list[int]) -> Tensor:
    """Information of every member about the unknown coordinates, [* member n n]."""
    precision = measured.precision
    each = torch.diag_embed(precision.flatten(-2)).unflatten(-1, precision.shape[-2:])  # [* member 2 bs]
    problem = pose(measured, torch.ones_like(precision), None, unknown)
    fields = (field[..., None, :, :] for field in (problem.bs_position, problem.direction))
    problem = Problem(next(fields), problem.range_m[..., None, :], next(fields), each, unknown)
    return normal_equations(position[..., None, :], problem).information
