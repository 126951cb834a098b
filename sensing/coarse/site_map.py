"""The walls of a site, learned from scenes whose user and clock offsets are known.

If a path bounced once, user, length and direction tell where, and the bisector of its legs is the normal of what it
bounced off. Scatterers give any normals, a facade gives the same plane again and again, from other users and other
stations: planes that many scenes agree on are walls. Walls are taken to stand upright, and those that are parallel or
at right angles to the first but for SNAP are taken to be so exactly: facades a step apart are not one that is askew.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Deployment, PathEstimates
from sensing.errors import ConfigError
from sensing.geometry import bounce_on_ray

NEAR_NORMAL, NEAR_M = 0.04, 0.2  # how far normals and distances of bounces off one plane may be apart
UPRIGHT = 0.1  # largest vertical part of a wall's normal
SNAP = 0.05  # radians
LEAST_SHARE = 0.15  # of the scenes that must agree on a plane


class Bounces(NamedTuple):
    """Where paths would have bounced once, all scenes along one axis."""

    point: Tensor  # [n xyz] [m]
    normal: Tensor  # [n xyz]
    scene: Tensor  # [n]


def possible_bounces(paths: PathEstimates, ue: Tensor, offset_m: Tensor, deployment: Deployment) -> Bounces:
    """Bounce points and normals of all paths [b bs path] that one bounce explains."""
    bs = deployment.bs_position[:, None].expand_as(paths.direction)
    user = ue[:, None, None].expand_as(paths.direction)
    length = paths.range_m - offset_m[..., None]
    point, valid = bounce_on_ray(paths.direction, length, bs, user, deployment.range_ambiguity)
    away = torch.nn.functional.normalize(user - point, dim=-1)
    normal = torch.nn.functional.normalize(away - paths.direction, dim=-1)
    upright = normal[..., 2].abs() < UPRIGHT
    keep = valid & paths.mask & upright & torch.isfinite(normal).all(-1) & torch.isfinite(ue).all(-1)[:, None, None]
    scene = torch.arange(len(ue), device=ue.device)[:, None, None].expand(keep.shape)
    flat = torch.nn.functional.normalize(normal * normal.new_tensor([1.0, 1.0, 0.0]), dim=-1)
    return Bounces(point[keep], flat[keep], scene[keep])


def learn_planes(found: Bounces, scenes: int, most: int) -> Tensor:
    """Planes that at least LEAST_SHARE of the scenes, and two, agree on, the most frequent first.

    Args:
        found: possible bounces of all scenes.
        scenes: number of scenes.
        most: planes wanted at most.

    Returns:
        [most 4] unit normal and distance [m]; zero where there are fewer.

    Raises:
        ConfigError: fewer than two scenes.
    """
    if scenes < 2:
        raise ConfigError(f"walls need at least two scenes with a known user, got {scenes}")
    planes, least = found.point.new_zeros(most, 4), max(2.0, LEAST_SHARE * scenes)
    left = torch.ones_like(found.scene, dtype=torch.bool)
    point, normal = found.point, found.normal
    for number in range(most):
        cosine = normal @ normal.mT
        along = point @ normal.mT  # [n m] of point n on normal m
        near = (along - along.diagonal()).abs() < NEAR_M
        near &= (cosine.abs() > 1.0 - 0.5 * NEAR_NORMAL**2) & left & left[:, None]
        seen = torch.zeros(scenes, len(point), dtype=torch.bool, device=point.device)
        seen.index_put_((found.scene[:, None].expand_as(near)[near], near.nonzero()[:, 1]), near.new_ones(()))
        count, best = seen.sum(0).max(0) if len(point) else (point.new_zeros(()), 0)
        if float(count) < least:
            break
        members = near[:, best]
        planes[number] = _through(point[members], normal[best], fixed=number > 0)
        if number == 0:
            normal = _snapped(normal, planes[0, :3])
        off = (point @ planes[number, :3] - planes[number, 3]).abs()
        left = left & ~((off < NEAR_M) & (cosine[:, best].abs() > 1.0 - 2.0 * NEAR_NORMAL**2))
    return planes


def _snapped(normal: Tensor, first: Tensor) -> Tensor:
    """Normals [n xyz], those nearly along or across the first wall's normal exactly so."""
    across = torch.stack([-first[1], first[0], torch.zeros_like(first[0])])
    for axis in (first, across):
        cosine = normal @ axis
        snapped = cosine.sign()[:, None] * axis
        normal = torch.where((cosine.abs() > 1.0 - 0.5 * SNAP**2)[:, None], snapped, normal)
    return normal


def _through(points: Tensor, normal: Tensor, fixed: bool) -> Tensor:
    """Upright plane [4] through points [n xyz]: medians of distances, turned as little as the points ask for.

    The points of one wall spread along it: the line through them in the plan fixes the normal better than the normals
    of single bounces do, unless they are all in one place.
    """
    plan, start = points[:, :2], normal[:2]
    if fixed:
        return torch.cat([normal, (points @ normal).median()[None]])
    centred = plan - plan.mean(0)
    along = torch.stack([-start[1], start[0]])
    place, off = centred @ along, centred @ start
    # a slope of zero with the weight of NEAR_NORMAL against deviations of NEAR_M / 2
    slope = (place * off).sum() / (place.square().sum() + (0.5 * NEAR_M / NEAR_NORMAL) ** 2)
    turned = torch.nn.functional.normalize(start - slope * along, dim=0)
    return torch.cat([turned, turned.new_zeros(1), (plan @ turned).median()[None]])
