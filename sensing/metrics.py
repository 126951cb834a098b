"""Figures of merit per scene, and statistics over scenes. Tensors in, tensors out, batch axes lead.

An error that an estimator could not give is NaN and stays NaN; `summarize` counts it. GOSPA after Rahmathullah,
Garcia-Fernandez and Svensson, "Generalized optimal sub-pattern assignment metric", FUSION 2017.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from torch import Tensor

from sensing.checks import check_shape
from sensing.errors import DomainError
from sensing.units import to_db


def position_error(estimated: Tensor, true: Tensor) -> Tensor:
    """Distance `||u_hat - u||`: [* xyz], [* xyz] to [*] [m]."""
    return torch.linalg.vector_norm(estimated - true, dim=-1)


def nmse_db(estimated: Tensor, channel: Tensor) -> Tensor:
    """Normalised squared error of a scene's channel, `10 log10(sum |h_hat - h|^2 / sum |h|^2)` over all stations.

    Args:
        estimated: [* bs ant sc].
        channel: [* bs ant sc] noise-free truth.

    Returns:
        [*] [dB].
    """
    error = (estimated - channel).abs().square().sum((-3, -2, -1))
    return to_db(error / channel.abs().square().sum((-3, -2, -1)))


def clock_offset_error(estimated: Tensor, true: Tensor, ambiguity_s: Tensor | float = torch.inf) -> Tensor:
    """Root mean square over the stations of the clock offset error.

    Args:
        estimated: [* bs] [s].
        true: [* bs] [s].
        ambiguity_s: delays are known modulo this, `1 / pilot spacing` [s]; errors are wrapped to half of it.

    Returns:
        [*] [s].
    """
    error = estimated - true
    period = torch.as_tensor(ambiguity_s, dtype=error.dtype, device=error.device)
    if bool(torch.isfinite(period)):
        error = error - period * torch.round(error / period)
    return error.square().mean(-1).sqrt()


def gospa(
    estimated: Tensor,
    estimated_mask: Tensor,
    true: Tensor,
    true_mask: Tensor,
    cutoff: float,
    order: float = 2.0,
    alpha: float = 2.0,
) -> Tensor:
    """Generalised optimal sub-pattern assignment distance of two sets of points.

    `(min over assignments of sum min(d, cutoff)^order + cutoff^order / alpha * |n - m|)^(1 / order)`; with alpha = 2 a
    missed and a false point cost `cutoff^order / 2` each.

    Args:
        estimated: [* node xyz] [m].
        estimated_mask: [* node] bool.
        true: [* point xyz] [m].
        true_mask: [* point] bool.
        cutoff: distance at which a pair counts as missed and false [m].
        order: exponent, >= 1.
        alpha: in (0, 2].

    Returns:
        [*] [m].
    """
    if not (cutoff > 0 and order >= 1 and 0 < alpha <= 2):
        raise DomainError(f"gospa needs cutoff > 0, order >= 1 and 0 < alpha <= 2, got {cutoff}, {order}, {alpha}")

    def one(distance: np.ndarray) -> float:
        cost = distance**order
        rows, columns = linear_sum_assignment(cost)
        penalty = cutoff**order / alpha * abs(distance.shape[0] - distance.shape[1])
        return float(cost[rows, columns].sum() + penalty) ** (1.0 / order)

    return _per_scene(one, estimated, estimated_mask, true, true_mask, cutoff)


def scatterer_error(
    estimated: Tensor, estimated_mask: Tensor, true: Tensor, visible: Tensor, cutoff: float, statistic: str = "rms"
) -> Tensor:
    """Position error of the scatterers that two or more stations see.

    Estimates are assigned to all visible scatterers, one to one and at the least sum of squared distances; then only
    the shared scatterers count, one without an estimate nearer than the cutoff at the cutoff.

    Args:
        estimated: [* node xyz] [m].
        estimated_mask: [* node] bool.
        true: [* point xyz] [m].
        visible: [* bs point] bool.
        cutoff: largest error of one scatterer [m].
        statistic: `rms` or `median` over the scatterers of a scene.

    Returns:
        [*] [m]; NaN for a scene without shared scatterers.
    """
    if statistic not in ("rms", "median"):
        raise DomainError(f"statistic must be rms or median, got {statistic!r}")
    views = visible.sum(-2)
    seen = views.reshape(-1, views.shape[-1]).cpu().numpy()
    shared = iter([row[row >= 1] >= 2 for row in seen])

    def one(distance: np.ndarray) -> float:
        rows, columns = linear_sum_assignment(distance**2)
        error = np.full(distance.shape[1], cutoff)
        error[columns] = distance[rows, columns]
        error = error[next(shared)]
        if error.size == 0:
            return float("nan")
        return float(np.sqrt(np.mean(error**2)) if statistic == "rms" else np.median(error))

    return _per_scene(one, estimated, estimated_mask, true, views >= 1, cutoff)


def _per_scene(
    function: Callable[[np.ndarray], float],
    estimated: Tensor,
    estimated_mask: Tensor,
    true: Tensor,
    true_mask: Tensor,
    cutoff: float,
) -> Tensor:
    """Apply a function to the clipped distances [estimated, true] of each scene; non-finite ones are at the cutoff."""
    sizes = check_shape("estimated", estimated, "* node xyz")
    check_shape("estimated_mask", estimated_mask, "* node", node=sizes["node"])
    sizes = check_shape("true", true, "* point xyz", xyz=sizes["xyz"])
    check_shape("true_mask", true_mask, "* point", point=sizes["point"])
    distance = torch.linalg.vector_norm(estimated[..., :, None, :] - true[..., None, :, :], dim=-1)
    distance = torch.nan_to_num(distance, nan=cutoff, posinf=cutoff).clamp(max=cutoff)
    batch = distance.shape[:-2]
    flat = distance.detach().double().reshape(-1, *distance.shape[-2:]).cpu().numpy()
    rows = estimated_mask.expand(*batch, -1).reshape(len(flat), -1).cpu().numpy()
    columns = true_mask.expand(*batch, -1).reshape(len(flat), -1).cpu().numpy()
    values = [function(d[row][:, column]) for d, row, column in zip(flat, rows, columns, strict=True)]
    return torch.tensor(values, dtype=true.dtype, device=true.device).reshape(batch)


def converged(error: Tensor, peb: Tensor, factor: float = 3.0) -> Tensor:
    """Whether the error is below `factor` times the bound, [*] bool; false where either is not finite."""
    return torch.isfinite(peb) & (error < factor * peb)


def summarize(values: Tensor) -> dict[str, float]:
    """Statistics over scenes.

    Args:
        values: [scene] one figure per scene.

    Returns:
        `median`, `rms`, `p90` and `mean` of the finite values (NaN when there is none), `count` of these, and
        `num_nonfinite`, how many were left out: a table that shows the first four must show the last one too.
    """
    values = values.reshape(-1).double()
    finite = values[torch.isfinite(values)]
    result = {"count": float(len(finite)), "num_nonfinite": float(len(values) - len(finite))}
    if len(finite) == 0:
        return dict.fromkeys(("median", "rms", "p90", "mean"), float("nan")) | result
    return {
        "median": float(finite.quantile(0.5)),
        "rms": float(finite.square().mean().sqrt()),
        "p90": float(finite.quantile(0.9)),
        "mean": float(finite.mean()),
    } | result


def wilson_interval(successes: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a fraction (Wilson score), (0, 1) when there are no trials."""
    if not 0 <= successes <= total:
        raise DomainError(f"need 0 <= successes <= total, got {successes} of {total}")
    if total == 0:
        return 0.0, 1.0
    z = float(norm.ppf(0.5 + level / 2))
    fraction = successes / total
    centre = (fraction + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (fraction * (1 - fraction) / total + z * z / (4 * total * total)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap_interval(
    values: Tensor, statistic: str, generator: torch.Generator, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Percentile bootstrap interval of one statistic of `summarize`, over the finite values; NaN when there is none."""
    values = values.reshape(-1).double()
    values = values[torch.isfinite(values)]
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "median": lambda x: x.quantile(0.5, dim=-1),
        "rms": lambda x: x.square().mean(-1).sqrt(),
        "p90": lambda x: x.quantile(0.9, dim=-1),
        "mean": lambda x: x.mean(-1),
    }
    if statistic not in functions:
        raise DomainError(f"statistic must be one of {sorted(functions)}, got {statistic!r}")
    if len(values) == 0:
        return float("nan"), float("nan")
    draw = torch.randint(len(values), (resamples, len(values)), generator=generator)
    replicas = functions[statistic](values[draw])
    return float(replicas.quantile(0.5 - level / 2)), float(replicas.quantile(0.5 + level / 2))
