"""Map of the position error bound over an area, with stations, required accuracy and unobservable points."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from sensing.bounds.coverage import CoverageMap
from sensing.evaluation.style import legend_below, panels

COLORS = "viridis"
UNOBSERVABLE = "#c9c9c9"
FEW = 300  # so many unobservable points at most are marked one by one: a pixel alone is not seen
UNITS = ((1e-3, 1e6, "um"), (1.0, 1e3, "mm"), (np.inf, 1.0, "m"))


class Scale(NamedTuple):
    """Unit and limits in which bounds are drawn."""

    factor: float  # from metres
    unit: str
    low: float  # [unit]
    high: float


def color_scale(peb_m: Tensor, limits_m: tuple[float, float] | None) -> Scale:
    """Unit, and limits of the colours; without given limits the 1 and 100 % quantiles of what is finite."""
    finite = peb_m[torch.isfinite(peb_m)]
    if limits_m is None:
        values = finite if len(finite) else torch.ones(1, dtype=torch.float64)
        low, high = float(np.quantile(values.numpy(), 0.01)), float(values.max())
        limits_m = (low, high if high > low else 2.0 * low)
    factor, unit = next((factor, unit) for below, factor, unit in UNITS if limits_m[1] < below)
    return Scale(factor, unit, limits_m[0] * factor, limits_m[1] * factor)


def heat_map(
    found: CoverageMap,
    stations: Tensor,
    required_m: float | None = None,
    limits_m: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """Draw one map.

    Args:
        found: the map.
        stations: [bs xyz] [m].
        required_m: accuracy whose contour is drawn [m].
        limits_m: of the colours [m], equal ones make figures comparable; None: what the map needs.
        title: above the map.

    Returns:
        The figure.
    """
    figure, (axes,) = panels(1, width=6.6, height=6.2)
    scale = color_scale(found.peb_m, limits_m)
    colors = draw_map(axes, found, stations, scale, required_m)
    add_bar(figure, colors, axes, scale, found)
    axes.set_title(title)
    legend_below(figure, [axes])
    return figure


def draw_map(
    axes: Axes, found: CoverageMap, stations: Tensor, scale: Scale, required_m: float | None
) -> ScalarMappable:
    """Colours, contour, stations, worst point and unobservable points; returns what a colour bar needs."""
    axes.grid(False)
    peb = np.ma.masked_invalid(found.peb_m.numpy() * scale.factor)
    x, y = found.area.x_m.numpy(), found.area.y_m.numpy()
    colors = axes.imshow(
        peb,
        origin="lower",
        extent=found.area.extent,
        norm=LogNorm(scale.low, scale.high),
        cmap=colormaps[COLORS].with_extremes(bad=UNOBSERVABLE),
        interpolation="nearest",
    )
    if required_m is not None:
        level = required_m * scale.factor
        label = f"required: {level:g} {scale.unit}, {found.covered(required_m):.1%} of the area"
        axes.plot([], [], color="#888888", linestyle="--", linewidth=1.6, label=label)
        if min(peb.shape) > 1 and peb.count() and peb.min() < level < peb.max():
            axes.contour(x, y, peb, [level], colors="white", linestyles="--", linewidths=1.6)
    look: dict[str, Any]
    open_ = ~np.isfinite(found.peb_m.numpy())
    if open_.any():
        counts = ", ".join(f"{count} {reason}" for reason, count in found.unobservable.items())
        rows, columns = open_.nonzero() if open_.sum() <= FEW else ([], [])
        look = {"color": "#b22222", "markersize": 6} if len(rows) else {"color": UNOBSERVABLE, "markersize": 10}
        mark = "x" if len(rows) else "s"
        axes.plot(x[columns], y[rows], mark, linestyle="none", label=f"unobservable: {counts}", **look)
    worst = found.worst
    if worst is not None:
        label = f"worst: {worst.peb_m * scale.factor:.3g} {scale.unit}"
        look = {"markerfacecolor": "none", "markeredgecolor": "#ff5d5d", "markeredgewidth": 1.8, "markersize": 11}
        axes.plot(worst.x_m, worst.y_m, "o", linestyle="none", label=label, clip_on=False, **look)
    places = stations[:, :2].numpy()
    look = {"markerfacecolor": "white", "markeredgecolor": "black", "markersize": 10}
    axes.plot(*places.T, "^", linestyle="none", label="station", clip_on=False, zorder=5, **look)
    axes.set_aspect("equal")
    axes.set(xlabel="x [m]", ylabel="y [m]")
    return colors


def add_bar(
    figure: Figure, colors: ScalarMappable, axes: Axes | Sequence[Axes], scale: Scale, found: CoverageMap
) -> None:
    """Colour bar, its ends pointed where values lie beyond them."""
    finite = found.peb_m[torch.isfinite(found.peb_m)] * scale.factor
    beyond = (bool((finite < scale.low).any()), bool((finite > scale.high * (1 + 1e-12)).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    bar = figure.colorbar(colors, ax=axes, extend=extend, shrink=0.86)
    bar.set_label(f"position error bound [{scale.unit}]")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    narrow = scale.high < 5 * scale.low
    bar.ax.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if narrow or f"{value:e}"[0] in "25" else "")
