"""Covariance of a fused position.

The most likely position of a pool solves `sum_i w_i s_i = 0`, s_i the members' scores, so that, with the claimed
deviations right and the members independent, its covariance to first order is, J_i their information there,

    A^-1 B A^-1,        A = sum_i w_i J_i,        B = sum_i w_i^2 J_i,

whatever factor the weights have; equal weights give `(sum_i J_i)^-1`. Weights that are precisions themselves, those of
covariance intersection (members dependent in any way) and learned ones, claim `A^-1`.
"""

import torch
from torch import Tensor

from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.modes import OPEN
from sensing.fusion.solve import normal_equations, pose


def pool_covariance(
    position: Tensor, measured: StationMeasurements, weight: Tensor, unknown: list[int], precisions: bool = False
) -> Tensor:
    """Covariance over the unknown coordinates.

    Args:
        position: [* xyz] of the pool [m].
        measured: [* bs].
        weight: [* member], ranges of all stations, then directions.
        unknown: the n unknown coordinates.
        precisions: the weights are factors of the claimed precisions.

    Returns:
        [* n n] [m^2]; infinite on the diagonal, 0 elsewhere, where a coordinate is open.
    """
    relative = weight if precisions else weight / weight.amax(-1, keepdim=True)
    weight = relative.unflatten(-1, (2, -1))
    information = normal_equations(position, pose(measured, weight, None, unknown)).information
    value, vector = torch.linalg.eigh(information)
    is_open = ~(value[..., 0] > OPEN * value[..., -1])
    inverse = (vector / torch.where(is_open[..., None], 1.0, value)[..., None, :]) @ vector.mT
    if not precisions:
        scores = normal_equations(position, pose(measured, weight.square(), None, unknown)).information
        inverse = inverse @ scores @ inverse
    none = torch.diag_embed(torch.full_like(value, torch.inf))
    return torch.where(is_open[..., None, None], none, inverse)
