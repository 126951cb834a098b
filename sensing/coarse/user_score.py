"""How well a user position and a common clock offset explain the clusters of a scene: a mixture that no outlier fools.

Each cluster k has a position s_k and an excess e_k. Given the user u and beta = c delta_0 it is one of

    point     e_k = ||s_k - u|| + beta                 a scatterer seen directly
    image     e_k = beta, s_k as high as u             the user mirrored in a wall (no scatterer: no user's leg)
    user      e_k = beta, s_k = u                      the line of sight
    other     anything                                 several bounces, or an accident

with densities relative to that of `other`, which is uniform: the score is

    sum_k log(1 + sum_types odds_type,k * density_type,k / density_other) + log prior of the offsets - early paths

No path can arrive before the straight line: an early path costs EARLY nats (an accident is possible, hence not more).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.cluster_fit import gather_members
from sensing.coarse.clusters import Clusters
from sensing.coarse.echoes import echoes
from sensing.coarse.pairs import region_box, wrap
from sensing.containers import Deployment, PathEstimates
from sensing.units import SPEED_OF_LIGHT

ECHO = 0.05
"""Factor on the odds that a cluster is a point where another cluster explains it as its echo."""
IMAGE, USER = 0.02, 0.01
"""Prior odds of these types against `other`."""
STRONG, WEAK = 0.25, 0.03
"""Amplitude, relative to the strongest path of its station, below which a line of sight is rare, and how rare."""
SHARE = 0.02
"""Least share of `other`: accidents happen even where nothing bounces twice."""
EARLY, MOST_EARLY, SLACK_EARLY = 2.0, 3, 1.0
"""Nats for an early path, most of them counted in a station, and how early a path may be by error [m]."""


class Hypothesis(NamedTuple):
    """What users are scored against; one row for every scene and alignment of its stations."""

    clusters: Clusters
    odds: Tensor  # [b k] of `point`
    direct: Tensor  # [b k] prior odds of `user`: its paths should be strong
    offset_m: Tensor  # [b bs] offsets relative to station 0 [m]
    arrival: Tensor  # [b bs path] range less the relative offset [m]; inf where there is no path
    slack_m: float  # standard deviation of the model's own error [m]
    bounces: bool  # images of the user and echoes exist: all types count, else `point` alone


class Shares(NamedTuple):
    """Posterior probabilities of the types, [b m k] each."""

    point: Tensor
    image: Tensor
    user: Tensor


class _Terms(NamedTuple):
    point: Tensor  # [b m p] density ratio times odds
    image: Tensor
    user: Tensor


def hypothesis(
    clusters: Clusters,
    offset_m: Tensor,
    paths: PathEstimates,
    deployment: Deployment,
    slack_m: float = 0.0,
    multi_bounce: float = 0.0,
) -> Hypothesis:
    """Prepare what `score` needs.

    Args:
        clusters: candidates, found without a user.
        offset_m: [b bs] their offsets relative to station 0 [m].
        paths: detected paths.
        deployment: stations.
        slack_m: standard deviation of the model's own error in a range [m].
        multi_bounce: share of clusters that are no points; echoes are looked for where it is not zero.
    """
    share = max(multi_bounce, SHARE)
    echo = echoes(clusters, deployment, slack_m) if multi_bounce > 0 else torch.zeros_like(clusters.mask)
    odds = torch.ones_like(clusters.excess).masked_fill(echo, ECHO) * (1.0 - share) / share
    direct = USER * torch.where(clusters.path < 0, 1.0, gather_members(line_of_sight_odds(paths), clusters.path)).prod(
        -1
    )
    arrival = torch.where(paths.mask, paths.range_m - offset_m[..., None], torch.inf)
    return Hypothesis(clusters, odds, direct, offset_m, arrival, slack_m, multi_bounce > 0)


class _Cluster(NamedTuple):
    """One cluster against all users: what does not depend on the offset."""

    value: Tensor  # [b m] offset that the cluster as a point asks for
    variance: Tensor  # [b m] of it
    excess: Tensor  # [b 1 1]
    excess_variance: Tensor  # [b 1 1]
    odds: Tensor  # [b 1 1]
    image: Tensor  # [b m] odds of `image`, density of the height included
    user: Tensor  # [b m] odds of `user`, density of the position included


def line_of_sight_odds(paths: PathEstimates) -> Tensor:
    """Factor [b bs path] on the odds that a path is a line of sight: reflections are longer and lossy, hence weaker."""
    amplitude = paths.gain.abs() * paths.mask
    return torch.where(amplitude > STRONG * amplitude.amax(-1, keepdim=True), 1.0, WEAK).to(paths.range_m)


def _against(ue: Tensor, k: int, case: Hypothesis, deployment: Deployment, cell_variance: Tensor | float) -> _Cluster:
    clusters, box = case.clusters, region_box(deployment)
    position, covariance = clusters.position[:, k].to(ue), clusters.covariance[:, k].to(ue)
    extent = (box[1] - box[0]).to(ue)
    slack = case.slack_m**2
    difference = ue - position[:, None]
    leg = torch.linalg.vector_norm(difference, dim=-1)
    slope = torch.cat([difference / leg.clamp_min(1e-3)[..., None], torch.ones_like(leg)[..., None]], -1)
    variance = ((slope @ covariance) * slope).sum(-1) + slack + cell_variance
    height_variance = covariance[:, 2, 2, None] + 4.0 * slack + cell_variance
    place_variance = covariance.diagonal(dim1=-2, dim2=-1)[:, None, :3] + slack + cell_variance
    image = IMAGE * extent[2] * _normal(difference[..., 2], height_variance)
    user = (extent * _normal(difference, place_variance)).prod(-1)
    present = clusters.mask[:, k].to(ue)[:, None]
    excess = clusters.excess[:, k].to(ue)[:, None]
    return _Cluster(
        value=wrap(excess - leg, deployment.range_ambiguity.to(ue)),
        variance=variance,
        excess=excess[..., None],
        excess_variance=(covariance[:, 3, 3, None, None] + slack),
        odds=(case.odds[:, k].to(ue)[:, None] * present)[..., None],
        image=image * present,
        user=user * (present * case.direct[:, k].to(ue)[:, None]),
    )


def _terms(beta: Tensor, one: _Cluster, case: Hypothesis, deployment: Deployment) -> _Terms:
    """Odds of the types at common offsets [b m p]."""
    ambiguity, box = deployment.range_ambiguity.to(beta), region_box(deployment)
    span = (box[1] - box[0]).norm().to(beta)
    point = one.odds * span * _normal(wrap(one.value[..., None] - beta, ambiguity), one.variance[..., None])
    if not case.bounces:
        return _Terms(point, torch.zeros_like(point), torch.zeros_like(point))
    direct = span * _normal(wrap(one.excess - beta, ambiguity), one.excess_variance)
    return _Terms(point, direct * one.image[..., None], direct * one.user[..., None])


def score(
    ue: Tensor, beta: Tensor, case: Hypothesis, deployment: Deployment, cell_variance: Tensor | float = 0.0
) -> Tensor:
    """Log posterior odds of users and offsets, up to a constant of the scene.

    Args:
        ue: users [b m xyz], b may be 1 [m].
        beta: common offsets [b m p] [m].
        case: clusters and paths of the scenes.
        deployment: stations, region, prior.
        cell_variance: mean square distance along a direction to the user that a grid point stands for [m^2].

    Returns:
        [b m p].
    """
    total = -EARLY * _early(ue, beta, case, deployment) if case.bounces else torch.zeros_like(beta)
    for k in range(case.clusters.mask.shape[-1]):
        terms = _terms(beta, _against(ue, k, case, deployment, cell_variance), case, deployment)
        total = total + torch.log1p(terms.point + terms.image + terms.user)
    std = (SPEED_OF_LIGHT * deployment.clock_offset_std).to(beta)
    if torch.isfinite(std):
        spread = std.square() + cell_variance
        for q in range(case.offset_m.shape[-1]):
            offset = wrap(case.offset_m[:, q, None, None].to(beta) + beta, deployment.range_ambiguity.to(beta))
            total = total - 0.5 * offset.square() / spread
    return total


def proposals(ue: Tensor, case: Hypothesis, deployment: Deployment) -> Tensor:
    """Common offsets [b m k or 2k] that make one cluster a point, or the user or its image, exactly."""
    clusters = case.clusters
    leg = torch.linalg.vector_norm(ue[:, :, None] - clusters.position[:, None].to(ue), dim=-1)
    excess = clusters.excess[:, None].to(ue).expand_as(leg)
    proposed = torch.cat([excess - leg, excess], -1) if case.bounces else excess - leg
    return wrap(proposed, deployment.range_ambiguity.to(ue))


def shares(
    ue: Tensor, beta: Tensor, case: Hypothesis, deployment: Deployment, cell_variance: Tensor | float = 0.0
) -> Shares:
    """Posterior probability of every type for each user [b m xyz] with its offset [b m]."""
    found = []
    for k in range(case.clusters.mask.shape[-1]):
        terms = _terms(beta[..., None], _against(ue, k, case, deployment, cell_variance), case, deployment)
        whole = 1.0 + terms.point + terms.image + terms.user
        found.append(torch.cat([terms.point / whole, terms.image / whole, terms.user / whole], -1))
    point, image, user = torch.stack(found, -2).unbind(-1)
    return Shares(point, image, user)


def _normal(residual: Tensor, variance: Tensor) -> Tensor:
    return torch.exp(-0.5 * residual.square() / variance) * (2.0 * torch.pi * variance).rsqrt()


def _early(ue: Tensor, beta: Tensor, case: Hypothesis, deployment: Deployment) -> Tensor:
    """Number of paths that arrive before the straight line, at most MOST_EARLY in a station, [b m p].

    Delays are circular: early is what lies within a third of the ambiguity before the line.
    """
    ambiguity, count = deployment.range_ambiguity.to(ue), torch.zeros_like(beta)
    circular = bool(torch.isfinite(ambiguity))
    reach = float(ambiguity) / 3.0 if circular else float("inf")
    slack = SLACK_EARLY + 3.0 * case.slack_m
    for q in range(case.arrival.shape[1]):
        leg = torch.linalg.vector_norm(ue - deployment.bs_position[q].to(ue), dim=-1)
        late = case.arrival[:, q, None].to(ue) - leg[..., None]  # [b m path]; early if below beta
        if circular:
            late = torch.where(torch.isfinite(late), torch.remainder(late, ambiguity), late)
            late = torch.cat([late - ambiguity, late], -1)
        late = late.sort(-1).values.contiguous()
        # beta in [0, ambiguity): the window before it lies in the two periods of `late`
        wanted = torch.remainder(beta, ambiguity) if circular else beta
        wanted = wanted.expand(*late.shape[:-1], beta.shape[-1]).contiguous()
        before = torch.searchsorted(late, wanted - slack) - torch.searchsorted(late, wanted - reach)
        count = count + before.clamp(0, MOST_EARLY)
    return count
