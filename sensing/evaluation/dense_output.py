"""Tables, figure and report of the task `dense_dictionary`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable

from sensing.data.atomic import atomic_path
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.fusion_output import write_npz
from sensing.evaluation.page import write_page
from sensing.evaluation.statistics import Floats, Value, bootstrapped
from sensing.evaluation.style import legend_below, panels

if TYPE_CHECKING:
    from sensing.evaluation.dense import DenseResult

HEADS = (
    "method", "snr_db", "nmse_db", "low_db", "high_db", "above_genie_db", "above_low_db", "above_high_db",
    "median_above_db", "p90_above_db", "of_seeds_db", "num_problems", "parameters",
    "training_samples", "runtime_ms", "fallback_fraction", "setting",
)  # fmt: skip
PAIRED = ("method", "against", "snr_db", "better_by_db", "low_db", "high_db", "num_problems")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F3C8D", "#B22222", "#666666")
CAPTION = (
    "Mean normalised error of the channel against the SNR, the same problems for all methods. Dashed black: LMMSE with "
    "the true support; dotted black: posterior mean by sampling (fewer problems), which no estimator beats on average."
)


def write_dense(
    found: Sequence["DenseResult"], folder: Path, settings: str, command: str, notes: Mapping[str, str] | None
) -> None:
    """Write results.csv, paired.csv (each trained method against every other), per_problem.npz, figure and report."""
    of = {(each.method, each.snr_db): each for each in found}
    rows = []
    for each in found:
        (own,) = bootstrapped(_decibel, each.nmse)
        floor = of["genie", each.snr_db].nmse[: len(each.nmse)]
        (above,) = bootstrapped(_ratio, each.nmse, floor)
        median, high = 10.0 * np.log10(np.quantile(each.of_seeds / floor, [0.5, 0.9]))
        of_seeds = " / ".join(f"{_decibel(nmse)[0]:.2f}" for nmse in each.of_seeds)
        rows.append(
            (each.method, f"{each.snr_db:g}", *_numbers(own), *_numbers(above), f"{median:.4g}", f"{high:.4g}",
             of_seeds, own.num_scenes, each.parameters, each.training_samples, f"{each.runtime_ms:.3g}",
             f"{each.fallback:.4g}", each.setting)
        )  # fmt: skip
    write_csv(folder / "results.csv", HEADS, rows)
    pairs = [
        (one.method, other.method, f"{one.snr_db:g}", *_numbers(value), value.num_scenes)
        for one in found
        if one.parameters
        for other in found
        if other.snr_db == one.snr_db and other.method != one.method
        for value in bootstrapped(_ratio, *_common(other.nmse, one.nmse))
    ]
    write_csv(folder / "paired.csv", PAIRED, pairs)
    write_npz(folder / "per_problem.npz", {f"{each.method}_{each.snr_db:g}_nmse": each.of_seeds for each in found})
    picture = folder / "figures" / "nmse_vs_snr.png"
    with atomic_path(picture) as temporary:
        draw(found).savefig(temporary, format="png")
    facts = {"command": command, "problems": str(max(len(each.nmse) for each in found)), **(notes or {})}
    write_page(
        folder / "report.html", "dense.html", "Dense dictionary", facts, [("nmse_vs_snr", picture, CAPTION)], settings,
        heads=HEADS, rows=[[str(cell) for cell in row] for row in rows],
        paired_heads=PAIRED, paired=[[str(cell) for cell in row] for row in pairs],
    )  # fmt: skip
    _print(found)


def draw(found: Sequence["DenseResult"]) -> Figure:
    """NMSE over SNR, and above the genie."""
    figure, (absolute, relative) = panels(2, width=5.2, height=4.2)
    floor = {each.snr_db: each.nmse for each in found if each.method == "genie"}
    others = [name for name in dict.fromkeys(each.method for each in found) if name not in ("genie", "bayes")]
    looks = {"genie": ("#000000", "--", ""), "bayes": ("#000000", ":", "")}
    looks |= {name: (COLORS[i % len(COLORS)], "-", "o") for i, name in enumerate(others)}
    for name, (color, line, marker) in looks.items():
        mine = sorted((each.snr_db, each.nmse) for each in found if each.method == name)
        if mine:
            style: dict[str, Any] = {
                "color": color,
                "linestyle": line,
                "marker": marker or None,
                "markersize": 4,
                "label": name,
            }
            absolute.plot([snr for snr, _ in mine], [_decibel(nmse)[0] for _, nmse in mine], **style)
            above = [_ratio(*_common(nmse, floor[snr]))[0] for snr, nmse in mine]
            relative.plot([snr for snr, _ in mine], above, **style)
    absolute.set(xlabel="SNR [dB]", ylabel="NMSE of the channel [dB]")
    relative.set(xlabel="SNR [dB]", ylabel="NMSE above the genie [dB]", ylim=(-0.2, 12.0))
    legend_below(figure, [absolute])
    return figure


def _decibel(nmse: Floats) -> Floats:
    return (10.0 * np.log10(np.mean(nmse, -1)))[None]


def _ratio(above: Floats, below: Floats) -> Floats:
    """Decibels of the ratio of two mean errors over the same problems."""
    return _decibel(above) - _decibel(below)


def _common(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    count = min(len(one), len(other))
    return one[:count], other[:count]


def _numbers(value: Value) -> tuple[str, str, str]:
    return f"{value.value:.4g}", f"{value.low:.4g}", f"{value.high:.4g}"


def _print(found: Sequence["DenseResult"]) -> None:
    table = RichTable(title="NMSE [dB]", title_justify="left")
    table.add_column("method")
    levels = sorted({each.snr_db for each in found})
    for snr in levels:
        table.add_column(f"{snr:g} dB", justify="right")
    for name in dict.fromkeys(each.method for each in found):
        mine = {each.snr_db: each for each in found if each.method == name}
        table.add_row(name, *(f"{_decibel(mine[snr].nmse)[0]:.2f}" for snr in levels))
    Console().print(table)
