"""Least squares with a heavy-tailed loss: a path that is off counts less, none is left out.

The errors of paths are Student t with nu degrees of freedom, not Gaussian: iteratively reweighted least squares with
`w = (nu + 3) / (nu + r^T W r)` per path (the expectation of its precision, three dimensions), after Lange, Little and
Taylor, "Robust statistical modeling using the t distribution", JASA 84(408), 1989.
"""

from torch import Tensor

from sensing.coarse.least_squares import Solution, solve_location
from sensing.coarse.measurements import cluster_measurements, misfit
from sensing.containers import Deployment, PathEstimates
from sensing.geometry import bounce_ranges


def student_location(
    path: Tensor,
    solution: Solution,
    paths: PathEstimates,
    weights: Tensor | None,
    deployment: Deployment,
    nu: float,
    direct: Tensor | None = None,
    rounds: int = 8,
) -> Solution:
    """Refit a location under Student t errors of the paths of scatterers; lines of sight stay Gaussian.

    Args:
        path: [b cluster bs] member paths, -1 for none.
        solution: the least-squares fit from which to start.
        paths: detected paths.
        weights: [b bs path 2] fusion weights or None.
        deployment: stations and priors.
        nu: degrees of freedom; infinity gives the start back.
        direct: [b bs] lines of sight, -1 for none; None: none at all.
        rounds: reweightings.

    Returns:
        The fit. Its cost and information are those of the reweighted squares.
    """
    data = cluster_measurements(path, paths, weights, direct)
    for _ in range(rounds):
        ranges, k, _, _ = bounce_ranges(
            solution.position, solution.ue_position, deployment.bs_position, solution.offset_m
        )
        residual = misfit(ranges.mT, k.transpose(-3, -2), data, deployment)
        squared = (residual * (data.information @ residual[..., None]).squeeze(-1)).sum(-1)
        weight = (1.0 + 3.0 / nu) / (1.0 + squared / nu)
        fitted = data._replace(information=weight[..., None, None] * data.information)
        solution = solve_location(
            fitted, solution.ue_position, solution.offset_m, solution.position, deployment, steps=5
        )
    return solution
