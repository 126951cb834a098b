"""Association and location together: every user mode gathers its own clusters, then the evidence decides."""

import torch
from torch import Tensor

from sensing.coarse.aligned import Aligned, align_and_cluster
from sensing.coarse.candidates import Candidates, Located, decide, merge, promising
from sensing.coarse.evidence import association_evidence, clock_allowance
from sensing.coarse.least_squares import solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.pairs import wrap
from sensing.coarse.rays import Rays, take
from sensing.coarse.second_look import grid_candidates, twin_candidates
from sensing.coarse.settling import Settings, settle
from sensing.coarse.user_search import cluster_residuals, search_user
from sensing.containers import Deployment, map_tensors

SINGLE_GATE = 12.0  # squared residual of one cluster's excess (1 degree of freedom) that still counts as agreeing
DOUBT = 15.0  # evidence, in nats, by which the location may fall behind the clusters formed without a user
TWIN_GAP = 15.0  # evidence, in nats, by which a twin may trail before it has gathered its own clusters
SLACK = 1e-3  # of the evidence of one solution refined twice
VOTE_GAP = 8.0  # votes, in nats, by which an alignment may trail the best and still be tried


def locate(rays: Rays, deployment: Deployment, settings: Settings) -> Located:
    """Associate and locate where every path is a single bounce.

    Every alignment proposes user modes, every mode gathers its own associations and leaves out what spoils its fit, and
    only then the evidence decides: before, a mode that fits few clusters well may look better than the true one.
    """
    scenes = len(rays.paths.mask)
    aligned = align_and_cluster(rays, deployment, settings.alignments, VOTE_GAP)
    first = _first_candidates(aligned, take(rays, aligned.scene), deployment, settings.modes)
    found = _compete(first, rays, deployment, settings)
    best = take(aligned, torch.searchsorted(aligned.scene, torch.arange(scenes, device=aligned.scene.device)))
    promised = best.clusters.log_ratio.sum(-1) - clock_allowance(deployment)
    rows = (found.evidence < promised - DOUBT).nonzero().squeeze(-1)
    if len(rows):
        _, offset, clusters = take(best, rows)
        own = take(rays, rows)
        again = grid_candidates(clusters, offset, own, deployment)
        found = _better(found, _compete(again, own, deployment, settings), rows)
    twins = twin_candidates(found.path, found.solution, rays.paths, rays.weights, deployment)
    several = promising(twins, scenes, TWIN_GAP).scene.bincount(minlength=scenes) > 1
    rows = several.nonzero().squeeze(-1)
    if len(rows):
        twins = take(twins, several[twins.scene].nonzero().squeeze(-1))
        twins = twins._replace(scene=torch.searchsorted(rows, twins.scene))
        found = _better(found, _compete(twins, take(rays, rows), deployment, settings), rows, SLACK)
    return found


def _better(old: Located, new: Located, rows: Tensor, slack: float = 0.0) -> Located:
    """Take the new results of some scenes where their evidence is higher, or lower by no more than the slack."""
    better, index = torch.zeros_like(old.evidence, dtype=torch.bool), torch.zeros_like(old.path[:, 0, 0])
    better[rows] = new.evidence > old.evidence[rows] - slack
    index[rows] = torch.arange(len(rows), device=rows.device)
    new = take(new, index)
    # a rival that the old search knew remains one of the same place
    known = (old.rival != 0).any(-1) & (new.rival == 0).all(-1)
    return merge(better, new._replace(rival=torch.where(known[:, None], old.rival, new.rival)), old)


def _compete(candidates: Candidates, rays: Rays, deployment: Deployment, settings: Settings) -> Located:
    """Settle and repair the promising candidates, and choose the best of every scene."""
    scenes = len(rays.paths.mask)
    candidates = promising(candidates, scenes)
    own = take(rays, candidates.scene)
    candidates = settle(candidates, own, deployment, settings)
    evidence = association_evidence(candidates.path, candidates.solution, own.paths, deployment)
    return decide(candidates._replace(evidence=evidence), scenes)


def _first_candidates(aligned: Aligned, rays: Rays, deployment: Deployment, most: int) -> Candidates:
    """The best user modes of every alignment, each fitted to the clusters that agree with it."""
    scene, offset, clusters = aligned
    modes = map_tensors(search_user(clusters, offset, deployment), lambda field: field[:, :most])
    squared = cluster_residuals(modes.ue_position, modes.common_offset, clusters, deployment)[0]
    agrees = (squared < SINGLE_GATE) & clusters.mask[:, None]  # [n mode k]
    path = clusters.path[:, None].masked_fill(~agrees[..., None], -1).flatten(0, 1)
    row = torch.arange(len(scene), device=scene.device).repeat_interleave(modes.cost.shape[1])
    own, start = take(rays, row), wrap(offset[row] + modes.common_offset.flatten()[:, None], deployment.range_ambiguity)
    data = cluster_measurements(path, own.paths, own.weights)
    solution = solve_location(data, modes.ue_position.flatten(0, 1), start, clusters.position[row], deployment)
    evidence = association_evidence(path, solution, own.paths, deployment)
    return Candidates(scene[row], path, torch.full_like(path[:, 0], -1), solution, evidence)
