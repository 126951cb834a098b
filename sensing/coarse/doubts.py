"""Reasons to doubt a location that its residuals do not show."""

import torch
from torch import Tensor

from sensing.coarse.least_squares import Solution, solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.pairs import region_box
from sensing.coarse.rays import take
from sensing.coarse.user_search import user_box
from sensing.containers import Deployment, Flag, PathEstimates, map_tensors
from sensing.units import SPEED_OF_LIGHT

REACH = (-3.0, -1.0, 1.0, 3.0)  # standard deviations from the solution at which a valley is entered
STAYS = 0.3  # share of the reach that is not undone in a valley; where the minimum is one, a tenth at most was seen
NARROW = 0.2  # deviations below this share of c / bandwidth cannot bend: legs are hundreds of them long
AS_GOOD = 12.0  # squared residual by which the end of a valley may be worse
DIRECTIONS = 8.0  # with fewer resolved directions paths merge unnoticed: 3 x 3 antennas resolve 6.3, 4 x 4 resolve 11.8
_LINE = 1e-6  # an extent of the array that is so much shorter than its longest is none


def deployment_flags(deployment: Deployment) -> int:
    """Bits of `containers.Flag` that no observation of these stations can be free of.

    Path lengths are known modulo the range ambiguity: differences between the legs of different scatterers, which the
    user rests on, spread over about a quarter of the region's diagonal. Fewer than four pilots cannot tell two paths
    of one direction apart. A line of antennas knows directions but for a rotation about it, a point knows none. With a
    spread of sigma_1 and sigma_2 along its longest axes an array resolves `12 pi sigma_1 sigma_2 / wavelength^2`
    directions; where these are few, two paths merge into one that fits, and neither fit nor covariance shows it.
    """
    box, flags = region_box(deployment), 0
    if len(deployment.pilot_freq) < 4 or bool(deployment.range_ambiguity < 0.25 * (box[1] - box[0]).norm()):
        flags |= Flag.RANGE_AMBIGUOUS
    antennas = deployment.antenna_local
    extent = torch.linalg.svdvals(antennas - antennas.mean(0))
    if int((extent > _LINE * extent.amax()).sum()) < 2:
        flags |= Flag.DIRECTION_AMBIGUOUS
    elif bool(12.0 * torch.pi * extent[0] * extent[1] < DIRECTIONS * len(antennas) * deployment.wavelength.square()):
        flags |= Flag.COARSE_ARRAY
    return flags


def outside_region(solution: Solution, deployment: Deployment) -> Tensor:
    """Whether the user lies outside the region or height range given beforehand, by three standard deviations [b]."""
    if deployment.region is None and deployment.ue_height_range is None:
        return torch.zeros_like(solution.cost, dtype=torch.bool)
    box = user_box(deployment)
    deviation = inverse_information(solution.information).diagonal(dim1=-2, dim2=-1)[..., :3].clamp_min(0.0).sqrt()
    beyond = torch.maximum(box[0] - solution.ue_position, solution.ue_position - box[1])
    if deployment.region is None:  # the box is a guess but for the height
        beyond[..., :2] = -torch.inf
    return (beyond > 3.0 * deviation).any(-1)


def valley_end(
    path: Tensor,
    solution: Solution,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    direct: Tensor | None = None,
) -> Tensor:
    """Way [b xyz] from the user to another place that fits as well along the weakest direction; zero where none does.

    Where the scatterers leave a direction open (all on one line: the user turns about it), errors of theirs feign
    information, and the covariance at the solution says too little. Least squares from both ends of that direction
    come back where the minimum is one, and stay away where it is a valley.

    Args:
        path: [b node bs] member paths, -1 for none.
        solution: the location that rests on them.
        paths: detected paths.
        weights: [b bs path 2] fusion weights or None.
        deployment: stations and priors.
        direct: [b bs] lines of sight, -1 for none; None: none at all.
    """
    covariance = inverse_information(solution.information)
    variance, axes = torch.linalg.eigh(covariance[:, :3, :3])
    way = torch.zeros_like(solution.ue_position)
    wide = NARROW * SPEED_OF_LIGHT / deployment.bandwidth
    rows = (variance[:, -1] > wide.square()).nonzero().squeeze(-1)
    if len(rows) == 0:
        return way
    deviation, start = variance[rows, -1].sqrt(), take(solution, rows)
    reach = torch.tensor(REACH, dtype=way.dtype, device=way.device)
    # user and offsets along the weakest direction of the user, [row start 3+bs]
    direction = (covariance[rows][..., :3] @ axes[rows][..., -1:]).squeeze(-1) / deviation[:, None]
    state = torch.cat([start.ue_position, start.offset_m], -1)[:, None] + reach[:, None] * direction[:, None]

    def repeated(field: Tensor) -> Tensor:
        return field[:, None].expand(-1, len(reach), *field.shape[1:])

    own_weights, line = (None if field is None else field[rows] for field in (weights, direct))
    data = cluster_measurements(path[rows], take(paths, rows), own_weights, line)
    data = map_tensors(data, repeated)
    end = solve_location(data, state[..., :3], state[..., 3:], repeated(start.position), deployment)
    moves = end.ue_position - start.ue_position[:, None]
    distance = moves.norm(dim=-1)
    stays = (distance > STAYS * reach.abs() * deviation[:, None]) & (end.cost < start.cost[:, None] + AS_GOOD)
    best, furthest = (distance * stays).max(-1)
    move = moves[torch.arange(len(rows), device=rows.device), furthest]
    return way.index_copy(0, rows, torch.where(best[:, None] > 0, move, torch.zeros_like(move)))
