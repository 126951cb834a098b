"""Association and location where paths bounce more than once and stations may see the user.

As in `modes`, several alignments of the stations propose user modes, the best are solved by least squares and associate
again with the user known. But where most clusters are no points, evidence that counts every cluster for a user follows
the many; here a mixture over the kinds of cluster (`user_score`) ranks the modes, and lines of sight locate too.
"""

import torch
from torch import Tensor

from sensing.coarse.aligned import align_and_cluster
from sensing.coarse.bounce_search import search_bounced_user
from sensing.coarse.candidates import REPEAT_M, Candidates, Located, best_distinct, way_to_rival
from sensing.coarse.direct import line_of_sight_evidence
from sensing.coarse.least_squares import solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.normal_equations import LocationPrior, location_prior
from sensing.coarse.pairs import wrap
from sensing.coarse.rays import Rays, take
from sensing.coarse.settling import Bounces, Settings, settle
from sensing.coarse.site import site_candidates
from sensing.coarse.site_search import site_prior
from sensing.coarse.user_score import Hypothesis, hypothesis, shares
from sensing.containers import Deployment

VOTE_GAP = 60.0  # votes by which an alignment may trail and still form its clusters: echoes vote too, and often
CLUSTER_GAP = 40.0  # evidence of its clusters, in nats, by which it may trail and still propose users
MODE_M = 1.0  # standard deviation of a mode's user and offsets [m]: least squares refines the mode, and stays in it
RIVAL_GAP = 6.0  # nats by which a rival mode may trail
RIVAL_SPREAD = 6.0  # standard deviations of the user beyond which another mode is a rival


def locate_bounces(rays: Rays, deployment: Deployment, settings: Settings, bounces: Bounces) -> Located:
    """Associate and locate.

    The few points of a street, often along one line, fix the user badly: least squares on them alone leaves the mode
    that the mixture of all clusters has found. That mode decides, and is a prior of the least squares.

    Args:
        rays: paths and pairs of the scenes.
        deployment: stations and priors.
        settings: how hard to search; echoes call for twice the alignments.
        bounces: what the paths may be.
    """
    scenes = len(rays.paths.mask)
    scene, case = _hypotheses(rays, deployment, settings, bounces)
    modes = search_bounced_user(case, deployment)
    row = torch.arange(len(scene), device=scene.device).repeat_interleave(modes.cost.shape[1])
    ue, beta, cost = (field.flatten(0, 1) for field in modes)
    owner, value = scene[row], case.clusters.log_ratio.sum(-1)[row] - cost
    offset = wrap(case.offset_m[row] + beta[:, None], deployment.range_ambiguity)
    if bounces.line_of_sight:
        covariance = MODE_M**2 * torch.eye(3 + offset.shape[1], dtype=ue.dtype, device=ue.device)
        paths = take(rays.paths, owner)
        value = value + line_of_sight_evidence(ue, offset, covariance, paths, deployment, bounces.slack_m)
    value, case, prior = torch.nan_to_num(value, nan=-torch.inf), take(case, row), _mode_prior(ue, deployment)
    if bounces.planes is not None:
        owner, site, case, value = site_candidates(rays, ue, offset, value, owner, deployment, bounces, bounces.planes)
        ue, beta, prior = site.ue_position, site.offset_m[:, 0], site_prior(site)
        bounces = bounces._replace(line_of_sight=False)  # the mirrors count them
    best = best_distinct(value, ue, owner, scenes, 0.0, 1)
    kept, start, case, prior = owner[best], ue[best], take(case, best), take(prior, best)
    first = _first_candidates(kept, start, beta[best], value[best], case, prior, rays, deployment, bounces)
    found = settle(first, rays, deployment, settings, bounces, prior)
    rival = way_to_rival(ue, value, owner, found.solution, RIVAL_GAP, RIVAL_SPREAD, 3.0 * MODE_M)
    return Located(found.path, found.direct, found.solution, found.evidence, rival)


def _mode_prior(ue: Tensor, deployment: Deployment) -> LocationPrior:
    """The prior of user and offsets with users known to MODE_M, [b 3+bs]."""
    mean, precision = (field.expand(len(ue), -1).clone() for field in location_prior(deployment))
    total = precision[:, :3] + MODE_M**-2
    mean[:, :3] = (precision[:, :3] * mean[:, :3] + ue * MODE_M**-2) / total
    precision[:, :3] = total
    return LocationPrior(mean, precision)


def _hypotheses(rays: Rays, deployment: Deployment, settings: Settings, bounces: Bounces) -> tuple[Tensor, Hypothesis]:
    """Alignments of the stations that are worth a search: scene [row], and the clusters that each of them forms."""
    count = settings.alignments
    aligned = align_and_cluster(rays, deployment, 2 * count, VOTE_GAP, REPEAT_M, seeds=4 * count)
    # a true alignment lets many more paths meet than an accidental one: the clusters tell better than the vote
    total = aligned.clusters.log_ratio.sum(-1)
    best = total.new_full((len(rays.paths.mask),), -torch.inf).scatter_reduce(0, aligned.scene, total, "amax")
    worthy = (total > best[aligned.scene] - CLUSTER_GAP).nonzero().squeeze(-1)
    scene, offset, clusters = take(aligned, worthy)
    paths = take(rays.paths, scene)
    return scene, hypothesis(clusters, offset, paths, deployment, bounces.slack_m, bounces.multi_bounce)


def _first_candidates(
    scene: Tensor,
    ue: Tensor,
    beta: Tensor,
    value: Tensor,
    case: Hypothesis,
    prior: LocationPrior,
    rays: Rays,
    deployment: Deployment,
    bounces: Bounces,
) -> Candidates:
    """Least squares from users [n xyz] and common offsets [n] with the clusters that are points rather than not."""
    share = shares(ue[:, None], beta[:, None], case, deployment)
    member = case.clusters.path
    path = member.masked_fill(~(share.point[:, 0] > 0.5)[..., None], -1)
    seen = (share.user[:, 0] > 0.5) & bounces.line_of_sight
    direct = member.masked_fill(~seen[..., None], -1).amax(1)
    offset = wrap(case.offset_m + beta[:, None], deployment.range_ambiguity)
    data = cluster_measurements(path, rays.paths, rays.weights, direct)
    solution = solve_location(data, ue, offset, case.clusters.position, deployment, prior=prior)
    return Candidates(scene, path, direct, solution, value)
