"""Mirrored stations: what known walls of a site do to paths, and how well such paths explain a user.

A path that bounces off a plane n.x = d is the line of sight of the station's mirror image `b - 2 (n.b - d) n`; off two
planes it is that of the image's image. With the planes known, every such path locates the user as a line of sight
does: it gives range and direction and brings no unknown but the station's clock. A path is one of these or another:

    log p = sum_paths log(1 + sum_mirrors odds N(path; user, offset) / uniform)

A mirror takes part where station and user lie on the same side of all its planes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.pairs import region_box, wrap
from sensing.containers import Deployment, PathEstimates

LOG_ODDS = -5.0  # of one mirror for one path
SPREAD_M = 0.1  # standard deviation of a plane's place [m]: facades are not flat
SAME_M = 1e-3  # images closer than this [m] are one: two planes at right angles commute


class Mirrors(NamedTuple):
    """Images of the stations: the station itself, by one plane, and by two."""

    linear: Tensor  # [mirror 3 3] orthogonal: a direction at the image is `linear` times that at the station
    station: Tensor  # [mirror bs xyz] [m]
    normal: Tensor  # [plane xyz]
    distance: Tensor  # [plane] [m]
    meets: Tensor  # [mirror plane] bool


def mirrors(planes: Tensor, deployment: Deployment) -> Mirrors:
    """All images by one or two planes.

    Args:
        planes: [plane 4] normal (any length but zero, which is no plane) and distance along the unit normal [m]; the
            floor of the region is added where there is one.
        deployment: stations and region.
    """
    planes = planes[planes[:, :3].norm(dim=-1) > 0].to(deployment.bs_position)
    if deployment.region is not None:
        floor = planes.new_tensor([[0.0, 0.0, 1.0, float(deployment.region[0, 2])]])
        planes = torch.cat([planes, floor])
    normal = torch.nn.functional.normalize(planes[:, :3], dim=-1)
    distance, count = planes[:, 3], len(planes)
    eye = torch.eye(3, dtype=planes.dtype, device=planes.device)
    found: list[tuple[Tensor, Tensor, list[int]]] = [(eye, deployment.bs_position, [])]
    chains = [[first] for first in range(count)]
    chains += [[first, second] for first in range(count) for second in range(count) if first != second]
    for chain in chains:
        linear, station = eye, deployment.bs_position
        for plane in chain:
            flip = eye - 2.0 * normal[plane, :, None] * normal[plane]
            linear, station = flip @ linear, station @ flip + 2.0 * distance[plane] * normal[plane]
        if all(bool((station - other).norm(dim=-1).amax() > SAME_M) for _, other, _ in found):
            found.append((linear, station, chain))
    meets = torch.zeros(len(found), count, dtype=torch.bool, device=planes.device)
    for number, (_, _, chain) in enumerate(found):
        meets[number, chain] = True
    linears, stations, _ = zip(*found, strict=True)
    return Mirrors(torch.stack(linears), torch.stack(stations), normal, distance, meets)


def possible(ue: Tensor, images: Mirrors, deployment: Deployment) -> Tensor:
    """Whether users [n xyz] are on the station's side of all planes of a mirror, [n mirror bs] bool."""
    station = deployment.bs_position.to(ue) @ images.normal.to(ue).mT - images.distance.to(ue)  # [bs plane]
    user = ue @ images.normal.to(ue).mT - images.distance.to(ue)  # [n plane]
    across = user[:, None] * station < 0  # [n bs plane]
    return ~(across[:, None] & images.meets[:, None]).any(-1)


class Explained(NamedTuple):
    """Users against all paths and mirrors."""

    log_odds: Tensor  # [n] evidence in nats
    share: Tensor  # [n mirror bs path] probability that the path is the mirror's
    residual: Tensor  # [n mirror bs path 4] of range and direction
    information: Tensor  # [n mirror bs path 4 4]
    slope: Tensor  # [n mirror bs 4 3+bs] of range and direction by user and offsets


def explain(
    ue: Tensor,
    offset: Tensor,
    paths: PathEstimates,
    images: Mirrors,
    deployment: Deployment,
    slack_m: float,
    blur_m: float = 0.0,
) -> Explained:
    """Evidence of users [n xyz] with offsets [n bs], and which mirror explains which path.

    Args:
        ue: users [m].
        offset: clock offsets times c [m].
        paths: detected paths [n bs path].
        images: mirrored stations.
        deployment: stations and region.
        slack_m: standard deviation of the model's own error in a range [m].
        blur_m: standard deviation of user and offsets [m].
    """
    difference = ue[:, None, None] - images.station  # [n mirror bs xyz]
    leg = difference.norm(dim=-1).clamp_min(1e-3)
    toward = difference / leg[..., None]
    seen = torch.einsum("mji,nmqj->nmqi", images.linear, toward)  # at the station itself
    late = wrap(paths.range_m[:, None] - (leg + offset[:, None])[..., None], deployment.range_ambiguity)
    residual = torch.cat([late[..., None], paths.direction[:, None] - seen[..., None, :]], -1)
    eye = torch.eye(3 + offset.shape[-1], dtype=ue.dtype, device=ue.device)
    slope = ue.new_zeros(*leg.shape, 4, len(eye))
    slope[..., 0, :3], slope[..., 0, 3:] = toward, eye[3:, 3:]
    across = (eye[:3, :3] - toward[..., :, None] * toward[..., None, :]) / leg[..., None, None]
    slope[..., 1:, :3] = images.linear.mT[:, None] @ across
    k = paths.direction
    noise = paths.covariance.clone()
    noise[..., 0, 0] += slack_m**2 + SPREAD_M**2
    # a direction has no component along itself: give that component unit variance
    noise[..., 1:, 1:] += k[..., :, None] * k[..., None, :]
    noise = torch.where(paths.mask[..., None, None], noise, torch.eye(4, dtype=ue.dtype, device=ue.device))
    total = noise[:, None] + blur_m**2 * (slope @ slope.mT)[..., None, :, :]
    information = torch.linalg.inv_ex(total)[0]
    chi2 = (residual[..., None, :] @ information @ residual[..., None])[..., 0, 0]
    box = region_box(deployment)
    volume = torch.log((box[1] - box[0]).norm() * 2.0 * math.pi)
    ratio = LOG_ODDS + volume - 0.5 * (chi2 + torch.logdet(total)) - 1.5 * math.log(2.0 * math.pi)
    exists = possible(ue, images, deployment)[..., None] & paths.mask[:, None]
    ratio = ratio.masked_fill(~exists, -torch.inf)
    whole = torch.nn.functional.softplus(ratio.logsumexp(1))  # [n bs path]
    return Explained(whole.sum((-2, -1)), (ratio - whole[:, None]).exp(), residual, information, slope)
