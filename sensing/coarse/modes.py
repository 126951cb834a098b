"""Association and location together: every user mode gathers its own clusters, then the evidence decides."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.alignment import Alignment, align_stations
from sensing.coarse.clusters import Clusters, KnownUser, form_clusters
from sensing.coarse.evidence import association_evidence
from sensing.coarse.least_squares import (
    Measurements,
    Solution,
    cluster_measurements,
    inverse_information,
    solve_location,
)
from sensing.coarse.pairs import RayPairs, ray_pairs, region_box, wrap
from sensing.coarse.repair import fit_fails, repair, take
from sensing.coarse.user_search import cluster_residuals, search_cells, search_user
from sensing.containers import Deployment, PathEstimates, map_tensors
from sensing.units import SPEED_OF_LIGHT

SINGLE_GATE = 12.0  # squared residual of one cluster's excess (1 degree of freedom) that still counts as agreeing
REPEAT_M = 0.2  # user modes closer than this [m] are one
VOTE_GAP = 12.0  # votes, in nats, by which an alignment may trail the best and still be tried
HOPELESS = 40.0  # evidence, in nats, that further associations do not make up for
DOUBT = 15.0  # evidence, in nats, by which the location may fall behind the clusters formed without a user
CELLS = 48  # users tried where that is so
CELL_M = 2.0  # standard deviation [m] with which they are known
RIVAL_GAP = 6.0  # evidence, in nats, by which a rival mode may trail


class Settings(NamedTuple):
    """How hard to search."""

    modes: int  # user modes tried by least squares for each alignment
    passes: int  # associations repeated with the user known
    pair_gate: float  # chi-square gate of ray pairs
    alignments: int  # alignments of the stations that are tried
    repairs: int  # leave-one-out rounds for fits that fail their test


class Candidates(NamedTuple):
    """Solutions under trial, those of all scenes along one axis."""

    place: Tensor  # [n] int64: scene times the candidates of a scene, plus the candidate
    path: Tensor  # [n cluster bs]
    solution: Solution  # [n ...]
    evidence: Tensor  # [n]


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
    path, solution, rival, evidence = _compete(first, num, pairs, paths, weights, deployment, settings)
    clusters = form_clusters(pairs, alignment.offset_m[:, 0], paths, deployment)
    doubtful = (evidence < clusters.log_ratio.sum(-1) - DOUBT).nonzero().squeeze(-1)
    if len(doubtful) == 0:
        return path, solution, rival
    rows = (take(pairs, doubtful), take(paths, doubtful), None if weights is None else weights[doubtful])
    again = _grid_candidates(take(clusters, doubtful), alignment.offset_m[doubtful, 0], *rows, deployment)
    found = _compete(again, CELLS, *rows, deployment, settings)
    better = torch.zeros_like(evidence, dtype=torch.bool)
    better[doubtful] = found[3] > evidence[doubtful]
    index = torch.zeros_like(better, dtype=torch.int64)
    index[doubtful] = torch.arange(len(doubtful), device=index.device)
    path, solution = _merge_solutions(better, found[0][index], take(found[1], index), path, solution)
    return path, solution, torch.where(better[:, None], found[2][index], rival)


def _compete(
    candidates: Candidates,
    num: int,
    pairs: RayPairs,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    settings: Settings,
) -> tuple[Tensor, Solution, Tensor, Tensor]:
    """Settle and repair the promising candidates; member paths, solution, rival and evidence of every scene's best."""
    chosen = _promising(candidates, len(paths.mask), num)
    scene = chosen.place // num
    own, own_pairs, own_weights = take(paths, scene), take(pairs, scene), None if weights is None else weights[scene]
    path, solution = _settle(chosen, own_pairs, own, own_weights, deployment, settings.passes)
    path, solution = repair(path, solution, own, own_weights, deployment, settings.repairs)
    evidence = association_evidence(path, solution, own, deployment)
    return _decide(chosen._replace(path=path, solution=solution, evidence=evidence), len(paths.mask), num)


def _grid_candidates(
    clusters: Clusters,
    offset: Tensor,
    pairs: RayPairs,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
) -> Candidates:
    """Users all over the region, each of whom gathers clusters of its own.

    Clusters that are formed without the user may hold so many false ones that no mode is near the truth. Knowing the
    user to a grid cell is enough to tell most of them.
    """
    modes = search_cells(clusters, offset, deployment, CELLS)
    count = modes.ue_position.shape[1]
    scene = torch.arange(len(offset), device=offset.device).repeat_interleave(count)
    own, own_weights = take(paths, scene), None if weights is None else weights[scene]
    beta = modes.common_offset.flatten()
    ue = modes.ue_position.flatten(0, 1).to(beta)
    covariance = CELL_M**2 * torch.eye(4, dtype=ue.dtype, device=ue.device).expand(len(ue), 4, 4)
    user = KnownUser(ue, beta, covariance)
    gathered = form_clusters(take(pairs, scene), offset[scene], own, deployment, user)
    data = cluster_measurements(gathered.path, own, own_weights)
    start = wrap(offset[scene] + beta[:, None], deployment.range_ambiguity)
    solution = solve_location(data, ue, start, gathered.position, deployment)
    place = scene * CELLS + torch.arange(len(scene), device=scene.device) % count
    return Candidates(
        place, gathered.path, solution, association_evidence(gathered.path, solution, own, deployment)
    )


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


def _table(values: Tensor, place: Tensor, scenes: int, num: int, fill: float) -> Tensor:
    """Values [n ...] of candidates as [scene candidate ...]."""
    table = values.new_full((scenes * num, *values.shape[1:]), fill)
    return table.index_copy(0, place, values).unflatten(0, (scenes, num))


def _promising(candidates: Candidates, scenes: int, num: int) -> Candidates:
    """Candidates that are no repeats of a better one and not hopeless; the best of every scene in any case."""
    evidence = _table(candidates.evidence, candidates.place, scenes, num, -torch.inf)
    state = torch.cat([candidates.solution.ue_position, candidates.solution.offset_m], -1)
    state = _table(state, candidates.place, scenes, num, torch.nan)
    best, leader = evidence.max(1)
    order = evidence.argsort(dim=1, descending=True, stable=True)
    ranked = state.gather(1, order[..., None].expand_as(state))
    near = (ranked[:, :, None] - ranked[:, None]).norm(dim=-1) < REPEAT_M
    repeat = torch.zeros_like(near[..., 0]).scatter(1, order, torch.tril(near, diagonal=-1).any(-1))
    keep = ~repeat & (evidence > best[:, None] - HOPELESS)
    keep = keep | torch.nn.functional.one_hot(leader, num).bool()
    rows = keep.flatten()[candidates.place].nonzero().squeeze(-1)
    return _pick(candidates, rows)


def _pick(candidates: Candidates, rows: Tensor) -> Candidates:
    """Some of the candidates."""
    place, path, solution, evidence = candidates
    return Candidates(place[rows], path[rows], take(solution, rows), evidence[rows])


def _decide(candidates: Candidates, scenes: int, num: int) -> tuple[Tensor, Solution, Tensor, Tensor]:
    """The best candidate of every scene, and the way to the furthest that fits about as well [b xyz]."""
    row = _table(torch.arange(len(candidates.place), device=candidates.place.device), candidates.place, scenes, num, 0)
    evidence = _table(candidates.evidence, candidates.place, scenes, num, -torch.inf)
    user = _table(candidates.solution.ue_position, candidates.place, scenes, num, 0.0)
    best, leader = evidence.max(1)
    chosen = _pick(candidates, row.gather(1, leader[:, None]).squeeze(1))
    shift = user - chosen.solution.ue_position[:, None]
    away = shift.norm(dim=-1)
    spread = inverse_information(chosen.solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1).clamp_min(0.0)
    rival = (away > 6.0 * spread.sqrt()[:, None]) & (evidence > best[:, None] - RIVAL_GAP)
    furthest = (away * rival).argmax(1)
    shift = shift[torch.arange(scenes, device=away.device), furthest]
    return chosen.path, chosen.solution, torch.where(rival.any(-1)[:, None], shift, torch.zeros_like(shift)), best


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
        path, solution = _merge_solutions(better, clusters.path, trial, path, solution)
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
            for field in zip(*(cluster_measurements(path[:, m], paths, weights) for m in range(count)), strict=True)
        )
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


def _merge_solutions(
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
