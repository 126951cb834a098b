"""Curves of a statistic with its intervals, the parts of which figures against SNR or clock deviation are made."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sensing.evaluation.measures import measure
from sensing.evaluation.result import SweepResult
from sensing.evaluation.statistics import Floats, Value
from sensing.evaluation.style import BOUNDS, legend_below, marks


def having(result: SweepResult, metric: str, stat: str) -> list[str]:
    """Estimators with a finite value of a statistic."""
    return [
        name
        for name in result.names
        if any(np.isfinite(value.value) for value in values_of(result, name, metric, stat) or ())
    ]


def values_of(result: SweepResult, name: str, metric: str, stat: str) -> list[Value] | None:
    """A statistic of an estimator or bound by SNR; None where it has no such output."""
    found = [measure(result).get((name, at, metric, stat)) for at in range(len(result.snr_db))]
    return None if any(value is None for value in found) else [value for value in found if value is not None]


def curve(
    axes: Axes, x: Floats, values: Sequence[Value], name: str, names: Sequence[str], shift: float, **style: object
) -> None:
    """One estimator; estimators stand `shift` apart so that equal ones can be told.

    Args:
        axes: where.
        x: [point] abscissa.
        values: of the points, with intervals.
        name: the estimator.
        names: all estimators of the run.
        shift: distance of neighbours in units of x.
        style: of the line, other than the usual one.
    """
    order = np.argsort(x)
    place = x[order] + shift * (list(names).index(name) - (len(names) - 1) / 2)
    y, low, high = (np.array(column)[order] for column in list(zip(*values, strict=True))[:3])
    color, marker = marks(name, names)
    look = {"color": color, "marker": marker, "markersize": 4.5, "linewidth": 1.4, "label": name} | style
    axes.plot(place, y, **look)  # type: ignore[arg-type]
    axes.vlines(place, low, high, color=color, linewidth=1.1, alpha=0.8)


def snr_curves(
    axes: Axes,
    result: SweepResult,
    metric: str,
    stat: str,
    scale: float = 1.0,
    only: Sequence[str] | None = None,
    **style: object,
) -> None:
    """A statistic of all estimators (or only of some), and of the bounds where they have it, against SNR."""
    snr = snr_of(result)
    for name in having(result, metric, stat) if only is None else only:
        values = values_of(result, name, metric, stat)
        if values is not None:
            scaled = [Value(scale * v.value, scale * v.low, scale * v.high, v.num_scenes) for v in values]
            curve(axes, snr, scaled, name, result.names, 0.12, **style)
    order = np.argsort(snr)
    for bound in result.bounds:
        values = values_of(result, bound, metric, stat)
        if values is not None:
            color, dash, label = BOUNDS[bound]
            y = scale * np.array([value.value for value in values])
            axes.plot(snr[order], y[order], color=color, linestyle=dash, linewidth=1.6, label=label, zorder=3)


def against_snr(figure: Figure, axes: Sequence[Axes]) -> Figure:
    """Abscissa and legend of a figure whose panels are all against SNR."""
    for each in axes:
        each.set_xlabel("SNR [dB]")
    legend_below(figure, axes)
    return figure


def snr_of(result: SweepResult) -> Floats:
    """SNR points [dB], NaN where unknown."""
    return np.array([np.nan if snr is None else snr for snr in result.snr_db])
