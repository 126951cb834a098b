"""What an association rests on: the detected paths, how much they count, and which of them may have met."""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sensing.coarse.measurements import path_index
from sensing.coarse.pairs import RayPairs
from sensing.containers import PathEstimates, map_tensors

T = TypeVar("T")


class Rays(NamedTuple):
    """Detected paths of scenes, or of candidates, along one batch axis."""

    paths: PathEstimates
    weights: Tensor | None  # [* bs path 2] fusion weights; None: all one
    pairs: RayPairs


def take(container: T, rows: Tensor) -> T:
    """Rows of every tensor of a NamedTuple."""
    return map_tensors(container, lambda tensor: tensor[rows])


def without(rays: Rays, path: Tensor) -> Rays:
    """The rays without one path of each station [b bs], -1 for none, and without the pairs that it is part of."""
    count = rays.paths.mask.shape[-1]
    path, _ = path_index(path, count)
    index = torch.arange(count, device=path.device)
    mask = rays.paths.mask & (index != path[..., None])
    scene = torch.arange(len(mask), device=path.device)[:, None, None]
    both = mask[scene, rays.pairs.station, rays.pairs.path].all(-1)
    return rays._replace(paths=rays.paths._replace(mask=mask), pairs=rays.pairs._replace(mask=rays.pairs.mask & both))
