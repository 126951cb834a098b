"""Task `coverage`: the position error bound of a network over an area, as picture, file, table and report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sensing.bounds.cooperative import Reason
from sensing.bounds.coverage import CHUNK, CoverageMap, build_area, coverage_map
from sensing.data.atomic import atomic_path
from sensing.errors import ConfigError
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.heat_map import heat_map
from sensing.evaluation.page import write_page
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build

CAPTION = (
    "Position error bound over the area, logarithmic colours. Dashed: the required accuracy. Ring: the largest finite "
    "bound. Grey or crossed: points without a finite bound, counted by reason."
)


def coverage(
    build: Build,
    folder: str | Path,
    area: Sequence[Sequence[float]] | None = None,
    height_m: float = 0.0,
    num_points: Sequence[int] = (289, 289),
    required_m: float = 0.01,
    color_limits_m: Sequence[float] | None = None,
    chunk: int = CHUNK,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> CoverageMap:
    """Compute the map; write coverage.npz, coverage.csv, results.csv, the figure and report.html; print a summary.

    Args:
        build: its network is mapped.
        folder: run folder, made if absent.
        area: [[x0, y0], [x1, y1]], opposite corners [m]; None: the least rectangle around the stations.
        height_m: height of all points [m].
        num_points: cells along x and y, each asked at its centre.
        required_m: accuracy that counts as covered [m].
        color_limits_m: least and largest bound of the colours [m]; None: what the map needs.
        chunk: points at once.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    limits = None if color_limits_m is None else (float(color_limits_m[0]), float(color_limits_m[-1]))
    if limits is not None and (len(color_limits_m or ()) != 2 or not 0 < limits[0] < limits[1] < np.inf):
        raise ConfigError(f"color_limits_m must be two numbers, 0 < low < high, got {color_limits_m}")
    if not isinstance(required_m, (int, float)) or not 0 < required_m < np.inf:
        raise ConfigError(f"required_m must be a number > 0, got {required_m!r}")
    model = build.network()
    cells = build_area(model.bs_position, area, height_m, num_points)
    with progress_bar(progress, "points") as bar:
        task = bar.add_task("bound", total=len(cells.x_m) * len(cells.y_m))
        found = coverage_map(model, cells, chunk, lambda count: bar.advance(task, count))
    folder = Path(folder)
    rows = summary(found, required_m)
    write_map(found, folder, required_m, model.bs_position.numpy())
    write_csv(folder / "results.csv", ["quantity", "value"], rows)
    picture = folder / "figures" / "coverage.png"
    title = f"{len(model.bs_position)} station{'s' * (len(model.bs_position) > 1)}, height {height_m:g} m"
    with atomic_path(picture) as temporary:
        heat_map(found, model.bs_position, required_m, limits, title).savefig(temporary, format="png")
    facts = {"command": command, "points": f"{num_points[0]} x {num_points[1]}, cell centres", **(notes or {})}
    figures = [("coverage", picture, CAPTION)]
    cells_text = [[name, _text(value)] for name, value in rows]
    page, heads = folder / "report.html", ["quantity", "value"]
    write_page(page, "bounds.html", "Coverage", facts, figures, settings, heads=heads, rows=cells_text)
    table = Table("", "", title="coverage", title_justify="left", show_header=False)
    for row in cells_text:
        table.add_row(*row)
    Console().print(table)
    return found


def summary(found: CoverageMap, required_m: float) -> list[tuple[str, float]]:
    """The map in a few numbers, unobservable points among them."""
    worst = found.worst
    return [
        ("points", found.peb_m.numel()),
        ("required_m", required_m),
        ("covered_fraction", found.covered(required_m)),
        *(() if worst is None else (("max_peb_m", worst.peb_m), ("max_x_m", worst.x_m), ("max_y_m", worst.y_m))),
        ("median_peb_m", found.quantile(0.5)),
        ("p90_peb_m", found.quantile(0.9)),
        ("min_peb_m", float(found.peb_m.min())),
        ("unobservable", sum(found.unobservable.values())),
        *((f"unobservable_{reason}", count) for reason, count in found.unobservable.items()),
    ]


def write_map(found: CoverageMap, folder: Path, required_m: float, stations: np.ndarray) -> None:
    """Write coverage.npz (x_m [x], y_m [y], peb_m [y x], reason [y x] ...) and coverage.csv, a line for each point."""
    peb, reason = found.peb_m.numpy(), found.reason.numpy()
    x, y = found.area.x_m.numpy(), found.area.y_m.numpy()
    with atomic_path(folder / "coverage.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            x_m=x,
            y_m=y,
            peb_m=peb,
            reason=reason,
            reason_names=np.array([f"{bit}={name}" for bit, name in Reason.NAMES.items()]),
            height_m=found.area.height_m,
            required_m=required_m,
            bs_position_m=stations,
        )
    names = {bits: Reason.describe(bits) for bits in np.unique(reason).tolist()}
    lines = (
        f"{at_x:.6g},{at_y:.6g},{value:.9g},{names[why]}\n"
        for at_y, values, whys in zip(y.tolist(), peb.tolist(), reason.tolist(), strict=True)
        for at_x, value, why in zip(x.tolist(), values, whys, strict=True)
    )
    with atomic_path(folder / "coverage.csv") as temporary, temporary.open("w", encoding="utf-8") as text:
        text.write("x_m,y_m,peb_m,reason\n")
        text.writelines(lines)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
