"""One statistic over SNR and over the deviation of the clock offsets: a panel or per SNR."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sensing.evaluation.curves import curve, having, snr_curves, values_of
from sensing.evaluation.result import SweepResult
from sensing.evaluation.style import BOUNDS, legend_below, log_scale, panels
from sensing.evaluation.summary import sigma_label, snr_label

FEW = 3
"""With so many SNR points at most, the deviation of the clock offsets is the better abscissa."""


def grid(results: Sequence[SweepResult], metric: str, stat: str, label: str, log: bool = True) -> Figure | None:
    """Draw a statistic of all estimators and bounds; None where nobody has it.

    Args:
        results: one for each deviation of the clock offsets, with the same SNR points and estimators.
        metric: of `sensing.evaluation.measures`.
        stat: its statistic.
        label: of the ordinate.
        log: logarithmic ordinate.
    """
    if not having(results[0], metric, stat):
        return None
    few = len(results[0].snr_db) <= FEW
    count = len(results[0].snr_db) if few else len(results)
    figure, axes = panels(count, columns=2 if count > 3 else count, sharey=True)
    for at, each in enumerate(axes):
        if few:
            _against_sigma(each, results, at, metric, stat)
            each.set(title=f"SNR {snr_label(results[0].snr_db[at])}", xlabel="sigma, deviation of the clock offsets")
        else:
            snr_curves(each, results[at], metric, stat)
            each.set(title=f"sigma {sigma_label(results[at])}", xlabel="SNR [dB]")
        each.set_ylabel(label)
        if log:
            log_scale(each, "y")
    legend_below(figure, axes)
    return figure


def _against_sigma(axes: Axes, results: Sequence[SweepResult], at: int, metric: str, stat: str) -> None:
    x = np.arange(len(results), dtype=float)
    for name in having(results[0], metric, stat):
        rows = [values_of(result, name, metric, stat) for result in results]
        curve(axes, x, [row[at] for row in rows if row is not None], name, results[0].names, 0.04)
    for bound in results[0].bounds:
        rows = [values_of(result, bound, metric, stat) for result in results]
        if all(row is not None for row in rows):
            color, dash, label = BOUNDS[bound]
            y = [row[at].value for row in rows if row is not None]
            axes.plot(x, y, color=color, linestyle=dash, linewidth=1.6, label=label, zorder=3)
    axes.set_xticks(x, [sigma_label(result) for result in results])
