"""From detected paths to a coarse geometry: associate, locate, associate again with the user known, repair, report.

The stages: ray pairs, offset vote, clusters by evidence, exhaustive user search, weighted least squares on the paths.
Whatever disagrees with the located user is left out first and offered again afterwards; a chi-square test with
leave-one-out guards the result, so that failures announce themselves in the flags.
"""

from typing import NamedTuple, TypeVar

import torch
from scipy.stats import chi2 as chi2_law
from torch import Tensor

from sensing.coarse.alignment import align_stations
from sensing.coarse.clusters import Clusters, KnownUser, form_clusters
from sensing.coarse.least_squares import (
    Measurements,
    Solution,
    cluster_measurements,
    differentiable_step,
    inverse_information,
    location_prior,
    solve_location,
)
from sensing.coarse.pairs import RayPairs, ray_pairs, region_box, wrap
from sensing.coarse.user_search import cluster_residuals, search_user
from sensing.containers import Deployment, Flag, Geometry, PathEstimates, map_tensors
from sensing.fusion.weights import FusionWeights

T = TypeVar("T")

SINGLE_GATE = 12.0  # squared residual of one cluster's excess (1 degree of freedom) that still counts as agreeing
REPEAT_M = 0.2  # user modes closer than this [m] are one
HOPELESS = 120.0  # twice the evidence, in nats, that further associations do not make up for
P_VALUE = 1e-4  # fits less probable than this are repaired, and flagged if they cannot be


class CoarseLocation(NamedTuple):
    """Result of the coarse stage."""

    geometry: Geometry
    solution: Solution
    path: Tensor  # [* node bs] member path of each node, -1 for none
    cost_per_dof: Tensor  # [*]
    flags: Tensor  # [*] int64, bits of containers.Flag
    rival: Tensor  # [* xyz] from the user to another mode that fits about as well; zero where there is none


def _take(container: T, rows: Tensor) -> T:
    return map_tensors(container, lambda tensor: tensor[rows])


def _mode(solutions: Solution, mode: int) -> Solution:
    return Solution(*(field[:, mode] for field in solutions))


def _one_slot(field: Tensor) -> tuple[int, ...]:
    return (*field.shape[:2], 1, *field.shape[3:])


def _merge(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (old.ndim - 1)), new, old)


def degrees_of_freedom(path: Tensor) -> Tensor:
    """Degrees of freedom of a fit with offset prior: three per path, less three per scatterer and for the user, [*]."""
    member = path >= 0
    return (3 * member.sum((-2, -1)) - 3 * member.any(-1).sum(-1) - 3).clamp_min(1)


def fit_fails(cost: Tensor, path: Tensor) -> Tensor:
    """Whether the chi-square test rejects a fit, [*] bool."""
    threshold = torch.as_tensor(chi2_law.isf(P_VALUE, degrees_of_freedom(path).cpu().numpy()))
    return cost > threshold.to(cost)


class CoarseLocalizer(torch.nn.Module):
    """Locates the user from the detected paths of all stations.

    Args:
        fusion: weights with which paths enter the least squares; analytic (all one) when None.
        modes: user modes tried by least squares.
        passes: associations with the user known.
        max_repairs: leave-one-out rounds for fits that fail their test.
        pair_gate: chi-square gate of ray pairs.
    """

    def __init__(
        self,
        fusion: FusionWeights | None = None,
        modes: int = 3,
        passes: int = 2,
        max_repairs: int = 3,
        pair_gate: float = 16.0,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.modes, self.passes, self.max_repairs, self.pair_gate = modes, passes, max_repairs, pair_gate

    def forward(self, paths: PathEstimates, deployment: Deployment) -> CoarseLocation:
        """Coarse geometry of every scene.

        Args:
            paths: detected paths [b bs path], one batch axis.
            deployment: stations and priors.

        Returns:
            CoarseLocation; differentiable in the fusion weights through the last least-squares step.
        """
        if paths.mask.shape[-1] == 0:  # one empty slot keeps the reductions over paths defined
            paths = map_tensors(paths, lambda field: torch.cat([field, field.new_zeros(_one_slot(field))], 2))
        with torch.no_grad():
            weights = None if self.fusion is None else self.fusion(paths)
            path, solution, rival = self._locate(paths, weights, deployment)
            path, solution = self._repair(path, solution, paths, weights, deployment)
        if self.fusion is not None and torch.is_grad_enabled():
            data = cluster_measurements(path, paths, self.fusion(paths))
            stepped = differentiable_step(data, solution.ue_position, solution.offset_m, solution.position, deployment)
            solution = solution._replace(ue_position=stepped[0], offset_m=stepped[1], position=stepped[2])
        return self._report(path, solution, rival, paths, deployment)

    def _locate(
        self, paths: PathEstimates, weights: Tensor | None, deployment: Deployment
    ) -> tuple[Tensor, Solution, Tensor]:
        """Associate and locate; returns member paths, solution and the way to a rival user mode [b xyz].

        Every mode gathers its own associations, and only then the evidence decides: before, a mode that fits few
        clusters well may look better than the true one.
        """
        box = region_box(deployment)
        pairs = ray_pairs(paths, deployment, self.pair_gate)
        alignment = align_stations(
            pairs, len(deployment.bs_position), deployment.range_ambiguity, (box[1] - box[0]).norm()
        )
        offset = alignment.offset_m[:, 0]
        clusters = form_clusters(pairs, offset, paths, deployment)
        starts, solutions, worthy = self._solve_modes(clusters, offset, paths, weights, deployment)
        path, solution, best = self._settle(pairs, starts[:, 0], _mode(solutions, 0), paths, weights, deployment)
        evidence, places = [best], [solution.ue_position]
        for mode in range(1, starts.shape[1]):
            rows = worthy[:, mode].nonzero().squeeze(-1)
            if len(rows) == 0:
                continue
            sub_weights = None if weights is None else weights[rows]
            start, sub_paths = _take(_mode(solutions, mode), rows), _take(paths, rows)
            settled = self._settle(_take(pairs, rows), starts[rows, mode], start, sub_paths, sub_weights, deployment)
            # back to all scenes; those without this mode read row 0 and are masked
            index = (worthy[:, mode].cumsum(0) - 1).clamp_min(0)
            other_path, other, trial = settled[0][index], _take(settled[1], index), settled[2][index]
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
        self,
        pairs: RayPairs,
        path: Tensor,
        solution: Solution,
        paths: PathEstimates,
        weights: Tensor | None,
        deployment: Deployment,
    ) -> tuple[Tensor, Solution, Tensor]:
        """Associate again with the user known, as long as it helps; last comes the log evidence of the result [b]."""
        for _ in range(self.passes):
            clusters = self._associate_again(pairs, solution, paths, deployment)
            trial = self._solve(clusters.path, solution, clusters.position, paths, weights, deployment)
            members, trial_members = ((p >= 0).sum((-2, -1)) for p in (path, clusters.path))
            fails, trial_fails = fit_fails(solution.cost, path), fit_fails(trial.cost, clusters.path)
            # a re-association must not break a fit that passes its test
            better = ~trial_fails & (fails | (trial_members >= members)) | (fails & (trial.cost < solution.cost))
            path, solution = _merge_solutions(better, clusters.path, trial, path, solution)
        evidence = self._associate_again(pairs, solution, paths, deployment).log_ratio.sum(-1)
        prior = location_prior(deployment)
        state = torch.cat([solution.ue_position, solution.offset_m], -1)
        evidence = evidence - 0.5 * (prior.precision * (state - prior.mean).square()).sum(-1)
        return path, solution, torch.nan_to_num(evidence, nan=-torch.inf)

    def _solve_modes(
        self, clusters: Clusters, offset: Tensor, paths: PathEstimates, weights: Tensor | None, deployment: Deployment
    ) -> tuple[Tensor, Solution, Tensor]:
        """Least squares from the best user modes, each with the clusters that agree with it: [b mode ...].

        Best first; the last output [b mode] tells which modes are no repeats of a better one and not hopeless.
        """
        modes = map_tensors(search_user(clusters, offset, deployment), lambda field: field[:, : self.modes])
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

    def _associate_again(
        self, pairs: RayPairs, solution: Solution, paths: PathEstimates, deployment: Deployment
    ) -> Clusters:
        """Clusters of all paths, given the user and the offsets of a solution."""
        beta = solution.offset_m[:, 0]
        relative = solution.offset_m - beta[:, None]
        covariance = inverse_information(solution.information)[:, :4, :4]
        user = KnownUser(solution.ue_position, beta, covariance)
        return form_clusters(pairs, relative, paths, deployment, user)

    def _solve(
        self,
        path: Tensor,
        start: Solution,
        position: Tensor,
        paths: PathEstimates,
        weights: Tensor | None,
        deployment: Deployment,
    ) -> Solution:
        data = cluster_measurements(path, paths, weights)
        return solve_location(data, start.ue_position, start.offset_m, position, deployment)

    def _repair(
        self, path: Tensor, solution: Solution, paths: PathEstimates, weights: Tensor | None, deployment: Deployment
    ) -> tuple[Tensor, Solution]:
        """Leave out the cluster or the path whose removal helps most, until the chi-square test passes."""
        for _ in range(self.max_repairs):
            fails = fit_fails(solution.cost, path) & ((path >= 0).any(-1).sum(-1) > 1)
            rows = fails.nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            sub, old = path[rows], _take(solution, rows)
            variants = _leave_one_out(sub)  # [f variant k bs]
            count = variants.shape[1]
            sub_paths = _take(paths, rows)
            sub_weights = None if weights is None else weights[rows]
            data = Measurements(
                *(
                    torch.stack(field, 1)
                    for field in zip(
                        *(cluster_measurements(variants[:, v], sub_paths, sub_weights) for v in range(count)),
                        strict=True,
                    )
                )
            )
            trial = solve_location(
                data,
                old.ue_position[:, None].expand(-1, count, -1),
                old.offset_m[:, None].expand(-1, count, -1),
                old.position[:, None].expand(-1, count, -1, -1),
                deployment,
                steps=8,
            )
            # every constraint given up costs as much as a just acceptable residual
            score = trial.cost + 4.0 * (degrees_of_freedom(sub)[:, None] - degrees_of_freedom(variants))
            best = score.argmin(1)
            pick = torch.arange(len(rows), device=rows.device)
            chosen = Solution(*(field[pick, best] for field in trial))
            path = path.index_copy(0, rows, variants[pick, best])
            solution = Solution(*(old.index_copy(0, rows, new) for old, new in zip(solution, chosen, strict=True)))
        return path, solution

    def _report(
        self, path: Tensor, solution: Solution, rival: Tensor, paths: PathEstimates, deployment: Deployment
    ) -> CoarseLocation:
        """Geometry, goodness of fit and flags."""
        member = path >= 0
        exists = member.any(-1)
        used = torch.zeros_like(paths.mask)
        scene = torch.arange(len(path), device=path.device)[:, None, None].expand_as(path)
        station = torch.arange(path.shape[-1], device=path.device).expand_as(path)
        used[scene[member], station[member], path[member]] = True
        free = paths.mask & ~used
        width = max(int(free.sum(-1).max()), 1)
        order = free.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :width]
        geometry = Geometry(
            ue_position=solution.ue_position,
            offset_m=solution.offset_m,
            node_position=solution.position,
            node_mask=exists,
            member=member.mT,
            free_range_m=paths.range_m.gather(-1, order),
            free_direction=paths.direction.gather(-2, order[..., None].expand(*order.shape, 3)),
            free_mask=free.gather(-1, order),
        )
        cost = solution.cost
        # user and common offset are four unknowns; a known height takes one off
        needed = 4 if deployment.ue_height_range is None else 3
        flags = torch.zeros(len(path), dtype=torch.int64, device=path.device)
        for bit, condition in (
            (Flag.NO_PATHS, ~paths.mask.any(-1).any(-1)),
            (Flag.TOO_FEW_SHARED, exists.sum(-1) < needed),
            (Flag.POOR_FIT, fit_fails(cost, path)),
            (Flag.SECOND_MODE, (rival != 0).any(-1)),
            (Flag.UNOBSERVABLE, self._unobservable(solution, deployment)),
        ):
            flags = flags | torch.where(condition, bit, 0)
        return CoarseLocation(geometry, solution, path, cost / degrees_of_freedom(path), flags, rival)

    @staticmethod
    def _unobservable(solution: Solution, deployment: Deployment) -> Tensor:
        """Whether the user's standard deviation reaches a quarter of the region: nothing but the prior holds it."""
        prior = location_prior(deployment)
        variance = inverse_information(solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1)
        box = region_box(deployment)
        return ~(variance < (0.25 * (box[1] - box[0]).norm()).square()) | ~(prior.precision > 0).any()


def _leave_one_out(path: Tensor) -> Tensor:
    """All variants of memberships [f k bs] without one cluster or without one path of a cluster: [f k + k*bs k bs]."""
    k, bs = path.shape[-2:]
    drop_cluster = torch.eye(k, dtype=torch.bool, device=path.device)[:, :, None].expand(k, k, bs)
    drop_path = torch.eye(k * bs, dtype=torch.bool, device=path.device).reshape(k * bs, k, bs)
    drop = torch.cat([drop_cluster, drop_path])
    variants = torch.where(drop, torch.full_like(path[:, None], -1), path[:, None])
    # a scatterer seen by one station is no cluster
    lonely = (variants >= 0).sum(-1, keepdim=True) < 2
    return torch.where(lonely, torch.full_like(variants, -1), variants)


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
