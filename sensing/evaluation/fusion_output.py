"""Tables, figures and report of the fusion tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as RichTable

from sensing.data.atomic import atomic_path
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.page import write_page
from sensing.evaluation.statistics import Floats, Value, bootstrapped
from sensing.evaluation.style import legend_below, panels

if TYPE_CHECKING:
    from sensing.evaluation.fusion import FusionErrors

QUANTILES = (0.5, 0.8, 0.9)
LOOKS = {  # colour and line of a method, the same in all figures
    "equal": ("#0072B2", "-"),
    "optimal": ("#D55E00", "-"),
    "fixed_range_weight": ("#CC79A7", "--"),
    "inverse_variance": ("#8C6D31", ":"),
    "covariance_intersection": ("#666666", ":"),
    "best_station": ("#E69F00", ":"),
    "learned_weights": ("#56B4E9", "-"),
    "learned": ("#009E73", "-"),
    "bayes": ("#000000", "--"),
}
CAPTION = (
    "Distribution of the position error over the same drops for all methods. Dashed black: posterior mean under the "
    "true law of the measurements, which no method can beat in mean squared error."
)
RATIOS = ("equal", "bayes")
"""Methods to whose quantiles all others' are compared, drop by drop, where they were run."""
HEADS = (
    *("modality", "num_stations", "method", "quantile", "error_m", "low_m", "high_m"),
    *(f"{name}_{base}" for base in RATIOS for name in ("over", "low_over", "high_over")),
)


def write_fusion(
    found: Sequence["FusionErrors"], folder: Path, settings: str, command: str, notes: Mapping[str, str] | None
) -> None:
    """Write fusion.csv, results.csv (with intervals), errors.npz, the figure and report.html; print the 90 % errors."""
    rows, picture = write_errors(found, folder)
    drops = len(next(iter(found[0].error_m.values())))
    facts = {"command": command, "drops": str(drops), **(notes or {})}
    write_page(
        folder / "report.html", "fusion.html", "Fusion", facts, [("error_cdf", picture, CAPTION)], settings,
        heads=HEADS, rows=rows,
    )  # fmt: skip


def write_errors(found: Sequence["FusionErrors"], folder: Path) -> tuple[list[list[str]], Path]:
    """Write fusion.csv, results.csv, errors.npz and the figure; print the 90 % errors.

    Returns:
        The rows of results.csv, and the figure's path.
    """
    rows = [row for each in found for row in _rows(each)]
    short = [
        (method, modality, count, quantile, f"{error.value:.6g}", error.num_scenes)
        for modality, count, method, quantile, error, *_ in rows
    ]
    write_csv(folder / "fusion.csv", ("method", "modality", "num_stations", "quantile", "error_m", "num_drops"), short)
    full = [(*row[:4], *(text for value in row[4:] for text in _numbers(value))) for row in rows]
    write_csv(folder / "results.csv", HEADS, full)
    arrays: dict[str, NDArray[Any]] = {}
    for each in found:
        place = f"{each.case.modality}_{len(each.case.stations)}"
        arrays |= {f"{place}_{method}_error_m": values for method, values in each.error_m.items()}
        arrays |= {f"{place}_{method}_weight": values for method, values in each.weight.items()}
        arrays |= {f"{place}_{method}_flags": values for method, values in each.flags.items()}
        arrays[f"{place}_range_factor"] = np.array(each.range_factor)
    write_npz(folder / "errors.npz", arrays)
    picture = folder / "figures" / "error_cdf.png"
    with atomic_path(picture) as temporary:
        draw(found).savefig(temporary, format="png")
    _print(found)
    return [[str(cell) for cell in row] for row in full], picture


def draw(found: Sequence["FusionErrors"]) -> Figure:
    """Error distributions, a panel for each case."""
    columns = min(3, len(found))
    figure, axes = panels(len(found), width=4.6, height=3.8, columns=columns)
    for each, panel in zip(found, axes, strict=True):
        high = 0.0
        for method, error in each.error_m.items():
            color, line = LOOKS[method]
            ordered = np.sort(error)
            share = np.arange(len(ordered) + 1) / len(ordered)
            ordered = np.concatenate([ordered[:1], ordered])  # from zero up, so that a single drop shows too
            panel.plot(ordered, share, color=color, linestyle=line, label=method, drawstyle="steps-post")
            high = max(high, float(np.quantile(error, 0.97)))
        base = next(iter(each.error_m.values()))
        high = 1.02 * min(high, 2.0 * float(np.quantile(base, 0.97)))  # a far worse method leaves the panel
        count = len(each.case.stations)
        panel.set(xlabel="position error [m]", ylabel="share of drops", xlim=(0, high or None), ylim=(0, 1))
        panel.set_title(f"{each.case.modality}, {count} station{'s' * (count > 1)}")
    legend_below(figure, axes)
    return figure


def quantiles(values: Floats) -> Floats:
    """The reported quantiles, [quantile *]."""
    return np.quantile(values, QUANTILES, axis=-1)


def _rows(each: "FusionErrors") -> list[tuple[str, int, str, float, Value, Value | None, Value | None]]:
    """Modality, stations, method, quantile, error and its paired ratios to those of `RATIOS`."""
    rows = []
    for method, error in each.error_m.items():
        values = bootstrapped(quantiles, error)
        equal, bayes = (_ratios(error, each.error_m.get(base)) for base in RATIOS)
        for level, value, *ratios in zip(QUANTILES, values, equal, bayes, strict=True):
            rows.append((each.case.modality, len(each.case.stations), method, level, value, ratios[0], ratios[1]))
    return rows


def _ratios(error: Floats, base: Floats | None) -> Sequence[Value | None]:
    """Ratios of quantiles; none where the base was not run."""
    if base is None:
        return [None] * len(QUANTILES)
    return bootstrapped(lambda a, b: quantiles(a) / quantiles(b), error, base)


def _numbers(value: Value | None) -> tuple[str, str, str]:
    if value is None:
        return "", "", ""
    return f"{value.value:.6g}", f"{value.low:.6g}", f"{value.high:.6g}"


def _print(found: Sequence["FusionErrors"]) -> None:
    table = RichTable(title="90 % error [m]", title_justify="left")
    table.add_column("method")
    for each in found:
        table.add_column(f"{each.case.modality}, {len(each.case.stations)}", justify="right")
    for method in found[0].error_m:
        table.add_row(method, *(f"{np.quantile(each.error_m[method], 0.9):.2f}" for each in found))
    Console().print(table)


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays at once."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
