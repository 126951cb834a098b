"""Goodness of fit of a location, and its repair: what spoils the chi-square test is left out."""

import torch
from scipy.stats import chi2 as chi2_law
from torch import Tensor

from sensing.coarse.least_squares import Solution, solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.normal_equations import LocationPrior
from sensing.coarse.rays import take
from sensing.containers import Deployment, PathEstimates

P_VALUE = 1e-4  # fits less probable than this are repaired, and flagged if they cannot be


def degrees_of_freedom(path: Tensor, offset_prior: bool = True, direct: Tensor | None = None) -> Tensor:
    """Residual degrees of freedom of a fit, [*].

    Three per path, less three per scatterer and for the user; with a flat prior less one for every station's clock too.

    Args:
        path: [* cluster bs] member paths, -1 for none.
        offset_prior: the clock offsets have a proper prior.
        direct: [* bs] lines of sight, -1 for none; None: none at all.
    """
    member = path >= 0
    line = torch.zeros_like(member[..., 0, :]) if direct is None else direct >= 0
    freedom = 3 * member.sum((-2, -1)) + 3 * line.sum(-1) - 3 * member.any(-1).sum(-1) - 3
    if not offset_prior:
        freedom = freedom - (member.any(-2) | line).sum(-1)
    return freedom.clamp_min(1)


def fit_fails(cost: Tensor, path: Tensor, offset_prior: bool = True, direct: Tensor | None = None) -> Tensor:
    """Whether the chi-square test rejects a fit, [*] bool; arguments as in `degrees_of_freedom`."""
    threshold = torch.as_tensor(chi2_law.isf(P_VALUE, degrees_of_freedom(path, offset_prior, direct).cpu().numpy()))
    return cost > threshold.to(cost)


def repair(
    path: Tensor,
    solution: Solution,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    rounds: int,
    direct: Tensor | None = None,
    prior: LocationPrior | None = None,
) -> tuple[Tensor, Solution, Tensor]:
    """Leave out the cluster or the path whose removal helps most, until the chi-square test passes.

    Args:
        path: [b cluster bs] member paths, -1 for none.
        solution: its least-squares fit.
        paths: detected paths.
        weights: [b bs path 2] fusion weights or None.
        deployment: stations and priors.
        rounds: most clusters or paths left out.
        direct: [b bs] lines of sight, -1 for none; None: none at all.
        prior: of user and offsets, [b 3+bs]; that of the deployment when None.

    Returns:
        Member paths, fit and lines of sight; unchanged for scenes that pass.
    """
    direct = torch.full_like(path[:, 0], -1) if direct is None else direct
    proper = bool(torch.isfinite(deployment.clock_offset_std))
    for _ in range(rounds):
        present = (path >= 0).any(-1).sum(-1) + (direct >= 0).sum(-1)
        rows = (fit_fails(solution.cost, path, proper, direct) & (present > 1)).nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        old = take(solution, rows)
        variants, lines = _leave_one_out(path[rows], direct[rows])  # [f variant k bs], [f variant bs]
        count = variants.shape[1]
        each = rows.repeat_interleave(count)
        data = cluster_measurements(
            variants.flatten(0, 1), take(paths, each), None if weights is None else weights[each], lines.flatten(0, 1)
        )
        own = None if prior is None else take(prior, each)
        start = take(old, torch.arange(len(rows), device=rows.device).repeat_interleave(count))
        trial = solve_location(data, start.ue_position, start.offset_m, start.position, deployment, steps=8, prior=own)
        trial = Solution(*(field.unflatten(0, (len(rows), count)) for field in trial))
        # every constraint given up costs as much as a just acceptable residual
        freedom = degrees_of_freedom(path[rows], proper, direct[rows])
        lost = freedom[:, None] - degrees_of_freedom(variants, proper, lines)
        best = (trial.cost + 4.0 * lost).argmin(1)
        pick = torch.arange(len(rows), device=rows.device)
        chosen = Solution(*(field[pick, best] for field in trial))
        path, direct = path.index_copy(0, rows, variants[pick, best]), direct.index_copy(0, rows, lines[pick, best])
        solution = Solution(*(whole.index_copy(0, rows, new) for whole, new in zip(solution, chosen, strict=True)))
    return path, solution, direct


def _leave_one_out(path: Tensor, direct: Tensor) -> tuple[Tensor, Tensor]:
    """Memberships [f k bs] without one cluster, or one path of a cluster, or one line of sight [f bs].

    Returns:
        Variants [f k + k*bs + bs k bs] of the clusters and [f k + k*bs + bs bs] of the lines of sight.
    """
    k, bs = path.shape[-2:]
    one_cluster = torch.eye(k, dtype=torch.bool, device=path.device)[:, :, None].expand(k, k, bs)
    one_path = torch.eye(k * bs, dtype=torch.bool, device=path.device).reshape(k * bs, k, bs)
    drop = torch.cat([one_cluster, one_path, torch.zeros_like(one_path[:1]).expand(bs, k, bs)])
    drop_line = torch.zeros(len(drop), bs, dtype=torch.bool, device=path.device)
    drop_line[-bs:] = torch.eye(bs, dtype=torch.bool, device=path.device)
    variants = path[:, None].masked_fill(drop, -1)
    # a scatterer seen by one station is no cluster
    lonely = (variants >= 0).sum(-1, keepdim=True) < 2
    return variants.masked_fill(lonely, -1), direct[:, None].masked_fill(drop_line, -1)
