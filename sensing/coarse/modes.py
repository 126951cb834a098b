"""Association and location together: every user mode gathers its own clusters, then the evidence decides."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.alignment import align_stations
from sensing.coarse.clusters import Clusters, KnownUser, form_clusters
from sensing.coarse.least_squares import (
    Measurements,
    Solution,
    cluster_measurements,
    inverse_information,
    location_prior,
    solve_location,
)
from sensing.coarse.pairs import RayPairs, ray_pairs, region_box, wrap
from sensing.coarse.repair import fit_fails, take
from sensing.coarse.user_search import cluster_residuals, search_user
from sensing.containers import Deployment, PathEstimates, map_tensors
from sensing.units import SPEED_OF_LIGHT

SINGLE_GATE = 12.0  # squared residual of one cluster's excess (1 degree of freedom) that still counts as agreeing
REPEAT_M = 0.2  # user modes closer than this [m] are one
HOPELESS = 120.0  # twice the evidence, in nats, that further associations do not make up for


class Settings(NamedTuple):
    """How hard to search."""

    modes: int  # user modes tried by least squares
    passes: int  # associations repeated with the user known
    pair_gate: float  # chi-square gate of ray pairs


def locate(
    paths: PathEstimates, weights: Tensor | None, deployment: Deployment, settings: Settings
) -> tuple[Tensor, Solution, Tensor]:
    """Associate and locate; returns member paths, solution and the way to a rival user mode [b xyz].

    Every mode gathers its own associations, and only then the evidence decides: before, a mode that fits few
    clusters well may look better than the true one.
    """
    box = region_box(deployment)
    pairs = ray_pairs(paths, deployment, settings.pair_gate)
    alignment = align_stations(
        pairs,
        len(deployment.bs_position),
        deployment.range_ambiguity,
        (box[1] - box[0]).norm(),
        SPEED_OF_LIGHT * deployment.clock_offset_std,
    )
    offset = alignment.offset_m[:, 0]
    clusters = form_clusters(pairs, offset, paths, deployment)
    starts, solutions, worthy = _solve_modes(clusters, offset, paths, weights, deployment, settings.modes)
    path, solution, best = _settle(
        pairs, starts[:, 0], _mode(solutions, 0), paths, weights, deployment, settings.passes
    )
    evidence, places = [best], [solution.ue_position]
    for mode in range(1, starts.shape[1]):
        rows = worthy[:, mode].nonzero().squeeze(-1)
        if len(rows) == 0:
            continue
        sub_weights = None if weights is None else weights[rows]
        start, sub_paths = take(_mode(solutions, mode), rows), take(paths, rows)
        settled = _settle(
            take(pairs, rows), starts[rows, mode], start, sub_paths, sub_weights, deployment, settings.passes
        )
        # back to all scenes; those without this mode read row 0 and are masked
        index = (worthy[:, mode].cumsum(0) - 1).clamp_min(0)
        other_path, other, trial = settled[0][index], take(settled[1], index), settled[2][index]
        trial = torch.where(worthy[:, mode], trial, torch.full_like(trial, -torch.inf))
        path, solution = _merge_solutions(trial > best, other_path, other, path, solution)
        best = torch.maximum(best, trial)
        evidence.append(trial)
        places.append(other.ue_position)
    away = (torch.stack(places, 1) - solution.ue_position[:, None]).norm(dim=-1)
    spread = inverse_information(solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1).clamp_min(0.0)
    rival = (away > 6.0 * spread.sqrt()[:, None]) & (torch.stack(evidence, 1) > best[:, None] - SINGLE_GATE)
    furthest = (away * rival).argmax(1)
    rows = torch.arange(len(away), device=away.device)
    shift = torch.stack(places, 1)[rows, furthest] - solution.ue_position
    return path, solution, torch.where(rival.any(-1)[:, None], shift, torch.zeros_like(shift))


def _settle(
    pairs: RayPairs,
    path: Tensor,
    solution: Solution,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    passes: int,
) -> tuple[Tensor, Solution, Tensor]:
    """Associate again with the user known, as long as it helps; last comes the log evidence of the result [b]."""
    proper = bool(torch.isfinite(deployment.clock_offset_std))
    for _ in range(passes):
        clusters = _associate_again(pairs, solution, paths, deployment)
        trial = _solve(clusters.path, solution, clusters.position, paths, weights, deployment)
        members, trial_members = ((p >= 0).sum((-2, -1)) for p in (path, clusters.path))
        fails, trial_fails = fit_fails(solution.cost, path, proper), fit_fails(trial.cost, clusters.path, proper)
        # a re-association must not break a fit that passes its test
        better = ~trial_fails & (fails | (trial_members >= members)) | (fails & (trial.cost < solution.cost))
        path, solution = _merge_solutions(better, clusters.path, trial, path, solution)
    evidence = _associate_again(pairs, solution, paths, deployment).log_ratio.sum(-1)
    prior = location_prior(deployment)
    state = torch.cat([solution.ue_position, solution.offset_m], -1)
    evidence = evidence - 0.5 * (prior.precision * (state - prior.mean).square()).sum(-1)
    return path, solution, torch.nan_to_num(evidence, nan=-torch.inf)


def _solve_modes(
    clusters: Clusters,
    offset: Tensor,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    most: int,
) -> tuple[Tensor, Solution, Tensor]:
    """Least squares from the best user modes, each with the clusters that agree with it: [b mode ...].

    Best first; the last output [b mode] tells which modes are no repeats of a better one and not hopeless.
    """
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
    solution = solve_location(data, modes.ue_position, start, position, deployment)
    # evidence lost by leaving clusters out counts against a mode
    lost = (2.0 * clusters.log_ratio[:, None] * (~agrees & clusters.mask[:, None])).sum(-1)
    score = torch.nan_to_num(solution.cost + lost, nan=torch.inf)
    rows, order = torch.arange(len(score), device=score.device)[:, None], score.argsort(dim=-1, stable=True)
    solution, score = Solution(*(field[rows, order] for field in solution)), score[rows, order]
    gap = (solution.ue_position[:, :, None] - solution.ue_position[:, None]).norm(dim=-1)
    repeat = torch.tril(gap < REPEAT_M, diagonal=-1).any(-1)
    return path[rows, order], solution, ~repeat & (score < score[:, :1] + HOPELESS)


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


def _mode(solutions: Solution, mode: int) -> Solution:
    return Solution(*(field[:, mode] for field in solutions))


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
