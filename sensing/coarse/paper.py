"""Coarse location as paper 1 publishes it: cliques of rays, triangulation, alternation, private scatterers.

The stages are modules of their own (`cliques`, `triangulation`, `alternating`, `private_scatterers`); this one puts
them in a row and reports like `localization.CoarseLocalizer`, so that either fits into the estimator. Nothing is
repaired and no second mode is looked for: what the association gets wrong shows in the flags alone.
"""

import torch
from torch import Tensor

from sensing.coarse.alternating import locate_alternating
from sensing.coarse.cliques import RayClusters, cluster_rays
from sensing.coarse.cluster_fit import gather_members
from sensing.coarse.least_squares import Solution, solve_location
from sensing.coarse.localization import CoarseLocation, solution_flags, with_slot
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.pairs import region_box
from sensing.coarse.private_scatterers import private_scatterers
from sensing.coarse.repair import degrees_of_freedom
from sensing.containers import Deployment, Geometry, PathEstimates
from sensing.errors import ConfigError
from sensing.units import SPEED_OF_LIGHT

THRESHOLD = 0.0075
"""Largest distance of two rays over the diagonal of the region: tuned on validation scenes of the hall (0.43 m) and of
the urban square (1.06 m); larger joins more strangers, smaller tears scatterers apart."""


class PaperLocalizer(torch.nn.Module):
    """Locates the user by Algorithms 1 and 2 of paper 1.

    Args:
        threshold_m: largest distance of two rays that belong together [m]; 3/4 % of the region's diagonal when None.
        min_views: stations that must see a shared scatterer (all, if there are fewer); more means fewer false alarms.
        range_weighted: second pass of the triangulation weighted by 1 / range^2.
        prior: use the Gaussian prior of the clock offsets; as published there is none. Clocks known to a tenth of
            `range_std_m` are taken as known in either case.
        range_std_m: standard deviation of a range residual [m], which balances that prior.
        rounds: most alternations of user and offsets.
        first_step_m: first trial step of the user [m].
        private: keep the paths of a single station as private scatterers; otherwise they are dropped as false alarms.

    Raises:
        ConfigError: a value lies outside its domain.
    """

    def __init__(
        self,
        threshold_m: float | None = None,
        min_views: int = 3,
        range_weighted: bool = True,
        prior: bool = False,
        range_std_m: float = 0.3,
        rounds: int = 500,
        first_step_m: float = 1.0,
        private: bool = True,
    ) -> None:
        super().__init__()
        positive = {"threshold_m": threshold_m, "range_std_m": range_std_m, "first_step_m": first_step_m}
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if min_views < 2 or rounds < 1:
            raise ConfigError(f"need min_views >= 2 and rounds >= 1, got {min_views}, {rounds}")
        self.threshold_m, self.min_views, self.range_weighted = threshold_m, min_views, range_weighted
        self.prior, self.range_std_m, self.rounds, self.first_step_m = prior, range_std_m, rounds, first_step_m
        self.private = private

    @torch.no_grad()
    def forward(self, paths: PathEstimates, deployment: Deployment) -> CoarseLocation:
        """Coarse geometry of every scene; nodes are shared scatterers, then private ones.

        Args:
            paths: detected paths [b bs path], one batch axis.
            deployment: stations and priors.
        """
        paths = with_slot(paths.validate(deployment))
        known = bool(SPEED_OF_LIGHT * deployment.clock_offset_std < 0.1 * self.range_std_m)
        threshold_m = self.threshold_m
        if threshold_m is None:
            low, high = region_box(deployment)
            threshold_m = THRESHOLD * float((high - low).norm())
        clusters = cluster_rays(paths, deployment, threshold_m, self.min_views, self.range_weighted)
        fix = locate_alternating(
            clusters.position,
            gather_members(paths.range_m, clusters.path),
            clusters.path >= 0,
            deployment,
            prior=self.prior or known,
            range_std_m=self.range_std_m,
            rounds=self.rounds,
            first_step_m=self.first_step_m,
        )
        path, position = _all_scatterers(
            clusters, paths, fix.ue_position, fix.offset_m, deployment, paths.mask & self.private
        )
        # no step: the information and the residuals of the solution as it stands
        solution = solve_location(
            cluster_measurements(path, paths), fix.ue_position, fix.offset_m, position, deployment, steps=0
        )
        flags = solution_flags(paths, path, solution, deployment)
        proper = bool(torch.isfinite(deployment.clock_offset_std))
        return CoarseLocation(
            _located_geometry(path, solution),
            solution,
            path,
            torch.full_like(path[:, 0], -1),  # the paper knows no line of sight
            solution.cost / degrees_of_freedom(path, proper),
            flags,
            torch.zeros_like(solution.ue_position),
        )


def _all_scatterers(
    clusters: RayClusters,
    paths: PathEstimates,
    ue: Tensor,
    offset_m: Tensor,
    deployment: Deployment,
    candidates: Tensor,
) -> tuple[Tensor, Tensor]:
    """Member paths [b node bs] and positions [b node xyz] of shared and of private scatterers."""
    scenes, stations, count = paths.mask.shape
    path = torch.arange(count, device=ue.device)
    alone = candidates & ~(clusters.path.mT[..., None] == path).any(-2)
    lonely = private_scatterers(paths, alone, ue, offset_m, deployment)
    place, mask = lonely.position.flatten(1, 2), lonely.mask.flatten(1, 2)
    width = int(mask.sum(-1).max())
    order = mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :width]
    kept = mask.gather(-1, order)
    own = torch.arange(stations, device=ue.device) == (order // count)[..., None]
    single = torch.where(own & kept[..., None], (order % count)[..., None], -1)
    place = place.gather(1, order[..., None].expand(scenes, width, 3))
    return torch.cat([clusters.path, single], 1), torch.cat([clusters.position, place], 1)


def _located_geometry(path: Tensor, solution: Solution) -> Geometry:
    """Every scatterer is a point of the location domain; there are no free paths (one empty slot)."""
    scenes, _, stations = path.shape
    empty = solution.offset_m.new_zeros(scenes, stations, 1)
    axis = torch.eye(3, dtype=empty.dtype, device=empty.device)[0]
    return Geometry(
        ue_position=solution.ue_position,
        offset_m=solution.offset_m,
        node_position=solution.position,
        node_mask=(path >= 0).any(-1),
        member=(path >= 0).mT,
        free_range_m=empty,
        free_direction=axis.expand(scenes, stations, 1, 3),
        free_mask=torch.zeros_like(empty, dtype=torch.bool),
    )
