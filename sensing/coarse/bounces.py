"""Association and location where paths bounce more than once and stations may see the user.

As in `modes`, several alignments of the stations propose user modes, the best are solved by least squares and associate
again with the user known. But where most clusters are no points, evidence that counts every cluster for a user follows
the many; here a mixture over the kinds of cluster (`user_score`) ranks the modes, and lines of sight locate too.
"""

import torch
from torch import Tensor

from sensing.coarse.aligned import align_and_cluster
from sensing.coarse.bounce_search import search_bounced_user
from sensing.coarse.candidates import REPEAT_M, Candidates, Located, best_distinct, decide
from sensing.coarse.least_squares import solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.pairs import wrap
from sensing.coarse.rays import Rays, take
from sensing.coarse.settling import Bounces, Settings, settle
from sensing.coarse.user_score import Hypothesis, hypothesis, score, shares
from sensing.containers import Deployment

VOTE_GAP = 60.0  # votes by which an alignment may trail and still form its clusters: echoes vote too, and often
CLUSTER_GAP = 40.0  # evidence of its clusters, in nats, by which it may trail and still propose users
HOPELESS = 25.0  # nats that least squares and further associations do not make up for
RIVAL_GAP = 10.0  # nats of the two scores by which a rival mode may trail
RIVAL_SPREAD = 6.0  # standard deviations of the user beyond which another mode is a rival


def locate_bounces(rays: Rays, deployment: Deployment, settings: Settings, bounces: Bounces) -> Located:
    """Associate and locate.

    Args:
        rays: paths and pairs of the scenes.
        deployment: stations and priors.
        settings: how hard to search; echoes call for twice the modes and alignments.
        bounces: what the paths may be.
    """
    scenes = len(rays.paths.mask)
    scene, case = _hypotheses(rays, deployment, settings, bounces)
    modes = search_bounced_user(case, deployment)
    value = case.clusters.log_ratio.sum(-1, keepdim=True) - modes.cost
    count, (ue, beta, _), value = value.shape[1], (field.flatten(0, 1) for field in modes), value.flatten()
    best = best_distinct(value, ue, scene.repeat_interleave(count), scenes, HOPELESS, 2 * settings.modes)
    # from here one row for every candidate
    scene, case = scene[best // count], take(case, best // count)
    own = take(rays, scene)
    candidates = _first_candidates(scene, ue[best], beta[best], value[best], case, own, deployment, bounces)
    candidates = settle(candidates, own, deployment, settings, bounces)
    # what a solution leaves unused tells as much as what it uses; the start, which the associations have not yet bent,
    # counts as much as the end
    solution = candidates.solution
    beta = (solution.offset_m[:, :1] - case.offset_m[:, :1])[:, None]
    evidence = candidates.evidence + score(solution.ue_position[:, None], beta, case, deployment)[:, 0, 0]
    candidates = candidates._replace(evidence=torch.nan_to_num(evidence, nan=-torch.inf))
    return decide(candidates, scenes, RIVAL_GAP, RIVAL_SPREAD)


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
    solution = solve_location(data, ue, offset, case.clusters.position, deployment)
    return Candidates(scene, path, direct, solution, value)
