"""How many sources a covariance holds: minimum description length and Akaike's criterion.

With D eigenvalues of which the last D - k are noise, `L(k) = N (D - k) log(AM / GM)` over their arithmetic and
geometric mean; MDL adds `k (2 D - k) log(N) / 2`, AIC `k (2 D - k)` (Wax and Kailath, IEEE TASSP 33(2), 1985). Only the
leading eigenvalues are needed one by one: the means of the others follow from trace and determinant.

N counts independent snapshots. The windows of one smoothed snapshot overlap and share their noise;
`effective_snapshots` is the number of independent ones whose sample covariance has noise eigenvalues of the same mean
square, `1 + D / N`. The largest noise eigenvalue spreads somewhat further than theirs; MDL's penalty covers it.
"""

import math

import torch
from torch import Tensor

from sensing.checks import check_shape
from sensing.errors import ConfigError

CRITERIA = ("mdl", "aic")


def effective_snapshots(shape: tuple[int, ...], window: tuple[int, ...]) -> float:
    """Independent snapshots behind a forward-backward smoothed covariance of white noise.

    Forward only, the products that an element of R averages over the positions s of the window are distinct, so that
    `E tr R^2 / D = 1 + D / S` as for S independent snapshots. The backward windows add products of their own save where
    both meet: `E tr(R J R^* J) / D = 1 + prod_d sum_ij max(0, S_d - |i + j - w_d + 1|) / (S^2 D)`. The forward-backward
    covariance has the mean of the two.

    Args:
        shape: samples along every axis.
        window: sizes w_d of the window.

    Returns:
        N, between S and 2 S.
    """
    ratio, overlap = 1.0, 1.0  # D / S, and its counterpart for the backward windows
    for size, width in zip(shape, window, strict=True):
        positions = size - width + 1
        index = range(width)
        meetings = sum(max(0, positions - abs(i + j - width + 1)) for i in index for j in index)
        ratio *= width / positions
        overlap *= meetings / (positions**2 * width)
    return math.prod(window) / (0.5 * (ratio + overlap))


def model_order(
    leading: Tensor, trace: Tensor, logdet: Tensor, size: int, snapshots: float, criterion: str = "mdl"
) -> Tensor:
    """Order that minimises the criterion.

    Args:
        leading: [* k] largest eigenvalues, descending; orders from 0 to k (at most D - 1) are compared.
        trace: [*] of the covariance.
        logdet: [*] of the covariance.
        size: number D of its eigenvalues.
        snapshots: independent snapshots N behind it.
        criterion: `mdl` or `aic`.

    Returns:
        [*] int64.

    Raises:
        ConfigError: unknown criterion.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    check_shape("leading", leading, "* k")
    leading = leading[..., : size - 1]
    order = torch.arange(leading.shape[-1] + 1, dtype=leading.dtype, device=leading.device)
    rest = size - order
    start = torch.zeros_like(leading[..., :1])
    total = trace[..., None] - torch.cat([start, leading.cumsum(-1)], -1)
    log_product = logdet[..., None] - torch.cat([start, leading.log().cumsum(-1)], -1)
    # rounding may leave a remainder of a noise-free trace at or below zero; its mean is then its geometric mean
    log_geometric = log_product / rest
    log_arithmetic = torch.where(total > 0, total, 0.0).div(rest).log().maximum(log_geometric)
    likelihood = snapshots * rest * (log_arithmetic - log_geometric)
    weight = 0.5 * math.log(snapshots) if criterion == "mdl" else 1.0
    return (likelihood + weight * order * (2.0 * size - order)).argmin(-1)
