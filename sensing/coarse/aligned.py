"""Plausible alignments of the stations' clocks, and the clusters that each of them forms."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.alignment import align_stations
from sensing.coarse.clusters import Clusters, form_clusters
from sensing.coarse.pairs import region_box, wrap
from sensing.coarse.rays import Rays, take
from sensing.containers import Deployment
from sensing.units import SPEED_OF_LIGHT


class Aligned(NamedTuple):
    """Alignments of all scenes along one axis, one scene after the other, the best of a scene first."""

    scene: Tensor  # [n] int64
    offset_m: Tensor  # [n bs] relative to station 0 [m]
    clusters: Clusters  # [n ...]


def align_and_cluster(
    rays: Rays, deployment: Deployment, most: int, vote_gap: float, repeat_m: float = 0.0, seeds: int = 8
) -> Aligned:
    """Align the stations and form clusters without a user.

    Args:
        rays: paths and pairs of the scenes.
        deployment: stations and priors.
        most: alignments of a scene.
        vote_gap: votes, in nats, by which an alignment may trail the best.
        repeat_m: alignments that differ by no more than this [m] are one.
        seeds: pairs from which alignments are grown.
    """
    low, high = region_box(deployment)
    found = align_stations(
        rays.pairs,
        len(deployment.bs_position),
        deployment.range_ambiguity,
        (high - low).norm(),
        SPEED_OF_LIGHT * deployment.clock_offset_std,
        most,
        seeds=seeds,
    )
    gap = wrap(found.offset_m[:, :, None] - found.offset_m[:, None], deployment.range_ambiguity).abs().amax(-1)
    repeat = torch.tril(gap <= repeat_m, diagonal=-1).any(-1)
    tried = ~repeat & (found.score > found.score[:, :1] - vote_gap)
    tried[:, 0] = True
    scene, which = tried.nonzero().unbind(-1)
    offset, own = found.offset_m[scene, which], take(rays, scene)
    return Aligned(scene, offset, form_clusters(own.pairs, offset, own.paths, deployment))
