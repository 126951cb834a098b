"""Association and location together: every user mode gathers its own clusters, then the evidence decides."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.alignment import Alignment, align_stations
from sensing.coarse.candidates import Candidates, Located, decide, pick, promising
from sensing.coarse.clusters import Clusters, KnownUser, form_clusters
from sensing.coarse.evidence import association_evidence, clock_allowance
from sensing.coarse.least_squares import (
    Measurements,
    Solution,
    cluster_measurements,
    inverse_information,
    solve_location,
)
from sensing.coarse.pairs import RayPairs, ray_pairs, region_box, wrap
from sensing.coarse.repair import fit_fails, repair, take
from sensing.coarse.second_look import CELLS, grid_candidates, twin_candidates
from sensing.coarse.user_search import cluster_residuals, search_user
from sensing.containers import Deployment, PathEstimates, map_tensors
from sensing.units import SPEED_OF_LIGHT

SINGLE_GATE = 12.0  # squared residual of one cluster's excess (1 degree of freedom) that still counts as agreeing
DOUBT = 15.0  # evidence, in nats, by which the location may fall behind the clusters formed without a user
TWIN_GAP = 15.0  # evidence, in nats, by which a twin may trail before it has gathered its own clusters
SLACK = 1e-3  # of the evidence of one solution refined twice
VOTE_GAP = 8.0  # votes, in nats, by which an alignment may trail the best and still be tried


class Settings(NamedTuple):
    """How hard to search."""

    modes: int  # user modes tried by least squares for each alignment
    passes: int  # associations repeated with the user known
    pair_gate: float  # chi-square gate of ray pairs
    alignments: int  # alignments of the stations that are tried
    repairs: int  # leave-one-out rounds for fits that fail their test


def locate(
    paths: PathEstimates, weights: Tensor | None, deployment: Deployment, settings: Settings
) -> tuple[Tensor, Solution, Tensor]:
    """Associate and locate; returns member paths, solution and the way to a rival user mode [b xyz].

    Every alignment proposes user modes, every mode gathers its own associations and leaves out what spoils its fit, and
    only then the evidence decides: before, a mode that fits few clusters well may look better than the true one.
    """
    box = region_box(deployment)
    pairs = ray_pairs(paths, deployment, settings.pair_gate)
    alignment = align_stations(
        pairs,
        len(deployment.bs_position),
        deployment.range_ambiguity,
        (box[1] - box[0]).norm(),
        SPEED_OF_LIGHT * deployment.clock_offset_std,
        settings.alignments,
    )
    first = _first_candidates(pairs, alignment, paths, weights, deployment, settings.modes)
    num = alignment.score.shape[1] * settings.modes
    found = _compete(first, num, pairs, paths, weights, deployment, settings)
    clusters = form_clusters(pairs, alignment.offset_m[:, 0], paths, deployment)
    promised = clusters.log_ratio.sum(-1) - clock_allowance(deployment)
    rows = (found.evidence < promised - DOUBT).nonzero().squeeze(-1)
    if len(rows):
        given = take(pairs, rows), take(paths, rows), None if weights is None else weights[rows]
        again = grid_candidates(take(clusters, rows), alignment.offset_m[rows, 0], *given, deployment)
        found = _better(found, _compete(again, CELLS, *given, deployment, settings), rows)
    twins = twin_candidates(found.path, found.solution, paths, weights, deployment)
    num = len(twins.place) // len(paths.mask)
    rows = promising(twins, len(paths.mask), num, TWIN_GAP).place // num
    rows = (rows.bincount(minlength=len(paths.mask)) > 1).nonzero().squeeze(-1)
    if len(rows):
        given = take(pairs, rows), take(paths, rows), None if weights is None else weights[rows]
        kept = (rows[:, None] * num + torch.arange(num, device=rows.device)).flatten()
        twins = pick(twins, kept)._replace(place=torch.arange(len(kept), device=rows.device))
        found = _better(found, _compete(twins, num, *given, deployment, settings), rows, SLACK)
    return found.path, found.solution, found.rival


def _better(old: Located, new: Located, rows: Tensor, slack: float = 0.0) -> Located:
    """Take the new results of some scenes where their evidence is higher, or lower by no more than the slack."""
    better, index = torch.zeros_like(old.evidence, dtype=torch.bool), torch.zeros_like(old.path[:, 0, 0])
    better[rows] = new.evidence > old.evidence[rows] - slack
    index[rows] = torch.arange(len(rows), device=rows.device)
    path, solution = merge_solutions(better, new.path[index], take(new.solution, index), old.path, old.solution)
    # a rival that the old search knew remains one of the same place
    known = (old.rival != 0).any(-1) & (new.rival[index] == 0).all(-1)
    rival = torch.where((better & ~known)[:, None], new.rival[index], old.rival)
    return Located(path, solution, rival, torch.where(better, new.evidence[index], old.evidence))


def _compete(
    candidates: Candidates,
    num: int,
    pairs: RayPairs,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    settings: Settings,
) -> Located:
    """Settle and repair the promising candidates, and choose the best of every scene."""
    chosen = promising(candidates, len(paths.mask), num)
    scene = chosen.place // num
    own, own_pairs, own_weights = take(paths, scene), take(pairs, scene), None if weights is None else weights[scene]
    path, solution = _settle(chosen, own_pairs, own, own_weights, deployment, settings.passes)
    path, solution, _ = repair(path, solution, own, own_weights, deployment, settings.repairs)
    evidence = association_evidence(path, solution, own, deployment)
    return decide(chosen._replace(path=path, solution=solution, evidence=evidence), len(paths.mask), num)


def _first_candidates(
    pairs: RayPairs,
    alignment: Alignment,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    modes: int,
) -> Candidates:
    """User modes of every plausible alignment, fitted to the clusters that agree with them."""
    repeat = (alignment.offset_m == alignment.offset_m[:, :1]).all(-1)
    tried = (alignment.score > alignment.score[:, :1] - VOTE_GAP) & ~repeat
    tried[:, 0] = True
    hypothesis = tried.flatten().nonzero().squeeze(-1)
    scene = hypothesis // tried.shape[1]
    own, own_weights = take(paths, scene), None if weights is None else weights[scene]
    offset = alignment.offset_m.flatten(0, 1)[hypothesis]
    clusters = form_clusters(take(pairs, scene), offset, own, deployment)
    path, solution = _solve_modes(clusters, offset, own, own_weights, deployment, modes)
    found = path.shape[1]
    place = (hypothesis[:, None] * modes + torch.arange(found, device=path.device)).flatten()
    path, solution = path.flatten(0, 1), Solution(*(field.flatten(0, 1) for field in solution))
    own = take(own, torch.arange(len(scene), device=path.device).repeat_interleave(found))
    return Candidates(place, path, solution, association_evidence(path, solution, own, deployment))


def _settle(
    candidates: Candidates,
    pairs: RayPairs,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    passes: int,
) -> tuple[Tensor, Solution]:
    """Associate again with the user known, as long as it helps."""
    path, solution = candidates.path, candidates.solution
    proper = bool(torch.isfinite(deployment.clock_offset_std))
    for _ in range(passes):
        clusters = _associate_again(pairs, solution, paths, deployment)
        trial = _solve(clusters.path, solution, clusters.position, paths, weights, deployment)
        members, trial_members = ((p >= 0).sum((-2, -1)) for p in (path, clusters.path))
        fails, trial_fails = fit_fails(solution.cost, path, proper), fit_fails(trial.cost, clusters.path, proper)
        # a re-association must not break a fit that passes its test
        better = ~trial_fails & (fails | (trial_members >= members)) | (fails & (trial.cost < solution.cost))
        path, solution = merge_solutions(better, clusters.path, trial, path, solution)
    return path, solution


def _solve_modes(
    clusters: Clusters,
    offset: Tensor,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    most: int,
) -> tuple[Tensor, Solution]:
    """Least squares from the best user modes, each with the clusters that agree with it: [b mode ...]."""
    modes = map_tensors(search_user(clusters, offset, deployment), lambda field: field[:, :most])
    count = modes.ue_position.shape[1]
    squared = cluster_residuals(modes.ue_position, modes.common_offset, clusters, deployment)[0]
    agrees = (squared < SINGLE_GATE) & clusters.mask[:, None]  # [b mode k]
    path = torch.where(agrees[..., None], clusters.path[:, None], torch.full_like(clusters.path[:, None], -1))
    data = Measurements(
        *(
            torch.stack(field, 1)
            for field in zip(*(cluster_measurements(path[:, m], paths, weights)[:3] for m in range(count)), strict=True)
        )  # type: ignore[arg-type]
    )
    start = wrap(offset[:, None] + modes.common_offset[..., None], deployment.range_ambiguity)
    position = clusters.position[:, None].expand(-1, count, -1, -1)
    return path, solve_location(data, modes.ue_position, start, position, deployment)


def _associate_again(pairs: RayPairs, solution: Solution, paths: PathEstimates, deployment: Deployment) -> Clusters:
    """Clusters of all paths, given the user and the offsets of a solution."""
    beta = solution.offset_m[:, 0]
    relative = solution.offset_m - beta[:, None]
    covariance = inverse_information(solution.information)[:, :4, :4]
    user = KnownUser(solution.ue_position, beta, covariance)
    return form_clusters(pairs, relative, paths, deployment, user)


def _solve(
    path: Tensor,
    start: Solution,
    position: Tensor,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
) -> Solution:
    data = cluster_measurements(path, paths, weights)
    return solve_location(data, start.ue_position, start.offset_m, position, deployment)


def _merge(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (old.ndim - 1)), new, old)


def merge_solutions(
    mask: Tensor, new_path: Tensor, new: Solution, old_path: Tensor, old: Solution
) -> tuple[Tensor, Solution]:
    """Choose per scene between two solutions that may have different numbers of clusters."""
    width = max(new_path.shape[1], old_path.shape[1])

    def pad(field: Tensor, value: float) -> Tensor:
        missing = width - field.shape[1]
        return (
            torch.cat([field, field.new_full((len(field), missing, *field.shape[2:]), value)], 1) if missing else field
        )

    new = new._replace(position=pad(new.position, 0.0), node_covariance=pad(new.node_covariance, 0.0))
    old = old._replace(position=pad(old.position, 0.0), node_covariance=pad(old.node_covariance, 0.0))
    merged = Solution(*(_merge(mask, a, b) for a, b in zip(new, old, strict=True)))
    return _merge(mask, pad(new_path, -1), pad(old_path, -1)), merged
