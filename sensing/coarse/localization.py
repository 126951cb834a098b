"""From detected paths to a coarse geometry: associate, locate, associate again with the user known, repair, report.

The stages: ray pairs, offset vote, clusters by evidence, exhaustive user search, weighted least squares on the paths.
Whatever disagrees with the located user is left out first and offered again afterwards; a chi-square test with
leave-one-out guards the result, so that failures announce themselves in the flags.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.bounces import locate_bounces
from sensing.coarse.candidates import Located
from sensing.coarse.doubts import deployment_flags, outside_region, valley_end
from sensing.coarse.inflation import inflated
from sensing.coarse.least_squares import Solution, differentiable_step
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.modes import locate
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.pairs import ray_pairs, region_box
from sensing.coarse.rays import Rays, take
from sensing.coarse.repair import degrees_of_freedom, fit_fails
from sensing.coarse.robust import student_location
from sensing.coarse.settling import Bounces, Settings
from sensing.coarse.site_map import learn_planes, possible_bounces
from sensing.containers import Deployment, Flag, Geometry, PathEstimates, map_tensors
from sensing.errors import ConfigError
from sensing.fusion.weights import FusionWeights
from sensing.resolution import natural_scales

SLACK = 1.6  # error of a cluster's excess over that of one path: its members err in the same way
ACROSS = 0.5  # error of a direction over that of a range, both in resolution cells


class CoarseLocation(NamedTuple):
    """Result of the coarse stage."""

    geometry: Geometry
    solution: Solution
    path: Tensor  # [* node bs] member path of each node, -1 for none
    direct: Tensor  # [* bs] line of sight of each station, -1 for none; by the ground: path plus number of paths
    cost_per_dof: Tensor  # [*]
    flags: Tensor  # [*] int64, bits of containers.Flag
    rival: Tensor  # [* xyz] from the user to another mode that fits about as well; zero where there is none


def with_slot(paths: PathEstimates) -> PathEstimates:
    """The paths, or one empty slot where there is none: it keeps the reductions over paths defined."""
    if paths.mask.shape[-1] > 0:
        return paths
    return map_tensors(paths, lambda field: field.new_zeros(*field.shape[:2], 1, *field.shape[3:]))


def _with_usable_ranges(paths: PathEstimates) -> PathEstimates:
    """Without the paths whose range is no number, or so long that its rounding error exceeds its standard deviation.

    Modulo the ambiguity such ranges are all alike, and paths that are all alike are easily associated.
    """
    rounding = torch.finfo(paths.range_m.dtype).eps * paths.range_m.abs()
    usable = rounding.square() <= paths.covariance[..., 0, 0]
    return paths._replace(range_m=torch.where(usable, paths.range_m, 0.0), mask=paths.mask & usable)


class CoarseLocalizer(torch.nn.Module):
    """Locates the user from the detected paths of all stations.

    Args:
        fusion: weights with which paths enter the least squares; analytic (all one) when None.
        modes: user modes tried by least squares; in streets the best alone.
        alignments: alignments of the stations' clocks that may propose user modes.
        passes: associations with the user known.
        max_repairs: leave-one-out rounds for fits that fail their test.
        pair_gate: chi-square gate of ray pairs.
        model_error: standard deviation of the plane-wave model's own error in ranges and directions, in resolution
            cells (c / bandwidth; wavelength over aperture): 0 for simulated paths, about 0.05 for ray-traced or
            measured channels, whose unresolved neighbours shift a path by more than the noise does.
        multi_bounce: share of the clusters that are no point seen directly, but the work of further bounces: 0 for
            simulated paths, about 0.8 in streets.
        line_of_sight: stations may see the user, straight or by the ground (the floor of the region). A scatterer near
            the straight line looks the same, hence to be left off where no station can.
        student_dof: degrees of freedom of Student t errors of the paths in the last fit (about 3 is robust); Gaussian
            when None.
        walls: most walls of a site that are learned from scenes whose user is known (`learn_site`); 0, or none learned:
            nothing is known of the site.

    Raises:
        ConfigError: a share or an error outside its range, or walls where paths bounce only once.
    """

    planes: Tensor

    def __init__(
        self,
        fusion: FusionWeights | None = None,
        modes: int = 5,
        alignments: int = 4,
        passes: int = 2,
        max_repairs: int = 3,
        pair_gate: float = 16.0,
        model_error: float = 0.0,
        multi_bounce: float = 0.0,
        line_of_sight: bool = False,
        student_dof: float | None = None,
        walls: int = 0,
    ) -> None:
        super().__init__()
        for key, value, limit in (("model_error", model_error, math.inf), ("multi_bounce", multi_bounce, 1.0)):
            if not 0.0 <= value < limit:
                raise ConfigError(f"{key} must be in [0, {limit}), got {value}")
        self.fusion, self.model_error = fusion, model_error
        if student_dof is not None and not student_dof > 0:
            raise ConfigError(f"student_dof must be positive or null, got {student_dof}")
        self.multi_bounce, self.line_of_sight, self.student_dof = multi_bounce, line_of_sight, student_dof
        if walls < 0 or (walls > 0 and multi_bounce == 0):
            raise ConfigError(f"walls must be >= 0, and 0 where multi_bounce is 0, got {walls}")
        self.register_buffer("planes", torch.zeros(walls, 4, dtype=torch.float64), persistent=walls > 0)
        self.settings, self.pair_gate = Settings(modes, passes, alignments, max_repairs), pair_gate

    def forward(self, paths: PathEstimates, deployment: Deployment) -> CoarseLocation:
        """Coarse geometry of every scene.

        Args:
            paths: detected paths [b bs path], one batch axis.
            deployment: stations and priors.

        Returns:
            CoarseLocation; differentiable in the fusion weights through the last least-squares step.
        """
        paths = with_slot(paths)
        cell = natural_scales(deployment)
        error = self.model_error * float(cell.metre)
        paths = inflated(_with_usable_ranges(paths), error, self.model_error * ACROSS * float(cell.radian))
        with torch.no_grad():
            weights = None if self.fusion is None else self.fusion(paths)
            rays = Rays(paths, weights, ray_pairs(paths, deployment, self.pair_gate))
            walls = self.planes if bool((self.planes[:, :3] != 0).any()) else None
            bounces = Bounces(self.multi_bounce, self.line_of_sight, SLACK * error, walls)
            if bounces.expected:
                found = locate_bounces(rays, deployment, self.settings, bounces)
            else:
                found = locate(rays, deployment, self.settings)
            path, direct, solution, _, rival = found
            if self.student_dof is not None:
                solution = student_location(path, solution, paths, weights, deployment, self.student_dof, direct)
            single = (rival == 0).all(-1, keepdim=True)
            rival = torch.where(single, valley_end(path, solution, paths, weights, deployment, direct), rival)
        if self.fusion is not None and torch.is_grad_enabled():
            data = cluster_measurements(path, paths, self.fusion(paths), direct)
            stepped = differentiable_step(data, solution.ue_position, solution.offset_m, solution.position, deployment)
            solution = solution._replace(ue_position=stepped[0], offset_m=stepped[1], position=stepped[2])
        return self._report(found._replace(solution=solution, rival=rival), paths, deployment)

    def learn_site(self, paths: PathEstimates, ue: Tensor, offset_m: Tensor, deployment: Deployment) -> int:
        """Learn the walls of a site; replaces what was learned before.

        Args:
            paths: detected paths [b bs path].
            ue: the users [b xyz] [m]; scenes whose user is NaN do not count.
            offset_m: their clock offsets times c [b bs] [m].
            deployment: stations.

        Returns:
            Number of walls found.
        """
        known = torch.isfinite(ue).all(-1) & torch.isfinite(offset_m).all(-1)
        found = possible_bounces(take(paths, known), ue[known], offset_m[known], deployment)
        self.planes.copy_(learn_planes(found, int(known.sum()), len(self.planes)))
        return int((self.planes[:, :3] != 0).any(-1).sum())

    def _report(self, found: Located, paths: PathEstimates, deployment: Deployment) -> CoarseLocation:
        """Geometry, goodness of fit and flags."""
        path, direct, solution, _, rival = found
        member = path >= 0
        exists = member.any(-1)
        order, free = free_paths(path, paths)
        geometry = Geometry(
            ue_position=solution.ue_position,
            offset_m=solution.offset_m,
            node_position=solution.position,
            node_mask=exists,
            member=member.mT,
            free_range_m=paths.range_m.gather(-1, order),
            free_direction=paths.direction.gather(-2, order[..., None].expand(*order.shape, 3)),
            free_mask=free,
        )
        proper = bool(torch.isfinite(deployment.clock_offset_std))
        flags = solution_flags(paths, path, solution, deployment, direct)
        flags = flags | torch.where((rival != 0).any(-1), Flag.SECOND_MODE, 0)
        cost = solution.cost / degrees_of_freedom(path, proper, direct)
        return CoarseLocation(geometry, solution, path, direct, cost, flags, rival)


def free_paths(path: Tensor, paths: PathEstimates) -> tuple[Tensor, Tensor]:
    """Paths [b bs free] that are no members [b node bs] of a node, and which of them exist [b bs free] bool."""
    member = path >= 0
    used = torch.zeros_like(paths.mask)
    scene = torch.arange(len(path), device=path.device)[:, None, None].expand_as(path)
    station = torch.arange(path.shape[-1], device=path.device).expand_as(path)
    used[scene[member], station[member], path[member]] = True
    free = paths.mask & ~used
    width = max(int(free.sum(-1).max()), 1)
    order = free.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :width]
    return order, free.gather(-1, order)


def solution_flags(
    paths: PathEstimates, path: Tensor, solution: Solution, deployment: Deployment, direct: Tensor | None = None
) -> Tensor:
    """Bits of `containers.Flag` that a solution shows by itself, [b] int64.

    Args:
        paths: detected paths.
        path: [b node bs] member paths, -1 for none.
        solution: the location that rests on them.
        deployment: stations and priors.
        direct: [b bs] lines of sight, -1 for none; None: none at all.
    """
    lines = 0 if direct is None else (direct >= 0).sum(-1)
    proper = bool(torch.isfinite(deployment.clock_offset_std))
    flags = torch.zeros(len(path), dtype=torch.int64, device=path.device)
    for bit, condition in (
        (Flag.NO_PATHS, ~paths.mask.any(-1).any(-1)),
        # user and common offset are four unknowns; three and a known height would leave nothing to check them. A line
        # of sight gives three equations for the one offset that it brings along
        (Flag.TOO_FEW_SHARED, ((path >= 0).sum(-1) >= 2).sum(-1) + 2 * lines < 4),
        (Flag.POOR_FIT, fit_fails(solution.cost, path, proper, direct)),
        (Flag.UNOBSERVABLE, _unobservable(solution, deployment)),
        (Flag.OUTSIDE_REGION, outside_region(solution, deployment)),
    ):
        flags = flags | torch.where(condition, bit, 0)
    return flags | deployment_flags(deployment)


def _unobservable(solution: Solution, deployment: Deployment) -> Tensor:
    """Whether the user's standard deviation reaches a quarter of the region: nothing but the prior holds it."""
    variance = inverse_information(solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1)
    box = region_box(deployment)
    return ~(variance < (0.25 * (box[1] - box[0]).norm()).square())
