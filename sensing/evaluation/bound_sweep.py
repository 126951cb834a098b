"""Task `bound_sweep`: the position error bound against any value of the configuration, at a point and over an area."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sensing.bounds.cooperative import Reason
from sensing.bounds.coverage import CHUNK, Area, build_area, coverage_map
from sensing.bounds.radar import BoundModel
from sensing.data.atomic import atomic_path
from sensing.errors import ConfigError
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.page import write_page
from sensing.evaluation.style import SPARE, legend_below, log_scale, panels
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", *(color for color, _ in SPARE))
MARKERS = "os^Dv<>ph*"
CAPTION = (
    "Position error bound against {key}, a curve for each {series}. Black rings: the values of the configuration. "
    "A missing point has no finite bound: see the table."
)


class SweepPoint(NamedTuple):
    """One network: a line of results.csv."""

    series: str  # label of the curve
    value: Any  # of the swept key
    configured: bool  # whether it is the value of the configuration
    peb_m: float  # at the point [m]; inf where unobservable
    reason: str  # why it is infinite
    max_peb_m: float | None  # largest over the area, unobservable points being infinite [m]; None: not asked for
    median_peb_m: float | None
    unobservable: int | None  # points of the area without a finite bound


def bound_sweep(
    build: Build,
    folder: str | Path,
    key: str,
    values: Sequence[Any],
    series_key: str | None = None,
    series_values: Sequence[Any] | None = None,
    labels: Sequence[str] | None = None,
    xlabel: str | None = None,
    point: Sequence[float] | None = None,
    area: Sequence[Sequence[float]] | None = None,
    height_m: float = 0.0,
    num_points: Sequence[int] | None = None,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[SweepPoint]:
    """Compute all bounds; write results.csv, the figure and report.html; print a table.

    Args:
        build: its network is varied.
        folder: run folder, made if absent.
        key: dotted key of the configuration, on the abscissa.
        values: its values; numbers are drawn on a logarithmic axis, anything else side by side.
        series_key: a second key, a curve for each of its values; None: one curve.
        series_values: its values.
        labels: names of the curves; None: the values.
        xlabel: of the abscissa; None: the key.
        point: [x, y] or [x, y, z] [m]; None: the centre of the area, at its height.
        area: [[x0, y0], [x1, y1]] [m]; None: the least rectangle around the configured stations.
        height_m: height of the area [m].
        num_points: cells of the area along x and y; None: the bound at the point alone.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a key does not exist or a value does not fit, before any work is done.
    """
    if not isinstance(key, str) or not key:
        raise ConfigError(f"key must be a dotted key of the configuration, got {key!r}")
    names = _names(values, series_key, series_values, labels)
    place, cells = _where(build, point, area, height_m, num_points)
    configured = build.value(key)
    networks = [
        (name, value, build.varied({key: value} if series_key is None else {key: value, series_key: chosen}).network())
        for name, chosen in zip(names, series_values or [None], strict=True)
        for value in values
    ]
    with progress_bar(progress, "networks") as bar:
        task = bar.add_task("bounds", total=len(networks))
        points = []
        for name, value, model in networks:
            points.append(_evaluate(name, value, value == configured, model, place, cells))
            bar.advance(task)
    folder, label = Path(folder), key if xlabel is None else xlabel
    rows = [[_text(cell) for cell in each] for each in points]
    write_csv(folder / "results.csv", [key if head == "value" else head for head in SweepPoint._fields], points)
    picture = folder / "figures" / "bound_sweep.png"
    with atomic_path(picture) as temporary:
        draw(points, label).savefig(temporary, format="png")
    facts = {"command": command, "point": f"{', '.join(f'{x:g}' for x in place.tolist())} m"}
    facts |= {} if cells is None else {"area": f"{len(cells.x_m)} x {len(cells.y_m)} points"}
    figures = [("bound_sweep", picture, CAPTION.format(key=label, series=series_key or "network"))]
    heads = [label if head == "value" else head for head in SweepPoint._fields]
    page, facts = folder / "report.html", facts | dict(notes or {})
    write_page(page, "bounds.html", "Bound sweep", facts, figures, settings, heads=heads, rows=rows)
    _print(points, label)
    return points


def _print(points: Sequence[SweepPoint], label: str) -> None:
    """A table for each measure: values down, curves across."""
    names = list(dict.fromkeys(point.series for point in points))
    count = len(points) // len(names)
    for field, title in _measures(points):
        table = Table(label, *names, title=f"{title} [mm]", title_justify="left", min_width=36)
        for at in range(count):
            those = points[at::count]
            table.add_row(str(those[0].value), *(f"{1e3 * getattr(each, field):.4g}" for each in those))
        Console().print(table)


def _measures(points: Sequence[SweepPoint]) -> list[tuple[str, str]]:
    """Fields of bounds that there are, and what they are called."""
    here = [("peb_m", "bound at the point")]
    over = [("max_peb_m", "largest bound over the area"), ("median_peb_m", "median bound over the area")]
    return here if points[0].max_peb_m is None else here + over


def _names(
    values: Sequence[Any], series_key: str | None, series_values: Sequence[Any] | None, labels: Sequence[str] | None
) -> list[str]:
    """Names of the curves."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ConfigError(f"values must be a list of at least one value, got {values!r}")
    if (series_key is None) != (series_values is None) or series_values == []:
        raise ConfigError(f"series_key and series_values go together, got {series_key!r} and {series_values!r}")
    count = 1 if series_values is None else len(series_values)
    if labels is not None and (len(labels) != count or len(set(labels)) != count):
        raise ConfigError(f"labels must be {count} different names, one for each curve, got {labels}")
    if labels is not None:
        return [str(label) for label in labels]
    return ["network"] if series_values is None else [f"{series_key} {value}" for value in series_values]


def _where(
    build: Build,
    point: Sequence[float] | None,
    area: Sequence[Sequence[float]] | None,
    height_m: float,
    num_points: Sequence[int] | None,
) -> tuple[torch.Tensor, Area | None]:
    """The point [xyz], and the area if its bounds are asked for."""
    cells = None
    if point is None or num_points is not None:
        cells = build_area(build.network().bs_position, area, height_m, [1, 1] if num_points is None else num_points)
    if point is None:
        assert cells is not None
        left, right, lower, upper = cells.extent
        point = [(left + right) / 2, (lower + upper) / 2]
    if len(point) not in (2, 3) or not all(isinstance(x, (int, float)) and np.isfinite(x) for x in point):
        raise ConfigError(f"point must be [x, y] or [x, y, z], got {point}")
    place = torch.tensor([*point, height_m][:3], dtype=torch.float64)
    return place, cells if num_points is not None else None


def _evaluate(
    name: str, value: Any, configured: bool, model: BoundModel, place: torch.Tensor, cells: Area | None
) -> SweepPoint:
    with torch.no_grad():
        bound = model.point_bound(place)
    here = (name, value, configured, float(bound.peb_m), Reason.describe(int(bound.reason)))
    if cells is None:
        return SweepPoint(*here, None, None, None)
    found = coverage_map(model, cells, CHUNK)
    return SweepPoint(*here, float(found.peb_m.max()), found.quantile(0.5), int((found.reason > 0).sum()))


def draw(points: Sequence[SweepPoint], label: str) -> Figure:
    """The bound at the point and, where they were asked for, its largest value and median over the area."""
    parts = _measures(points)
    figure, axes = panels(len(parts), width=5.6, height=4.6, sharey=True)
    for each, (field, title) in zip(axes, parts, strict=True):
        _curves(each, points, field)
        each.set(xlabel=label, ylabel="position error bound [mm]", title=title)
    legend_below(figure, axes)
    return figure


def _curves(axes: Axes, points: Sequence[SweepPoint], field: str) -> None:
    names = list(dict.fromkeys(point.series for point in points))
    values = [point.value for point in points if point.series == names[0]]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    x = np.array(values if numeric else range(len(values)), dtype=float)
    order = np.argsort(x)
    rings: list[tuple[float, float]] = []
    for at, name in enumerate(names):
        those = [point for point in points if point.series == name]
        y = 1e3 * np.array([getattr(point, field) for point in those])
        y = np.where(np.isfinite(y), y, np.nan)
        look: dict[str, Any] = {"color": COLORS[at % len(COLORS)], "marker": MARKERS[at % len(MARKERS)]}
        look |= {"markersize": 4.5, "linewidth": 1.4} if numeric else {"markersize": 7, "linestyle": "none"}
        axes.plot(x[order], y[order], label=name if len(names) > 1 else None, **look)
        rings += [(x[i], y[i]) for i, point in enumerate(those) if point.configured]
    if rings:
        look = {"markerfacecolor": "none", "markeredgecolor": "black", "markersize": 9, "linestyle": "none"}
        axes.plot(*zip(*rings, strict=True), marker="o", label="as configured", zorder=3, **look)
    if numeric and x.min() > 0:
        log_scale(axes, "x")
    elif not numeric:
        axes.set_xticks(x, [str(value) for value in values])
    if np.isfinite([getattr(point, field) for point in points]).any():
        log_scale(axes, "y")


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
