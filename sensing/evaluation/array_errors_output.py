"""Table, figure and report of the task `array_errors`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from sensing.data.atomic import atomic_path
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.fusion_output import write_npz
from sensing.evaluation.page import write_page
from sensing.evaluation.statistics import Floats, Value, bootstrapped, proportion
from sensing.evaluation.style import legend_below, log_scale, marks, panels
from sensing.metrics import CONVERGED

if TYPE_CHECKING:
    from sensing.evaluation.array_errors import Measured

HEADS = (
    "severity", "estimator", "num_train_scenes", "num_labels", "parameters", "seeds", "num_scenes", "rmse_m",
    "rmse_over_ideal", "low", "high", "over_ideal_of_seeds", "median_m", "p90_m", "rms_over_peb",
    "converged", "converged_low", "converged_high", "flagged", "ms_per_scene", "fit_s",
)  # fmt: skip
CAPTION = (
    "Distribution of the user error over the bound of an ideal array, over the scenes of all seeds; dotted: the "
    "threshold of convergence."
)
COUNTS = (
    "RMSE over that of ideal arrays on the same scenes against the number of scenes that the calibration has seen, all "
    "seeds together with 95 % intervals; crosses: single seeds, which draw hardware and scenes."
)
UNLABELLED, SEMI, LABELLED = "no users known", "some users known", "all users known"


def write_array_errors(
    results: Sequence["Measured"], folder: Path, settings: str, command: str, notes: Mapping[str, str] | None
) -> None:
    """Write results.csv, per_scene.npz, the figure and report.html; print the table."""
    rows = [[_text(cell) for cell in _row(each, results[0])] for each in results]
    write_csv(folder / "results.csv", HEADS, rows)
    arrays: dict[str, Floats] = {}
    for each in results:
        name = f"{each.severity:g}_{each.method}"
        arrays |= {f"{name}_error_m": each.error_m, f"{name}_error_over_peb": each.over_peb}
    write_npz(folder / "per_scene.npz", arrays)
    drawn = [("error_cdf", draw(results), CAPTION)]
    if len({each.num_train_scenes for each in results if each.num_train_scenes}) > 1:
        drawn.append(("over_ideal_vs_scenes", draw_counts(results), COUNTS))
    pictures = []
    for name, figure, caption in drawn:
        picture = folder / "figures" / f"{name}.png"
        with atomic_path(picture) as temporary:
            figure.savefig(temporary, format="png")
        pictures.append((name, picture, caption))
    facts = {"command": command, **(notes or {})}
    write_page(
        folder / "report.html", "array_errors.html", "Array errors", facts, pictures,
        settings, heads=HEADS, rows=rows,
    )  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in HEADS:
        table.add_column(head.replace("_", " "), justify="left" if head == "estimator" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=190).print(table)


def draw(results: Sequence["Measured"]) -> Figure:
    """Error distributions, a panel for each severity, the ideal array in all."""
    severities = list(dict.fromkeys(each.severity for each in results[1:]))
    names = list(dict.fromkeys(each.method for each in results))
    figure, axes = panels(len(severities), width=5.4, height=3.8)
    for severity, panel in zip(severities, axes, strict=True):
        for each in results:
            if each.severity not in (0.0, severity):
                continue
            color, _ = marks(each.method, names)
            ordered = np.sort(each.over_peb.ravel())
            share = (np.arange(len(ordered)) + 1) / len(ordered)
            dashes = "--" if each is results[0] else "-"
            panel.plot(ordered, share, color="#000000" if each is results[0] else color, ls=dashes, label=each.method)
        panel.axvline(CONVERGED, color="#888888", linestyle=":")
        log_scale(panel, "x")
        panel.set(xlabel="user error / bound", ylabel="share of scenes", xlim=(0.05, 300), ylim=(0, 1))
        panel.set_title(f"severity {severity:g}")
    legend_below(figure, axes)
    return figure


def draw_counts(results: Sequence["Measured"]) -> Figure:
    """RMSE over that of ideal arrays against the number of training scenes, a panel for each severity."""
    severities = list(dict.fromkeys(each.severity for each in results[1:]))
    figure, axes = panels(len(severities), width=5.4, height=3.8)
    for severity, panel in zip(severities, axes, strict=True):
        for kind, color in ((UNLABELLED, "#0072B2"), (SEMI, "#009E73"), (LABELLED, "#D55E00")):
            mine = [each for each in results if each.severity == severity and _kind(each) == kind]
            mine.sort(key=lambda each: each.num_train_scenes)
            if not mine:
                continue
            counts = [each.num_train_scenes for each in mine]
            ratios = [_over_ideal(each, results[0])[1] for each in mine]
            spread = [[each.value - each.low for each in ratios], [each.high - each.value for each in ratios]]
            panel.errorbar(
                counts, [each.value for each in ratios], spread, color=color, marker="o", capsize=3, label=kind
            )
            for each in mine:
                seeds = [_rms(a) / _rms(b) for a, b in zip(each.error_m, results[0].error_m, strict=True)]
                panel.plot([each.num_train_scenes] * len(seeds), seeds, "x", color=color, markersize=4)
        panel.axhline(1.0, color="#888888", linestyle=":")
        log_scale(panel, "x")
        panel.set(xlabel="scenes of the calibration", ylabel="RMSE over that of ideal arrays")
        panel.set_title(f"severity {severity:g}")
    legend_below(figure, axes)
    return figure


def _kind(each: "Measured") -> str:
    """What was known of the scenes of a calibration; empty for none."""
    if not each.num_train_scenes:
        return ""
    return {0: UNLABELLED, each.num_train_scenes: LABELLED}.get(each.num_labels, SEMI)


def _over_ideal(each: "Measured", ideal: "Measured") -> list[Value]:
    """RMSE, and that over the ideal one, with paired intervals."""
    return bootstrapped(
        lambda a, b: np.stack([_rms(a), _rms(a) / _rms(b)]), each.error_m.ravel(), ideal.error_m.ravel()
    )


def _row(each: "Measured", ideal: "Measured") -> list[object]:
    error, over = each.error_m.ravel(), each.over_peb.ravel()
    rmse, ratio = _over_ideal(each, ideal)
    of_seeds = [f"{_rms(a) / _rms(b):.3g}" for a, b in zip(each.error_m, ideal.error_m, strict=True)]
    converged, flagged = proportion(over < CONVERGED), each.flagged.mean()
    finite = np.isfinite(over)
    return [
        each.severity, each.method, each.num_train_scenes, each.num_labels, each.parameters, len(each.error_m),
        error.size, rmse.value, ratio.value, ratio.low, ratio.high, " / ".join(of_seeds), float(np.median(error)),
        float(np.quantile(error, 0.9)), float(_rms(over[finite])), converged.value, converged.low, converged.high,
        float(flagged), 1e3 * each.seconds, each.fit_seconds,
    ]  # fmt: skip


def _rms(values: Floats) -> Floats:
    return np.sqrt(np.mean(values**2, -1))


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
