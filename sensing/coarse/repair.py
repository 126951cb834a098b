"""Goodness of fit of a location, and its repair: what spoils the chi-square test is left out."""

from typing import TypeVar

import torch
from scipy.stats import chi2 as chi2_law
from torch import Tensor

from sensing.coarse.least_squares import Measurements, Solution, cluster_measurements, solve_location
from sensing.containers import Deployment, PathEstimates, map_tensors

T = TypeVar("T")

P_VALUE = 1e-4  # fits less probable than this are repaired, and flagged if they cannot be


def take(container: T, rows: Tensor) -> T:
    """Rows of every tensor of a NamedTuple."""
    return map_tensors(container, lambda tensor: tensor[rows])


def degrees_of_freedom(path: Tensor, offset_prior: bool = True) -> Tensor:
    """Residual degrees of freedom of a fit, [*].

    Three per path, less three per scatterer and for the user; with a flat prior less one for every station's clock too.

    Args:
        path: [* cluster bs] member paths, -1 for none.
        offset_prior: the clock offsets have a proper prior.
    """
    member = path >= 0
    freedom = 3 * member.sum((-2, -1)) - 3 * member.any(-1).sum(-1) - 3
    if not offset_prior:
        freedom = freedom - member.any(-2).sum(-1)
    return freedom.clamp_min(1)


def fit_fails(cost: Tensor, path: Tensor, offset_prior: bool = True) -> Tensor:
    """Whether the chi-square test rejects a fit, [*] bool; arguments as in `degrees_of_freedom`."""
    threshold = torch.as_tensor(chi2_law.isf(P_VALUE, degrees_of_freedom(path, offset_prior).cpu().numpy()))
    return cost > threshold.to(cost)


def repair(
    path: Tensor,
    solution: Solution,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    rounds: int,
) -> tuple[Tensor, Solution]:
    """Leave out the cluster or the path whose removal helps most, until the chi-square test passes.

    Args:
        path: [b cluster bs] member paths, -1 for none.
        solution: its least-squares fit.
        paths: detected paths.
        weights: [b bs path 2] fusion weights or None.
        deployment: stations and priors.
        rounds: most clusters or paths left out.

    Returns:
        Member paths and fit; unchanged for scenes that pass.
    """
    prior = bool(torch.isfinite(deployment.clock_offset_std))
    for _ in range(rounds):
        fails = fit_fails(solution.cost, path, prior) & ((path >= 0).any(-1).sum(-1) > 1)
        rows = fails.nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        sub, old = path[rows], take(solution, rows)
        variants = _leave_one_out(sub)  # [f variant k bs]
        count = variants.shape[1]
        sub_paths = take(paths, rows)
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
        score = trial.cost + 4.0 * (degrees_of_freedom(sub, prior)[:, None] - degrees_of_freedom(variants, prior))
        best = score.argmin(1)
        pick = torch.arange(len(rows), device=rows.device)
        chosen = Solution(*(field[pick, best] for field in trial))
        path = path.index_copy(0, rows, variants[pick, best])
        solution = Solution(*(old.index_copy(0, rows, new) for old, new in zip(solution, chosen, strict=True)))
    return path, solution


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
