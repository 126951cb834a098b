"""Further candidates for scenes in which the first ones may have missed the truth."""

import torch
from torch import Tensor

from sensing.coarse.candidates import Candidates
from sensing.coarse.cluster_fit import KnownUser
from sensing.coarse.clusters import Clusters, form_clusters
from sensing.coarse.evidence import association_evidence
from sensing.coarse.least_squares import Solution, solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.pairs import region_box, wrap
from sensing.coarse.rays import Rays, take
from sensing.coarse.user_search import search_cells
from sensing.containers import Deployment, PathEstimates

CELLS = 48  # users tried all over the region
CELL_M = 2.0  # standard deviation [m] with which they are known
STRIDES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of the search for twins, in diagonals of the region


def grid_candidates(clusters: Clusters, offset: Tensor, rays: Rays, deployment: Deployment) -> Candidates:
    """Users all over the region, each of whom gathers clusters of its own.

    Clusters that are formed without the user may hold so many false ones that no mode is near the truth. Knowing the
    user to a grid cell is enough to tell most of them.
    """
    modes = search_cells(clusters, offset, deployment, CELLS)
    count = modes.ue_position.shape[1]
    scene = torch.arange(len(offset), device=offset.device).repeat_interleave(count)
    own = take(rays, scene)
    beta = modes.common_offset.flatten()
    ue = modes.ue_position.flatten(0, 1).to(beta)
    covariance = CELL_M**2 * torch.eye(4, dtype=ue.dtype, device=ue.device).expand(len(ue), 4, 4)
    user = KnownUser(ue, beta, covariance)
    gathered = form_clusters(own.pairs, offset[scene], own.paths, deployment, user)
    data = cluster_measurements(gathered.path, own.paths, own.weights)
    start = wrap(offset[scene] + beta[:, None], deployment.range_ambiguity)
    solution = solve_location(data, ue, start, gathered.position, deployment)
    evidence = association_evidence(gathered.path, solution, own.paths, deployment)
    return Candidates(scene, gathered.path, torch.full_like(gathered.path[:, 0], -1), solution, evidence)


def twin_candidates(
    path: Tensor, solution: Solution, paths: PathEstimates, weights: Tensor | None, deployment: Deployment
) -> Candidates:
    """The solution itself and what the same association gives from starts along its least certain direction.

    `e = |s - u| + beta` has two solutions for four scatterers, and more scatterers in a poor geometry leave both. They
    lie along the direction in which user and offsets are hard to tell apart.
    """
    covariance = inverse_information(solution.information)
    value, vector = torch.linalg.eigh(covariance[:, :3, :3])
    along = covariance[:, :, :3] @ vector[..., -1:] / value[..., -1:, None].clamp_min(1e-300)
    box = region_box(deployment)
    stride = (box[1] - box[0]).norm() * torch.tensor([0.0, *STRIDES], dtype=value.dtype, device=value.device)
    stride = torch.cat([stride, -stride[1:]])
    count = len(stride)
    scene = torch.arange(len(path), device=path.device).repeat_interleave(count)
    shift = (stride[:, None] * along.mT).flatten(0, 1)  # [b*count user, offsets]
    own, own_weights, start = take(paths, scene), None if weights is None else weights[scene], take(solution, scene)
    data = cluster_measurements(path[scene], own, own_weights)
    twins = solve_location(
        data, start.ue_position + shift[:, :3], start.offset_m + shift[:, 3:], start.position, deployment
    )
    evidence = association_evidence(path[scene], twins, own, deployment)
    return Candidates(scene, path[scene], torch.full_like(path[scene, 0], -1), twins, evidence)
