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
    return wrapped(estimated - true, ambiguity_s).square().mean(-1).sqrt()


def wrapped(error: Tensor, period: Tensor | float) -> Tensor:
    """Errors of what is known modulo a period, wrapped to half of it; an infinite period changes nothing."""
    period = torch.as_tensor(period, dtype=error.dtype, device=error.device)
    return error - period * torch.round(error / period) if bool(torch.isfinite(period)) else error


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


def match_scatterers(estimated: Tensor, estimated_mask: Tensor, true: Tensor, visible: Tensor, cutoff: float) -> Tensor:
    """Which estimate is meant by each scatterer: one to one, at the least sum of squared distances up to the cutoff.

    Args:
        estimated: [* node xyz] [m].
        estimated_mask: [* node] bool.
        true: [* point xyz] [m].
        visible: [* bs point] bool; a scatterer that no station sees takes no part.
        cutoff: a pair that is further apart is none [m].

    Returns:
        [* point] int64 number of the estimate, -1 where there is none.
    """
    seen = visible.any(-2)
    distance = _clipped_distance(estimated, estimated_mask, true, seen, cutoff)
    index = torch.full(distance.shape[:-2] + distance.shape[-1:], -1, dtype=torch.int64)
    count = distance.shape[:-2].numel()
    nodes = estimated_mask.expand(distance.shape[:-1]).reshape(count, distance.shape[-2]).cpu().numpy()
    points = seen.expand(index.shape).reshape(count, distance.shape[-1]).cpu().numpy()
    flat = distance.detach().double().reshape(count, *distance.shape[-2:]).cpu().numpy()
    for out, d, node, point in zip(index.view(count, distance.shape[-1]), flat, nodes, points, strict=True):
        rows, columns = np.flatnonzero(node), np.flatnonzero(point)
        left, right = linear_sum_assignment(d[np.ix_(rows, columns)] ** 2)
        near = d[rows[left], columns[right]] < cutoff
        out[columns[right[near]]] = torch.from_numpy(rows[left[near]])
    return index.to(true.device)


def of_matched(index: Tensor, values: Tensor) -> Tensor:
    """What belongs to the estimate that `match_scatterers` gave each point, [* node ...] to [* point ...], else NaN."""
    axis, tail = index.ndim - 1, values.shape[index.ndim :]
    nothing = values.new_full((*values.shape[:axis], 1, *tail), torch.nan)
    place = torch.where(index < 0, values.shape[axis], index).view(*index.shape, *[1] * len(tail))
    return torch.cat([values, nothing], axis).gather(axis, place.expand(*index.shape, *tail))


def scatterer_error(
    error: Tensor, visible: Tensor, cutoff: float, statistic: str = "rms", which: str = "shared"
) -> Tensor:
    """Position error of the scatterers of a scene, one without an estimate nearer than the cutoff at the cutoff.

    Args:
        error: [* point xyz] estimate less truth, NaN for a missed scatterer [m].
        visible: [* bs point] bool.
        cutoff: error of a missed scatterer [m].
        statistic: `rms` or `median` over the scatterers of a scene.
        which: `shared`, those that two or more stations see, or `specific`, those that one alone sees.

    Returns:
        [*] [m]; NaN for a scene without such scatterers.
    """
    if statistic not in ("rms", "median") or which not in ("shared", "specific"):
        raise DomainError(f"need rms or median of shared or specific scatterers, got {statistic!r} of {which!r}")
    views = visible.sum(-2)
    distance = torch.linalg.vector_norm(error, dim=-1).nan_to_num(nan=cutoff).clamp(max=cutoff)
    chosen = torch.where(views >= 2 if which == "shared" else views == 1, distance, torch.nan)
    if statistic == "median":
        return chosen.nanquantile(0.5, dim=-1)
    return chosen.square().nanmean(-1).sqrt()


def nees(error: Tensor, covariance: Tensor) -> Tensor:
    """Normalised estimation error squared, `e^T C^-1 e`: chi-square with n degrees of freedom if C is the truth.

    Args:
        error: [* n].
        covariance: [* n n].

    Returns:
        [*]; NaN where the covariance is not positive definite or not finite.
    """
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).rsqrt()
    scaled = scale[..., :, None] * covariance * scale[..., None, :]
    factor, failed = torch.linalg.cholesky_ex(scaled.nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0))
    white = torch.linalg.solve_triangular(factor, (scale * error)[..., None], upper=False)[..., 0]
    return torch.where(failed == 0, white.square().sum(-1), torch.nan)


def _per_scene(
    function: Callable[[np.ndarray], float],
    estimated: Tensor,
    estimated_mask: Tensor,
    true: Tensor,
    true_mask: Tensor,
    cutoff: float,
) -> Tensor:
    """Apply a function to the clipped distances [estimated, true] of each scene; non-finite ones are at the cutoff."""
    distance = _clipped_distance(estimated, estimated_mask, true, true_mask, cutoff)
    batch = distance.shape[:-2]
    flat = distance.detach().double().cpu().numpy().reshape(batch.numel(), *distance.shape[-2:])
    rows = estimated_mask.expand(*batch, -1).cpu().numpy().reshape(flat.shape[:2])
    columns = true_mask.expand(*batch, -1).cpu().numpy().reshape(len(flat), flat.shape[2])
    values = [function(d[row][:, column]) for d, row, column in zip(flat, rows, columns, strict=True)]
    return torch.tensor(values, dtype=true.dtype, device=true.device).reshape(batch)


def _clipped_distance(
    estimated: Tensor, estimated_mask: Tensor, true: Tensor, true_mask: Tensor, cutoff: float
) -> Tensor:
    """[* estimated true], at most the cutoff; non-finite ones are at the cutoff."""
    sizes = check_shape("estimated", estimated, "* node xyz")
    check_shape("estimated_mask", estimated_mask, "* node", node=sizes["node"])
    sizes = check_shape("true", true, "* point xyz", xyz=sizes["xyz"])
    check_shape("true_mask", true_mask, "* point", point=sizes["point"])
    distance = torch.linalg.vector_norm(estimated[..., :, None, :] - true[..., None, :, :], dim=-1)
    return torch.fmin(distance, distance.new_tensor(cutoff))  # the cutoff where the distance is NaN


CONVERGED = 3.0
"""Errors below so many bounds count as converged."""


def converged(error: Tensor, peb: Tensor, factor: float = CONVERGED) -> Tensor:
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
