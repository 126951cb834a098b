"""Table, map and report of the task `fuse_file`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from sensing.data.atomic import atomic_path
from sensing.data.station_file import StationDrop
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.fusion_output import CAPTION, HEADS, LOOKS, write_errors
from sensing.evaluation.page import write_page
from sensing.evaluation.scene_map import ellipse
from sensing.evaluation.style import legend_below, panels

if TYPE_CHECKING:
    from sensing.evaluation.fusion import FusionErrors

PAIRS = ("xx", "xy", "xz", "yy", "yz", "zz")
COLUMNS = ("drop", "method", "num_stations", *(f"{axis}_m" for axis in "xyz"), *(f"cov_{pair}_m2" for pair in PAIRS),
           "flags", *(f"second_{axis}_m" for axis in "xyz"), "error_m")  # fmt: skip
MARKS = "o^vDPXs"
NAMED = 12  # stations that are named on the map; more names hide it
MAP_CAPTION = (
    "Plan of all drops: stations, positions by all methods, 95 % ellipses of {method} under the deviations of the file "
    "(none where a coordinate is open), its second modes as open circles{truth}."
)


class DropResult(NamedTuple):
    """A drop by one method."""

    position: Tensor | None  # [xyz] [m]; None without a measurement
    covariance: Tensor | None  # [xyz xyz] [m^2]; 0 along a known coordinate, inf on the diagonal where open
    second: Tensor | None  # [xyz] of a second mode [m]
    flags: tuple[str, ...]  # reasons to doubt the position
    error_m: float | None = None  # distance to the true position, over the unknown coordinates [m]


class FileFusion(NamedTuple):
    """The drops of a file, fused."""

    drops: list[StationDrop]
    results: list[dict[str, DropResult]]  # of every drop, by method
    errors: list["FusionErrors"]  # by what was measured, where the file has truth


def write_file_fusion(found: FileFusion, folder: Path, settings: str, command: str, notes: Mapping[str, str]) -> None:
    """Write fused.csv, the map, the tables of errors where there is truth, and report.html; print a summary."""
    write_csv(folder / "fused.csv", COLUMNS, _rows(found))
    methods = list(found.results[0])
    picture = folder / "figures" / "map.png"
    with atomic_path(picture) as temporary:
        draw_map(found).savefig(temporary, format="png")
    truth = "; black stars and lines: true positions" if found.errors else ""
    figures = [("map", picture, MAP_CAPTION.format(method=methods[0], truth=truth))]
    rows: list[list[str]] = []
    if found.errors:
        rows, error_cdf = write_errors(found.errors, folder)
        figures.append(("error_cdf", error_cdf, CAPTION.split(" Dashed")[0]))
    counts = {name: Counter(word for result in found.results for word in result[name].flags) for name in methods}
    words = sorted({word for count in counts.values() for word in count})
    flags = [[word, *(str(counts[name][word]) for name in methods)] for word in words]
    write_page(
        folder / "report.html", "fuse_file.html", "Fusion of a file", {"command": command, **notes}, figures,
        settings, heads=HEADS, rows=rows, flag_heads=["flag", *methods], flags=flags,
    )  # fmt: skip
    _print(flags, methods, len(found.drops))


def _rows(found: FileFusion) -> Iterator[list[object]]:
    """Rows of fused.csv."""
    for drop, result in zip(found.drops, found.results, strict=True):
        for name, each in result.items():
            place, spread, second = [""] * 3, [""] * len(PAIRS), [""] * 3
            if each.position is not None and each.covariance is not None:
                place = [f"{value:.9g}" for value in each.position.tolist()]
                covariance = each.covariance.tolist()
                spread = [f"{covariance['xyz'.index(pair[0])]['xyz'.index(pair[1])]:.6g}" for pair in PAIRS]
            if each.second is not None:
                second = [f"{value:.9g}" for value in each.second.tolist()]
            error = "" if each.error_m is None else f"{each.error_m:.6g}"
            yield [drop.name, name, drop.num_stations, *place, *spread, "|".join(each.flags), *second, error]


def draw_map(found: FileFusion) -> Figure:
    """Plan of stations, true positions, and estimates by all methods."""
    figure, (axes,) = panels(1, width=8.0, height=6.8)
    _stations(axes, found.drops)
    for rank, method in enumerate(found.results[0]):
        color, _ = LOOKS[method]
        each = [(drop, result[method]) for drop, result in zip(found.drops, found.results, strict=True)]
        if rank == 0:
            _details(axes, each, color)
        place = np.array([result.position[:2].tolist() for _, result in each if result.position is not None])
        mark, size, front = MARKS[rank % len(MARKS)], 4.0 if rank == 0 else 6.0, 5 if rank == 0 else 4
        axes.plot(*place.T, mark, color=color, markersize=size, alpha=0.8, label=method, zorder=front)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel="x [m]", ylabel="y [m]", title=f"{len(found.drops)} drops")
    legend_below(figure, [axes])
    return figure


def _stations(axes: Axes, drops: Sequence[StationDrop]) -> None:
    """Every station once, named where they are few."""
    homes = {
        name: place
        for drop in drops
        for name, place in zip(drop.stations, drop.measured.bs_position.tolist(), strict=True)
    }
    place = np.array(list(homes.values()))
    axes.plot(*place.T[:2], "s", color="black", markersize=8, label="station", zorder=6)
    for name, (x, y, _) in homes.items() if len(homes) <= NAMED else ():
        axes.annotate(name, (x, y), xytext=(7, 7), textcoords="offset points", zorder=7)


def _details(axes: Axes, each: Sequence[tuple[StationDrop, DropResult]], color: str) -> None:
    """Ellipses, second modes and errors of a method."""
    for drop, result in each:
        if result.position is None or result.covariance is None:
            continue
        ellipse(axes, result.position[:2].numpy(), result.covariance[:2, :2], color)
        if drop.position is not None:
            ends = np.array([drop.position[:2].tolist(), result.position[:2].tolist()])
            axes.plot(*ends.T, color="#888888", linewidth=0.8, zorder=2)
    second = np.array([result.second[:2].tolist() for _, result in each if result.second is not None])
    if len(second):
        axes.plot(*second.T, "o", color=color, markerfacecolor="none", linestyle="", label="second mode", zorder=4)
    truth = np.array([drop.position[:2].tolist() for drop, _ in each if drop.position is not None])
    if len(truth):
        axes.plot(*truth.T, "*", color="black", markersize=7, linestyle="", label="true position", zorder=3)


def _print(flags: Sequence[Sequence[str]], methods: Sequence[str], drops: int) -> None:
    table = RichTable(title=f"flags of {drops} drops", title_justify="left")
    for head in ("flag", *methods):
        table.add_column(head, justify="left" if head == "flag" else "right")
    for row in flags:
        table.add_row(*row)
    Console().print(table if flags else f"{drops} drops, none flagged")
