"""Figures of a network plan: maps before and after, convergence, and the distribution of the bound over the area."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from sensing.bounds.coverage import CoverageMap
from sensing.bounds.planning import Plan
from sensing.evaluation.heat_map import add_bar, color_scale, draw_map
from sensing.evaluation.style import legend_below, log_scale, panels
from sensing.radar.network import RadarNetwork

if TYPE_CHECKING:
    from sensing.evaluation.planning import Case

LOOKS = {"given": ("#777777", ":"), "random": ("#E69F00", "--"), "plan": ("#0072B2", "-")}
NAMES = {"given": "before", "random": "best random plan", "plan": "plan"}
EDGE = [withStroke(linewidth=2.5, foreground="white")]


def maps(given: "Case", plan: "Case", stations: Tensor, required_m: float, power: str | None) -> Figure:
    """Before and after, side by side on one colour scale.

    Args:
        given: the network before.
        plan: after.
        stations: [own] indices of the stations that take part.
        required_m: accuracy whose contour is drawn [m].
        power: field whose values are written beside the stations: `eirp`, `sensing_fraction` or None.
    """
    figure, axes = panels(2, width=6.2, height=6.2)
    scale = color_scale(torch.cat([given.found.peb_m, plan.found.peb_m]), None)
    for each, case, name in zip(axes, (given, plan), ("before", "after"), strict=True):
        deployment = case.network.deployment
        colors = draw_map(each, case.found, deployment.bs_position[stations], scale, required_m)
        _stations(each, case.network, stations, power)
        worst, mean = (case.numbers[key] * scale.factor for key in ("max_peb_m", "mean_peb_m"))
        each.set_title(f"{name}: worst {worst:.3g}, mean {mean:.3g} {scale.unit}")
        each.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False, fontsize=8, ncols=2)
    add_bar(figure, colors, axes, scale, plan.found)
    return figure


def curves(objective: str, plans: Mapping[str, Plan], found: Mapping[str, CoverageMap]) -> Figure:
    """Best objective so far against evaluations of the bound, and distribution of the bound over the area."""
    figure, axes = panels(2, width=5.8, height=4.4)
    scale = color_scale(torch.cat([each.peb_m for each in found.values()]), None)
    trace = plans["plan"].trace
    axes[0].axhline(float(trace.criterion_m[0]) * scale.factor, color=LOOKS["given"][0], linestyle=":", label="before")
    for name, plan in plans.items():
        color, line = LOOKS[name]
        best = np.minimum.accumulate(plan.trace.criterion_m.numpy()) * scale.factor
        axes[0].step(plan.trace.evaluations, best, where="post", color=color, linestyle=line, label=NAMES[name])
    begins = (trace.start.diff(prepend=torch.tensor([-1])) > 0).numpy()
    ends = np.append(begins[1:], True)
    values = trace.criterion_m.numpy()[ends] * scale.factor
    axes[0].plot(trace.evaluations.numpy()[ends], values, "o", color="#0072B2", markersize=4, label="end of a start")
    axes[0].set(xlabel="evaluations of the bound", ylabel=f"{objective} PEB [{scale.unit}]")
    log_scale(axes[0], "y")
    for name, each in found.items():
        color, line = LOOKS[name]
        values = np.sort(each.peb_m.numpy().ravel()) * scale.factor
        share = np.arange(1, len(values) + 1) / len(values)
        axes[1].plot(values, share, color=color, linestyle=line, label=NAMES[name])
    axes[1].set(xlabel=f"PEB [{scale.unit}]", ylabel="share of the area", xlim=(0, None), ylim=(0, 1))
    legend_below(figure, axes)
    return figure


def _stations(axes: Axes, network: RadarNetwork, stations: Tensor, power: str | None) -> None:
    """Boresights as arrows, planned powers as text."""
    place = network.deployment.bs_position[stations, :2].numpy()
    axis = network.deployment.boresight[stations, :2].numpy()
    look: dict[str, Any] = {
        "color": "white",
        "edgecolor": "black",
        "linewidth": 0.8,
        "width": 0.011,
        "zorder": 4,
        "clip_on": False,
    }
    axes.quiver(*place.T, *axis.T, angles="xy", scale=9.0, **look).set_in_layout(False)
    if power is None:
        return
    field, unit = (network.eirp_w, " W") if power == "eirp" else (network.sensing_fraction, "")
    for point, toward, value in zip(place, axis, field[stations].tolist(), strict=True):
        where, text = point + 0.13 * np.ptp(axes.get_xlim()) * toward, f"{value:.3g}{unit}"
        axes.annotate(text, where, ha="center", va="center", fontsize=10, zorder=6, path_effects=EDGE)
