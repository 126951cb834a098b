"""Colours, markers and axes that all figures share."""

from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

PALETTE = {  # Okabe and Ito: told apart with any colour vision
    "classical": ("#0072B2", "o"),
    "unfolded": ("#D55E00", "s"),
    "ideal_sync": ("#009E73", "^"),
    "nomp_ls": ("#CC79A7", "v"),
    "genie_lmmse": ("#E69F00", "D"),
    "paper": ("#7F3C8D", "X"),
    "music_ls": ("#56B4E9", "P"),
    "omp": ("#8C6D31", "*"),
    "ols": ("#B22222", "<"),
    "em_sbl": ("#666666", "h"),
    "paper_ideal": ("#9ACD32", "d"),
}
SPARE = (("#FF7F50", "8"), ("#2F4F4F", ">"), ("#B8860B", "p"), ("#4B0082", "H"))
BOUNDS = {"peb": ("#000000", "--", "bound"), "peb_sync": ("#777777", ":", "bound, offsets known")}


def marks(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour and marker of an estimator, the same in every figure of a run.

    Args:
        name: the estimator; a variant such as `unfolded_untrained` looks like `unfolded` where it is the only one.
        names: all estimators of the run; those without a look of their own take the spare ones in this order.
    """
    if name in PALETTE:
        return PALETTE[name]
    for key, look in PALETTE.items():
        if [other for other in names if other.startswith(key)] == [name]:
            return look
    others = [other for other in names if other not in PALETTE]
    return SPARE[others.index(name) % len(SPARE)]


def panels(
    count: int, width: float = 5.0, height: float = 4.0, columns: int | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with rows of axes, one row unless `columns` says otherwise.

    Drawn without pyplot, so without a display and without global state.
    """
    columns = count if columns is None else columns
    rows = -(-count // columns)
    size = (width * columns, height * rows)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06), dpi=130)
    grid = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    axes, unused = grid[:count], grid[count:]
    for each in unused:
        each.remove()
    for each in axes:
        each.grid(True, which="major", color="#dddddd", linewidth=0.8)
        each.grid(True, which="minor", color="#f0f0f0", linewidth=0.5)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def log_scale(axes: Axes, which: str) -> None:
    """Log scale of the x or y axis around what is drawn, labelled 0.01, 0.1, 1, and 2 and 5 between on a short one."""
    axes.set(**{f"{which}scale": "log"})
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 200 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, under them, in as many columns as fit."""
    entries: dict[str, Artist] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        widest = 0.7 + 0.08 * max(map(len, entries))  # [inch]: handle and text
        columns = max(1, min(len(entries), int(figure.get_figwidth() / widest)))
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False)
