"""How many sources a covariance holds: minimum description length and Akaike's criterion.

With D eigenvalues of which the last D - k are noise, `L(k) = N (D - k) log(AM / GM)` over their arithmetic and
geometric mean; MDL adds `k (2 D - k) log(N) / 2`, AIC `k (2 D - k)` (Wax and Kailath, IEEE TASSP 33(2), 1985). Only the
leading eigenvalues are needed one by one: the means of the others follow from trace and determinant.

N counts independent snapshots. The windows of one smoothed snapshot overlap and share their noise, but for white noise
the products that an element of the covariance averages are distinct, so that each off-diagonal element has the variance
`1 / windows` that independent snapshots would give it, and the noise eigenvalues the same mean square `1 + D / N`. N is
therefore the number of window positions; backward windows, which lower the spread a little further, are not counted.
"""

import math

import torch
from torch import Tensor

from sensing.checks import check_shape
from sensing.errors import ConfigError

CRITERIA = ("mdl", "aic")


def effective_snapshots(shape: tuple[int, ...], window: tuple[int, ...]) -> int:
    """Positions of a window in a snapshot."""
    return math.prod(size - width + 1 for size, width in zip(shape, window, strict=True))


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
