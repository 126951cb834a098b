"""Scatterers that one station sees, in closed form once user and offsets are known (paper 1, end of section II)."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.pairs import inside, region_box
from sensing.containers import Deployment, PathEstimates
from sensing.geometry import bounce_on_ray


class PrivateScatterers(NamedTuple):
    """One point per path; masked where no single bounce inside the region explains the path."""

    position: Tensor  # [* bs path xyz] [m]
    mask: Tensor  # [* bs path] bool


def private_scatterers(
    paths: PathEstimates, alone: Tensor, ue: Tensor, offset_m: Tensor, deployment: Deployment, margin: float = 0.1
) -> PrivateScatterers:
    """Place every lonely path on its ray: `r + |b + r k - u| = range - c delta` (EQUATIONS 1.9).

    A path that is shorter than the way from the user to the station, or that would bounce outside the region, is a
    false alarm and left out.

    Args:
        paths: detected paths [b bs path].
        alone: [b bs path] bool, paths that belong to no shared scatterer.
        ue: [b xyz] [m].
        offset_m: [b bs] [m].
        deployment: stations and region.
        margin: part of the region's size by which it may be left.
    """
    bs, user = deployment.bs_position[:, None], ue[:, None, None]
    length = paths.range_m - offset_m[..., None]
    position, valid = bounce_on_ray(paths.direction, length, bs, user, deployment.range_ambiguity)
    mask = alone & paths.mask & valid & inside(position, region_box(deployment), margin)
    return PrivateScatterers(torch.where(mask[..., None], position, torch.zeros_like(position)), mask)
