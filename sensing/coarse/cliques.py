"""Association by angles alone: cliques of rays that pass close to each other (paper 1, Algorithm 1).

Every detected path is a node; rays of different stations are joined by an edge if their distance is at most a
threshold. A scatterer is a clique, which has at most one ray per station because rays of one station are never joined.
Cliques are taken largest first, among equals the one with the smallest triangulation residual, and their rays removed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.pairs import inside, region_box
from sensing.coarse.triangulation import Triangulation, closest_approach, triangulate
from sensing.containers import Deployment, PathEstimates

EDGES = 512
"""Most pairs of rays of a scene: bounds the number of cliques where the threshold says nothing."""


class RayClusters(NamedTuple):
    """Rays that meet, in the order in which they were taken; padded to the most clusters of the batch."""

    path: Tensor  # [* cluster bs] int64, index of the member path, -1 where the station has none
    position: Tensor  # [* cluster xyz] triangulated [m]
    residual: Tensor  # [* cluster] mean square distance from the rays [m^2]
    mask: Tensor  # [* cluster] bool


class _Cliques(NamedTuple):
    """Cliques of all scenes, one after the other."""

    scene: Tensor  # [n]
    path: Tensor  # [n bs]


def ray_graph(paths: PathEstimates, deployment: Deployment, threshold_m: float) -> Tensor:
    """Which rays of different stations pass within a threshold of each other, [b bs path bs path] bool.

    They must do so ahead of both stations, further away than the threshold: all rays of two stations at one point are
    close at their starts. Of a scene with more than `EDGES` pairs the closest are kept.

    Args:
        paths: detected paths [b bs path].
        deployment: stations.
        threshold_m: largest distance [m].
    """
    origin = deployment.bs_position[:, None].expand(*paths.mask.shape[1:], 3)
    first = (origin[:, :, None, None], paths.direction[:, :, :, None, None])
    second = (origin[None, None], paths.direction[:, None, None])
    near = closest_approach(*first, *second)
    other = ~torch.eye(len(deployment.bs_position), dtype=torch.bool, device=near.distance.device)
    both = paths.mask[:, :, :, None, None] & paths.mask[:, None, None] & other[:, None, :, None]
    edges = both & (near.distance <= threshold_m) & (near.length1 > threshold_m) & (near.length2 > threshold_m)
    if edges[0].numel() > 2 * EDGES:  # each pair counts twice
        # symmetric to the last bit, or an edge could be kept in one direction alone
        distance = torch.maximum(near.distance, near.distance.permute(0, 3, 4, 1, 2)).where(edges, torch.inf)
        last = distance.flatten(1).kthvalue(2 * EDGES, dim=1).values
        edges = edges & (distance <= last[:, None, None, None, None])
    return edges & edges.permute(0, 3, 4, 1, 2)


def all_cliques(graph: Tensor, min_views: int = 2) -> _Cliques:
    """Every clique of at least `min_views` rays, maximal or not, of all scenes of a batch.

    Grown station by station: a clique of the first q stations has no ray of the next one, or one that is joined to all
    its members.
    """
    scenes, stations, count = graph.shape[:3]
    scene = torch.arange(scenes, device=graph.device)
    path = torch.full((scenes, stations), -1, dtype=torch.int64, device=graph.device)
    for q in range(stations):
        fits = torch.ones(len(scene), count, dtype=torch.bool, device=graph.device)
        for p in range(q):
            joined = graph[scene, p, path[:, p].clamp_min(0), q]
            fits &= joined | (path[:, p, None] < 0)
        # a ray that is joined to none is in no clique of two
        fits &= graph[scene, q].flatten(2).any(-1)
        parent, new = fits.nonzero(as_tuple=True)
        grown = path[parent]
        grown[:, q] = new
        scene, path = torch.cat([scene, scene[parent]]), torch.cat([path, grown])
    keep = (path >= 0).sum(-1) >= min_views
    return _Cliques(scene[keep], path[keep])


def cluster_rays(
    paths: PathEstimates,
    deployment: Deployment,
    threshold_m: float,
    min_views: int = 2,
    range_weighted: bool = True,
) -> RayClusters:
    """Associate the paths of all stations (Algorithm 1).

    Cliques that cannot be a scatterer are false alarms and take no part: the point behind one of its stations, or
    outside the region grown by a tenth.

    Args:
        paths: detected paths [b bs path]; one batch axis.
        deployment: stations and region.
        threshold_m: largest distance of two rays that are joined [m].
        min_views: stations that a cluster needs at least, or all if there are fewer.
        range_weighted: triangulate with a second pass weighted by 1 / range^2.

    Returns:
        Clusters with disjoint members, at least one (then masked) slot.
    """
    scenes, stations = paths.mask.shape[:2]
    cliques = all_cliques(ray_graph(paths, deployment, threshold_m), max(min(min_views, stations), 2))
    point = _points(cliques, paths, deployment, range_weighted)
    box = region_box(deployment)
    ahead = (point.ray_length > 0) | (cliques.path < 0)
    possible = ahead.all(-1) & inside(point.position, box, 0.1)
    scene, path = cliques.scene[possible], cliques.path[possible]
    position, residual = point.position[possible], point.residual[possible]

    order = residual.argsort(stable=True)
    order = order[(path >= 0).sum(-1)[order].argsort(descending=True, stable=True)]
    scene, path, position, residual = scene[order], path[order], position[order], residual[order]
    chosen: list[Tensor] = []
    alive = torch.ones_like(scene, dtype=torch.bool)
    while bool(alive.any()):
        # the first living clique of every scene
        index = torch.arange(len(scene), device=scene.device)[alive]
        first = torch.full((scenes,), len(scene), device=scene.device).scatter_reduce(0, scene[alive], index, "amin")
        pick = first[first < len(scene)]
        chosen.append(pick)
        taken = torch.full((scenes, stations), -2, device=scene.device)
        taken[scene[pick]] = torch.where(path[pick] >= 0, path[pick], -2)
        alive &= (path != taken[scene]).all(-1)

    width = max(len(chosen), 1)
    members = torch.full((scenes, width, stations), -1, dtype=torch.int64, device=scene.device)
    places = deployment.bs_position.new_zeros(scenes, width, 3)
    misfit = deployment.bs_position.new_zeros(scenes, width)
    for slot, pick in enumerate(chosen):
        members[scene[pick], slot] = path[pick]
        places[scene[pick], slot] = position[pick]
        misfit[scene[pick], slot] = residual[pick]
    return RayClusters(members, places, misfit, (members >= 0).any(-1))


def _points(cliques: _Cliques, paths: PathEstimates, deployment: Deployment, range_weighted: bool) -> Triangulation:
    station = torch.arange(cliques.path.shape[-1], device=cliques.path.device)
    direction = paths.direction[cliques.scene[:, None], station, cliques.path.clamp_min(0)]
    return triangulate(deployment.bs_position, direction, cliques.path >= 0, range_weighted)
