"""The Bayes limit: the posterior mean of the position under the law that the drops were drawn from.

No estimator has a smaller mean squared error over drops. The posterior is evaluated on cells of the domain: on all of
them by a cheap bound of the likelihood, on the best of these exactly, and on the best again in finer cells.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from sensing.checks import check_shape
from sensing.errors import ConfigError
from sensing.fusion.domain import Domain
from sensing.fusion.likelihoods import LOG_2PI, log_range_with_bias
from sensing.fusion.measurements import StationMeasurements

NODES = 24
"""Gauss-Legendre nodes over the unknown scale of the bias."""

KEPT, REFINED, SPLIT = 3000, 300, 4
"""Cells that are evaluated exactly, cells that are split, and into how many along each unknown coordinate."""


COARSEST = 8.0
"""Edge of a cell in least deviations of a range above which the posterior falls between the cells."""


RangeLaw = Callable[[Tensor, Tensor, float, "Law"], Tensor]


class Law(NamedTuple):
    """How measurements come about."""

    range_std: Tensor  # [* bs] true deviations [m]
    angle_std: Tensor  # [* bs] [rad]
    bias: str  # none, uniform, exponential or delta
    bias_scale_m: float  # [m]
    random_scale: bool  # the scale of a drop is itself uniform from 0 to `bias_scale_m`
    has_bias: Tensor  # [bs] bool
    unbiased_share: float = 0.0  # probability of a drop without any bias


class Posterior(NamedTuple):
    """Moments of the position."""

    mean: Tensor  # [* xyz] [m]
    covariance: Tensor  # [* 3 3] [m^2]


def posterior(measured: StationMeasurements, domain: Domain, law: Law) -> Posterior:
    """Posterior moments of the position, uniform on the domain beforehand.

    Args:
        measured: [drop bs]; a modality with an infinite assumed deviation is not used, whatever its true one.
        domain: of the position.
        law: of the measurements; the deviations that the stations claim play no part.

    Returns:
        The moments.

    Raises:
        ShapeError: the measurements have other axes than [drop bs].
    """
    check_shape("range_m", measured.range_m, "drop bs")
    unknown = domain.unknown
    cheap = _log_posterior(domain.points.expand(len(measured.range_m), -1, -1), measured, law, _bound)
    kept = cheap.topk(min(KEPT, cheap.shape[-1])).indices
    points = domain.points[kept]
    exact = _log_posterior(points, measured, law, log_range_excess)
    best = exact.topk(min(REFINED, exact.shape[-1])).indices
    centre = points.gather(1, best[..., None].expand(-1, -1, 3))
    rest = exact.scatter(1, best, -torch.inf)
    steps = (torch.arange(SPLIT, dtype=torch.float64) + 0.5) / SPLIT - 0.5
    inside = torch.cartesian_prod(*([steps] * len(unknown))).reshape(-1, len(unknown))
    offset = torch.zeros(len(inside), 3, dtype=torch.float64)
    offset[:, unknown] = inside * domain.cell[unknown]
    fine = (centre[:, :, None] + offset).flatten(1, 2)
    inner = _log_posterior(fine, measured, law, log_range_excess) - math.log(len(inside))  # of smaller cells
    share = torch.cat([inner, rest], 1).softmax(-1)
    fine = torch.cat([fine, points], 1)
    mean = (share[..., None] * fine).sum(1)
    off = fine - mean[:, None]
    return Posterior(mean, (share[..., None] * off).mT @ off)


def check_cells(domain: Domain, least: float) -> None:
    """Raise ConfigError where ranges of the least deviation [m] are too sharp for the posterior on these cells."""
    edge = float(domain.cell.max())
    if not edge <= COARSEST * least * (1.0 + torch.finfo(domain.cell.dtype).eps):
        raise ConfigError(
            f"the cells of the domain must be at most {COARSEST:g} least deviations of a range "
            f"({COARSEST * least:.4g} m) for the method bayes, got {edge:.4g} m: lower spacing_m"
        )


def _log_posterior(points: Tensor, measured: StationMeasurements, law: Law, range_law: RangeLaw) -> Tensor:
    """[drop cell] up to a constant."""
    offset = points[:, None] - measured.bs_position[..., :, None, :]  # [drop bs cell xyz]
    distance = torch.linalg.vector_norm(offset, dim=-1)
    total = torch.zeros_like(distance[:, 0])
    has_angle, has_range = torch.isfinite(measured.angle_std), torch.isfinite(measured.range_std)
    if bool(has_angle.any()):
        off = measured.azimuth[..., None] - torch.atan2(offset[..., 1], offset[..., 0])
        off = torch.remainder(off + math.pi, 2.0 * math.pi) - math.pi
        up = measured.elevation[..., None] - torch.asin((offset[..., 2] / distance).clamp(-1.0, 1.0))
        misfit = (off.square() + up.square()) / law.angle_std[..., None].square()
        total = total - 0.5 * (misfit * has_angle[..., None]).sum(1)
    if bool(has_range.any()):
        excess = measured.range_m[..., None] - distance
        std, used = law.range_std[..., None], has_range[..., None]
        terms = [(range_law(excess, std, scale, law) * used).sum(1) + math.log(share) for scale, share in _scales(law)]
        total = total + torch.logsumexp(torch.stack(terms), 0)
    return total


def log_range_excess(excess: Tensor, std: Tensor, scale_m: float, law: Law) -> Tensor:
    """Exact log-density of measured range minus distance, [drop bs cell]."""
    plain = -0.5 * (excess / std).square() - std.log() - 0.5 * LOG_2PI
    if law.bias == "none" or scale_m == 0:
        return plain
    if law.bias == "uniform":
        biased = log_range_with_bias(excess, std, torch.full_like(std, scale_m))
    elif law.bias == "delta":
        biased = -0.5 * ((excess - scale_m) / std).square() - std.log() - 0.5 * LOG_2PI
    elif law.bias == "exponential":  # an exponentially modified Gaussian
        biased = 0.5 * (std / scale_m).square() - excess / scale_m - math.log(scale_m)
        biased = biased + torch.special.log_ndtr(excess / std - std / scale_m)
    else:
        raise ConfigError(f"bias must be none, uniform, exponential or delta, got {law.bias!r}")
    return torch.where(law.has_bias[:, None], biased, plain)


def _bound(excess: Tensor, std: Tensor, scale_m: float, law: Law) -> Tensor:
    """A cheap function with the shape of the exact one, to tell cells that matter from those that do not."""
    largest = {"none": 0.0, "uniform": scale_m, "delta": scale_m, "exponential": math.inf}[law.bias]
    top = torch.where(law.has_bias[:, None], largest, 0.0)
    low = torch.where(law.has_bias[:, None] & (law.bias == "delta"), scale_m, 0.0)
    outside = (low - excess).clamp_min(0.0) + (excess - top).clamp_min(0.0)
    decay = excess.clamp_min(0.0) / scale_m if law.bias == "exponential" and scale_m > 0 else 0.0
    return -0.5 * (outside / std).square() - decay * law.has_bias[:, None]


def _scales(law: Law) -> list[tuple[float, float]]:
    """Scales of the bias and their probabilities; an unknown scale at Gauss-Legendre nodes."""
    found = [(law.bias_scale_m, 1.0)]
    if law.random_scale:
        node, weight = leggauss(NODES)
        found = list(zip((0.5 * law.bias_scale_m * (node + 1.0)).tolist(), (0.5 * weight).tolist(), strict=True))
    found = [(scale, (1.0 - law.unbiased_share) * share) for scale, share in found] + [(0.0, law.unbiased_share)]
    return [(scale, share) for scale, share in found if share > 0]
