"""Association and location where paths bounce more than once and stations may see the user.

As in `modes`, several alignments of the stations propose user modes, the best are solved by least squares and associate
again with the user known. But where most clusters are no points, evidence that counts every cluster for a user follows
the many; here a mixture over the kinds of cluster (`user_score`) ranks the modes, and lines of sight locate too.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.alignment import align_stations
from sensing.coarse.bounce_search import search_bounced_user
from sensing.coarse.clusters import Clusters, KnownUser, form_clusters
from sensing.coarse.direct import lines_of_sight, without
from sensing.coarse.echoes import echoes
from sensing.coarse.least_squares import Solution, cluster_measurements, inverse_information, solve_location
from sensing.coarse.modes import Settings, merge_solutions
from sensing.coarse.pairs import RayPairs, ray_pairs, region_box, wrap
from sensing.coarse.repair import fit_fails, repair, take
from sensing.coarse.user_score import Hypothesis, hypothesis, score, shares
from sensing.coarse.user_search import UserModes
from sensing.containers import Deployment, PathEstimates
from sensing.units import SPEED_OF_LIGHT

REPEAT_M = 0.2  # user modes closer than this [m] are one
VOTE_GAP = 60.0  # votes by which an alignment may trail and still form its clusters: echoes vote too, and often
CLUSTER_GAP = 40.0  # evidence of its clusters, in nats, by which it may trail and still propose users
HOPELESS = 25.0  # nats that least squares and further associations do not make up for
RIVAL = 10.0  # nats of the two scores by which a rival mode may trail


class Bounces(NamedTuple):
    """What departs from single bounces of exact plane waves."""

    multi_bounce: float  # share of clusters that are no points
    line_of_sight: bool  # stations may see the user
    slack_m: float  # standard deviation of the model's own error in a range [m]


class Seen(NamedTuple):
    """The best mode of every scene."""

    path: Tensor  # [b cluster bs] members, -1 for none
    direct: Tensor  # [b bs] lines of sight, -1 for none
    solution: Solution
    rival: Tensor  # [b xyz] way to another user mode that is about as likely; zero where there is none


def locate_bounces(
    paths: PathEstimates, weights: Tensor | None, deployment: Deployment, settings: Settings, bounces: Bounces
) -> Seen:
    """Associate and locate.

    Args:
        paths: detected paths [b bs path].
        weights: [b bs path 2] fusion weights or None.
        deployment: stations and priors.
        settings: how hard to search; echoes call for twice the modes and alignments.
        bounces: what the paths may be.
    """
    pairs = ray_pairs(paths, deployment, settings.pair_gate)
    scene, case = _hypotheses(pairs, paths, deployment, settings, bounces)
    modes = search_bounced_user(case, deployment)
    value = case.clusters.log_ratio.sum(-1, keepdim=True) - modes.cost
    row, mode = _candidates(value, modes, scene, len(paths.mask), 2 * settings.modes)
    # from here one row for every candidate
    scene, case = scene[row], take(case, row)
    paths_of, pairs_of = take(paths, scene), take(pairs, scene)
    weights_of = None if weights is None else weights[scene]
    start = UserModes(*(field[row, mode] for field in modes))
    found = _solve_mode(case, start, paths_of, weights_of, deployment, bounces.line_of_sight)
    path, direct, solution = _settle(pairs_of, *found, paths_of, weights_of, deployment, settings.passes, bounces)
    path, solution, direct = repair(path, solution, paths_of, weights_of, deployment, settings.repairs, direct)
    # what a solution leaves unused tells as much as what it uses; the start, which the associations have not yet bent,
    # counts as much as the end
    beta = (solution.offset_m[:, :1] - case.offset_m[:, :1])[:, None]
    evidence = value[row, mode] + score(solution.ue_position[:, None], beta, case, deployment)[:, 0, 0]
    nowhere = torch.zeros_like(solution.ue_position)
    evidence = torch.nan_to_num(evidence, nan=-torch.inf)
    return _best(scene, len(paths.mask), evidence, Seen(path, direct, solution, nowhere))


def _hypotheses(
    pairs: RayPairs, paths: PathEstimates, deployment: Deployment, settings: Settings, bounces: Bounces
) -> tuple[Tensor, Hypothesis]:
    """Alignments of the stations that are worth a search: scene [row], and the clusters that each of them forms."""
    box = region_box(deployment)
    found = align_stations(
        pairs,
        len(deployment.bs_position),
        deployment.range_ambiguity,
        (box[1] - box[0]).norm(),
        SPEED_OF_LIGHT * deployment.clock_offset_std,
        2 * settings.alignments,
        seeds=4 * settings.alignments,
    )
    gap = wrap(found.offset_m[:, :, None] - found.offset_m[:, None], deployment.range_ambiguity).abs().amax(-1)
    repeat = torch.tril(gap < REPEAT_M, diagonal=-1).any(-1)
    worthy = ~repeat & (found.score > found.score[:, :1] - VOTE_GAP)
    worthy[:, 0] = True
    scene, which = worthy.nonzero().unbind(-1)
    offset = found.offset_m[scene, which]
    clusters = form_clusters(take(pairs, scene), offset, take(paths, scene), deployment)
    # a true alignment lets many more paths meet than an accidental one: the clusters tell better than the vote
    total = clusters.log_ratio.sum(-1)
    best = torch.full_like(found.score[:, 0], -torch.inf).scatter_reduce(0, scene, total, "amax")
    row = (total > best[scene] - CLUSTER_GAP).nonzero().squeeze(-1)
    scene, offset, clusters = scene[row], offset[row], take(clusters, row)
    case = hypothesis(clusters, offset, take(paths, scene), deployment, bounces.slack_m, bounces.multi_bounce)
    return scene, case


def _candidates(value: Tensor, modes: UserModes, scene: Tensor, scenes: int, most: int) -> tuple[Tensor, Tensor]:
    """The best distinct modes of every scene over all its hypotheses: row of the hypothesis and mode, [candidate]."""
    row, mode = (index.flatten() for index in torch.meshgrid(*map(torch.arange, value.shape), indexing="ij"))
    row, mode = row.to(value.device), mode.to(value.device)
    flat, place = value.flatten(), modes.ue_position.flatten(0, 1)
    order = flat.argsort(descending=True, stable=True)
    order = order[scene[row[order]].argsort(stable=True)]  # by scene, best first
    owner, flat, place = scene[row[order]], flat[order], place[order]
    first = torch.searchsorted(owner, torch.arange(scenes, device=owner.device))
    best = flat[first][owner]
    same = owner[:, None] == owner
    repeat = torch.tril(same & ((place[:, None] - place).norm(dim=-1) < REPEAT_M), diagonal=-1).any(-1)
    kept = ~repeat & (flat > best - HOPELESS)
    kept[first] = True
    rank = kept.cumsum(0) - (kept.cumsum(0) - kept.int())[first][owner]
    kept = kept & (rank <= most)
    return row[order][kept], mode[order][kept]


def _solve_mode(
    case: Hypothesis,
    start: UserModes,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    line_of_sight: bool,
) -> tuple[Tensor, Tensor, Solution]:
    """Least squares from a start with the clusters that are more likely points than not."""
    share = shares(start.ue_position[:, None], start.common_offset[:, None], case, deployment)
    member = case.clusters.path
    path = member.masked_fill(~(share.point[:, 0] > 0.5)[..., None], -1)
    seen = (share.user[:, 0] > 0.5) & line_of_sight
    direct = member.masked_fill(~seen[..., None], -1).amax(1)
    offset = wrap(case.offset_m + start.common_offset[:, None], deployment.range_ambiguity)
    data = cluster_measurements(path, paths, weights, direct)
    return path, direct, solve_location(data, start.ue_position, offset, case.clusters.position, deployment)


def _settle(
    pairs: RayPairs,
    path: Tensor,
    direct: Tensor,
    solution: Solution,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    passes: int,
    bounces: Bounces,
) -> tuple[Tensor, Tensor, Solution]:
    """Associate again with the user known, as long as it helps."""
    proper = bool(torch.isfinite(deployment.clock_offset_std))
    for _ in range(passes):
        if bounces.line_of_sight:
            line = lines_of_sight(solution, paths, deployment, bounces.slack_m)
        else:
            line = torch.full_like(direct, -1)
        clusters = _associate_again(pairs, solution, without(paths, line), deployment, bounces.slack_m)
        data = cluster_measurements(clusters.path, paths, weights, line)
        trial = solve_location(data, solution.ue_position, solution.offset_m, clusters.position, deployment)
        members = (path >= 0).sum((-2, -1)) + (direct >= 0).sum(-1)
        trial_members = (clusters.path >= 0).sum((-2, -1)) + (line >= 0).sum(-1)
        fails = fit_fails(solution.cost, path, proper, direct)
        trial_fails = fit_fails(trial.cost, clusters.path, proper, line)
        # a re-association must not break a fit that passes its test
        more = (trial_members >= members) | ((line >= 0).sum(-1) > (direct >= 0).sum(-1))
        better = ~trial_fails & (fails | more) | (fails & (trial.cost < solution.cost))
        direct = torch.where(better[:, None], line, direct)
        path, solution = merge_solutions(better, clusters.path, trial, path, solution)
    return path, direct, solution


def _associate_again(
    pairs: RayPairs, solution: Solution, paths: PathEstimates, deployment: Deployment, slack_m: float
) -> Clusters:
    """Clusters of all paths, given the user and the offsets of a solution."""
    beta = solution.offset_m[:, 0]
    relative = solution.offset_m - beta[:, None]
    covariance = inverse_information(solution.information)[:, :4, :4].clone()
    covariance[:, 3, 3] += slack_m**2
    user = KnownUser(solution.ue_position, beta, covariance)
    clusters = form_clusters(_present(pairs, paths), relative, paths, deployment, user)
    # an image in the ground has the legs of its original but for centimetres, and pulls the user down
    echo = echoes(clusters, deployment, slack_m)
    return clusters._replace(path=clusters.path.masked_fill(echo[..., None], -1), mask=clusters.mask & ~echo)


def _present(pairs: RayPairs, paths: PathEstimates) -> RayPairs:
    """The pairs of which both paths are still there."""
    scene = torch.arange(len(paths.mask), device=paths.mask.device)[:, None, None]
    return pairs._replace(mask=pairs.mask & paths.mask[scene, pairs.station, pairs.path].all(-1))


def _best(scene: Tensor, scenes: int, value: Tensor, found: Seen) -> Seen:
    """The best candidate of every scene, and the way to a rival."""
    width = int(scene.bincount(minlength=scenes).max())
    column = torch.arange(len(scene), device=scene.device) - torch.searchsorted(scene, scene)
    table = value.new_full((scenes, width), -torch.inf)
    table[scene, column] = value
    place = found.solution.ue_position.new_zeros(scenes, width, 3)
    place[scene, column] = found.solution.ue_position
    row = torch.zeros_like(table, dtype=torch.int64)
    row[scene, column] = torch.arange(len(scene), device=scene.device)
    best, which = table.max(-1)
    chosen = take(found, row.gather(-1, which[:, None]).squeeze(-1))
    shift = place - chosen.solution.ue_position[:, None]
    away = shift.norm(dim=-1)
    spread = inverse_information(chosen.solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1).clamp_min(0.0)
    rival = (away > 6.0 * spread.sqrt()[:, None]) & (table > best[:, None] - RIVAL)
    furthest = (away * rival).argmax(1)
    shift = shift[torch.arange(scenes, device=scene.device), furthest]
    return chosen._replace(rival=torch.where(rival.any(-1)[:, None], shift, torch.zeros_like(shift)))
