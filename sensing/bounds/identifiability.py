"""When user, clock offsets and scatterers are determined: counts of equations beside the rank of the joint Jacobian.

Q stations see L scatterers each, of which all see the same L_s; angles and delay of every path are taken as known.
Paper 1 asks for a share of shared scatterers that tends to 1/2 for three and 1/3 for four stations. The count that
yields these limits (equation 1.13, inferred) sets the constraints between stations alone, 3 (Q - 1) L_s, against the
unknowns of one station, 3 L + Q + 3. All equations against all unknowns, 3 Q L >= 3 (Q L - (Q - 1) L_s) + 3 + Q, asks
for less: L_s >= (Q + 3) / (3 (Q - 1)).

Neither is the condition. Angles fix the shared scatterers; what is left of the delays is |s_m - u| + c offset_q, and
all stations see the same |s_m - u|, so that further stations only fix differences of offsets. The user and the common
offset, four unknowns, need four shared scatterers, for any number of stations: the nullity is max(0, 4 - L_s), and
max(0, 3 - L_s) with the user's height known. With none at all the clocks are not even tied to each other: Q + 3.
"""

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from sensing.containers import Deployment, Scene
from sensing.geometry import bounce_ranges, tangent_basis
from sensing.units import SPEED_OF_LIGHT

ZERO = 1e-10
"""Singular values below this share of the largest are zero; rounding leaves about 1e-15 of it."""


def paper_ratio(stations: int, per_station: int) -> float:
    """Least share of shared scatterers by the paper's count, `(1 + (Q + 3) / (3 L)) / (Q - 1)` (equation 1.13)."""
    return (1.0 + (stations + 3) / (3 * per_station)) / (stations - 1)


def equation_count(stations: int) -> int:
    """Least number of shared scatterers for which equations outnumber unknowns, `L_s >= (Q + 3) / (3 (Q - 1))`."""
    return -(-(stations + 3) // (3 * (stations - 1)))


def singular_values(scene: Scene, deployment: Deployment, known_height: bool = False) -> Tensor:
    """Singular values of the Jacobian of all path lengths and directions with respect to all unknowns.

    Rows are in metres: the length c * delay, and the direction on its tangent plane times the distance. Columns are
    (u, c * offsets, scatterers), each scaled to unit length. Rows of pairs that do not see each other are zero.

    Args:
        scene: batch of scenes whose scatterers are each seen by some station.
        deployment: the stations.
        known_height: without the column of the user's height.

    Returns:
        [scene unknown], falling.
    """
    theta = torch.cat(
        [scene.ue_position, SPEED_OF_LIGHT * scene.clock_offset, scene.scatterer_position.flatten(-2)], -1
    )
    stations, points = scene.visible.shape[-2:]

    def psi(theta: Tensor, tangent: Tensor, distance: Tensor, visible: Tensor) -> Tensor:
        user, offset_m, scatterer = theta.split([3, stations, 3 * points], -1)
        length, direction, _, _ = bounce_ranges(
            scatterer.unflatten(-1, (points, 3)), user, deployment.bs_position, offset_m
        )
        angles = torch.einsum("qlxi,qlx->qli", tangent, direction) * distance[..., None]
        return (torch.cat([length[..., None], angles], -1) * visible[..., None]).flatten()

    _, direction, distance, _ = bounce_ranges(
        scene.scatterer_position, scene.ue_position, deployment.bs_position, SPEED_OF_LIGHT * scene.clock_offset
    )
    jacobian = vmap(jacfwd(psi))(theta, tangent_basis(direction), distance, scene.visible.double())
    if known_height:
        jacobian = torch.cat([jacobian[..., :2], jacobian[..., 3:]], -1)
    length = torch.linalg.vector_norm(jacobian, dim=-2, keepdim=True)
    return torch.linalg.svdvals(jacobian / torch.where(length > 0, length, torch.ones_like(length)))


def nullity(singular: Tensor) -> Tensor:
    """Number of directions in which the unknowns can move without any path changing, [scene unknown] to [scene]."""
    return (singular < ZERO * singular[..., :1]).sum(-1)
