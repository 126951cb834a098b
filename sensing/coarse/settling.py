"""From a first solution to a settled one: associate again with the user known, leave out what spoils the fit."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.candidates import Candidates, merge
from sensing.coarse.cluster_fit import KnownUser
from sensing.coarse.clusters import Clusters, form_clusters
from sensing.coarse.direct import lines_of_sight
from sensing.coarse.echoes import echoes
from sensing.coarse.least_squares import Solution, solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.normal_equations import LocationPrior, inverse_information
from sensing.coarse.rays import Rays, without
from sensing.coarse.repair import fit_fails, repair
from sensing.containers import Deployment


class Settings(NamedTuple):
    """How hard to search."""

    modes: int  # user modes tried by least squares for each alignment
    passes: int  # associations repeated with the user known
    alignments: int  # alignments of the stations that are tried
    repairs: int  # leave-one-out rounds for fits that fail their test


class Bounces(NamedTuple):
    """What departs from single bounces of exact plane waves."""

    multi_bounce: float = 0.0  # share of clusters that are no points
    line_of_sight: bool = False  # stations may see the user
    slack_m: float = 0.0  # standard deviation of the model's own error in a range [m]
    planes: Tensor | None = None  # [plane 4] walls of the site, see `mirrors`; none is known: None

    @property
    def expected(self) -> bool:
        """Whether paths may be other than single bounces."""
        return self.multi_bounce > 0 or self.line_of_sight


SINGLE = Bounces()
"""Single bounces alone."""


def settle(
    candidates: Candidates,
    rays: Rays,
    deployment: Deployment,
    settings: Settings,
    bounces: Bounces = SINGLE,
    prior: LocationPrior | None = None,
) -> Candidates:
    """Associate again with the user known as long as it helps, then repair fits that fail their test.

    Args:
        candidates: first solutions; their evidence stays as it is.
        rays: paths and pairs, one row for each candidate.
        deployment: stations and priors.
        settings: passes and repairs.
        bounces: what the paths may be.
        prior: of user and offsets, [n 3+bs]; that of the deployment when None.
    """
    proper = bool(torch.isfinite(deployment.clock_offset_std))
    for _ in range(settings.passes):
        start = candidates.solution
        clusters, line = _associate(start, rays, deployment, bounces)
        data = cluster_measurements(clusters.path, rays.paths, rays.weights, line)
        solution = solve_location(data, start.ue_position, start.offset_m, clusters.position, deployment, prior=prior)
        trial = candidates._replace(path=clusters.path, direct=line, solution=solution)
        candidates = merge(_helps(trial, candidates, proper), trial, candidates)
    path, solution, direct = repair(
        candidates.path,
        candidates.solution,
        rays.paths,
        rays.weights,
        deployment,
        settings.repairs,
        candidates.direct,
        prior,
    )
    return candidates._replace(path=path, direct=direct, solution=solution)


def _helps(new: Candidates, old: Candidates, proper: bool) -> Tensor:
    """Whether an association is better [n]: it must not break a fit that passes its test."""
    lines, old_lines = ((each.direct >= 0).sum(-1) for each in (new, old))
    members, old_members = ((each.path >= 0).sum((-2, -1)) for each in (new, old))
    fails, old_fails = (fit_fails(each.solution.cost, each.path, proper, each.direct) for each in (new, old))
    more = (members + lines >= old_members + old_lines) | (lines > old_lines)
    return ~fails & (old_fails | more) | (old_fails & (new.solution.cost < old.solution.cost))


def _associate(solution: Solution, rays: Rays, deployment: Deployment, bounces: Bounces) -> tuple[Clusters, Tensor]:
    """Clusters of all paths and lines of sight [n bs], given the user and the offsets of a solution."""
    line = torch.full_like(solution.offset_m, -1, dtype=torch.int64)
    if bounces.line_of_sight:
        line = lines_of_sight(solution, rays.paths, deployment, bounces.slack_m)
        rays = without(rays, line)
    beta = solution.offset_m[:, 0]
    covariance = inverse_information(solution.information)[:, :4, :4].clone()
    covariance[:, 3, 3] += bounces.slack_m**2
    user = KnownUser(solution.ue_position, beta, covariance)
    clusters = form_clusters(rays.pairs, solution.offset_m - beta[:, None], rays.paths, deployment, user)
    if bounces.expected:
        # an image in the ground has the legs of its original but for centimetres, and pulls the user down
        echo = echoes(clusters, deployment, bounces.slack_m)
        path = clusters.path.masked_fill(echo[..., None], -1)
        clusters = clusters._replace(path=path, mask=clusters.mask & ~echo)
    return clusters, line
