"""The main numbers of an evaluation with 95 % confidence intervals, printed and for the report."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from sensing.evaluation.measures import measure
from sensing.evaluation.result import SweepResult
from sensing.evaluation.statistics import Value


class Column(NamedTuple):
    """A column of a table: one statistic of one metric."""

    head: str
    metric: str
    statistic: str = "mean"
    kind: str = "number"  # number, percent, decibel, milliseconds or nanoseconds
    printed: bool = False  # on the console too
    interval: bool = False  # there with its interval
    instead_of: str = ""  # shown only where no scene set has this metric


SUMMARY = (
    Column("median [m]", "ue_error_m", "median", printed=True, interval=True),
    Column("90 % [m]", "ue_error_m", "p90", printed=True),
    Column("rms [m]", "ue_error_m", "rms", printed=True),
    Column("rms/PEB*", "ue_error_over_peb_converged", "rms", printed=True),
    Column("RMSE/rms PEB", "ue_rmse_over_rms_peb", "ratio", printed=True),
    Column("converged [%]", "converged_fraction", kind="percent", printed=True, interval=True),
    Column("below 1 m [%]", "below_1m_fraction", "mean", "percent", True, True, "converged_fraction"),
    Column("below 3 m [%]", "below_3m_fraction", "mean", "percent", True, True, "converged_fraction"),
    Column("NMSE [dB]", "channel_nmse_db", kind="decibel", printed=True),
    Column("above genie [dB]", "nmse_gap_to_genie_db", "ratio", "decibel"),
    Column("flagged [%]", "flagged_fraction", kind="percent", printed=True),
    Column("fell back [%]", "fallback_fraction", kind="percent", printed=True),
    Column("near [%]", "near_fraction", kind="percent", printed=True),
    Column("ms/scene", "time_s", kind="milliseconds", printed=True),
)
TRUSTED = (
    Column("flagged [%]", "flagged_fraction", kind="percent", printed=True, interval=True),
    Column("median [m]", "ue_error_unflagged_m", "median", printed=True, interval=True),
    Column("90 % [m]", "ue_error_unflagged_m", "p90", printed=True, interval=True),
    Column("below 1 m [%]", "below_1m_unflagged_fraction", kind="percent", printed=True, interval=True),
    Column("below 3 m [%]", "below_3m_unflagged_fraction", kind="percent", printed=True, interval=True),
    Column("converged [%]", "converged_unflagged_fraction", kind="percent"),
    Column("inside 90 % [%]", "covered_90_unflagged_fraction", kind="percent"),
)
SCATTERERS = (
    Column("shared: median [m]", "scatterer_error_m", "median"),
    Column("over median bound", "scatterer_median_over_median_bound", "ratio"),
    Column("rms [m]", "scatterer_error_m", "rms"),
    Column("specific: median [m]", "scatterer_specific_error_m", "median"),
    Column("over median bound", "scatterer_specific_median_over_median_bound", "ratio"),
    Column("rms [m]", "scatterer_specific_error_m", "rms"),
    Column("GOSPA, median [m]", "gospa_m", "median"),
    Column("clocks, median [ns]", "clock_offset_error_s", "median", "nanoseconds"),
)
UNCERTAINTY = (
    *(Column(f"user in {p} % [%]", f"covered_{p}_fraction", kind="percent") for p in (50, 90, 99)),
    Column("in 90 %, not flagged [%]", "covered_90_unflagged_fraction", kind="percent"),
    Column("NEES of user", "nees_user"),
    Column("not flagged", "nees_user_unflagged"),
    Column("band from", "nees_user_unflagged", "band_low"),
    Column("to", "nees_user_unflagged", "band_high"),
    Column("user and clocks, not flagged", "nees_common_unflagged"),
    *(Column(f"shared scatterers in {p} % [%]", f"shared_covered_{p}_fraction", kind="percent") for p in (50, 90, 99)),
    Column("specific in 90 % [%]", "specific_covered_90_fraction", kind="percent"),
)
TABLES = {
    "Summary": SUMMARY,
    "Scenes that are not flagged": TRUSTED,
    "Scatterers and clocks": SCATTERERS,
    "Claimed uncertainty": UNCERTAINTY,
}


class Line(NamedTuple):
    """A line of a table, as texts."""

    sigma: str
    snr: str
    estimator: str
    cells: list[tuple[str, str]]  # (number, interval), both empty where there is none
    first: bool  # of its SNR


def shown(results: Sequence[SweepResult], columns: Sequence[Column]) -> list[Column]:
    """The columns that some estimator fills."""
    filled = {(key[2], key[3]) for result in results for key in measure(result) if key[0] in result.scores}
    metrics = {metric for metric, _ in filled}
    return [
        column for column in columns if (column.metric, column.statistic) in filled and column.instead_of not in metrics
    ]


def table_lines(results: Sequence[SweepResult], columns: Sequence[Column]) -> list[Line]:
    """By deviation of the clock offsets, SNR, then estimator; bounds last. Lines without any number are left out."""
    lines: list[Line] = []
    for result in results:
        for at, snr in enumerate(result.snr_db):
            first = True
            for name in (*result.names, *result.bounds):
                values = [measure(result).get((name, at, column.metric, column.statistic)) for column in columns]
                if any(value is not None for value in values):
                    cells = [_cell(column.kind, value) for column, value in zip(columns, values, strict=True)]
                    lines.append(Line(sigma_label(result), snr_label(snr), name, cells, first))
                    first = False
    return lines


def _cell(kind: str, value: Value | None) -> tuple[str, str]:
    if value is None:
        return "", ""
    if not math.isfinite(value.value):
        return "-", ""
    if kind == "milliseconds":
        return _number(1e3 * value.value, 3), ""
    if kind == "decibel":
        number, interval = f"{value.value:.1f}", f"{value.low:.1f} .. {value.high:.1f}"
    elif kind == "percent":
        number, interval = f"{100 * value.value:.1f}", f"{100 * value.low:.0f}–{100 * value.high:.0f}"
    else:
        scale = 1e9 if kind == "nanoseconds" else 1.0
        number = _number(scale * value.value, 3)
        interval = f"{_number(scale * value.low, 2)}–{_number(scale * value.high, 2)}"
    return number, interval if math.isfinite(value.low) else ""


def _number(value: float, digits: int) -> str:
    """So many significant digits, never an exponent."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def snr_label(snr_db: float | None) -> str:
    """An SNR for people."""
    return "unknown" if snr_db is None else f"{snr_db:g} dB"


def sigma_label(result: SweepResult) -> str:
    """The deviation of the clock offset prior for people."""
    sigma = result.sigma_over_bandwidth
    return "unknown" if math.isinf(sigma) else f"{sigma:.3g} / B"


def failures(results: Sequence[SweepResult]) -> list[tuple[str, str, int]]:
    """(estimator, where, number of scenes without a finite position), for those that have some."""
    found = []
    for result in results:
        for name, scores in result.scores.items():
            for at, snr in enumerate(result.snr_db):
                count = int(np.sum(~np.isfinite(scores["ue_error_m"][at]))) if "ue_error_m" in scores else 0
                if count:
                    where = snr_label(snr) + (f", sigma {sigma_label(result)}" if len(results) > 1 else "")
                    found.append((name, where, count))
    return found


def print_summary(results: SweepResult | Sequence[SweepResult], console: Console | None = None) -> None:
    """Print the summary (for a file also that of the trusted scenes), what was left out and what failed."""
    results = [results] if isinstance(results, SweepResult) else list(results)
    console = Console() if console is None else console
    _print_table(results, SUMMARY, _title(results[0]), console)
    if not results[0].bounds and shown(results, TRUSTED[1:]):
        _print_table(results, TRUSTED, "The same of the scenes that are not flagged", console)
    for name, where, count in failures(results):
        console.print(f"{name} at {where}: no position in {count} scenes")
    for name, reason in results[0].left_out.items():
        console.print(f"left out: {name} ({reason})", markup=False)


def _print_table(results: Sequence[SweepResult], columns: Sequence[Column], title: str, console: Console) -> None:
    columns = [column for column in shown(results, columns) if column.printed]
    several = len(results) > 1
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title_justify="left", title=title)
    for head in (*(("sigma",) if several else ()), "SNR"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("estimator", no_wrap=True)
    for column in columns:
        table.add_column(column.head.replace("[", "\\["), justify="right", no_wrap=True)
    for line in table_lines(results, columns):
        if line.first and table.row_count:
            table.add_section()
        texts = [
            f"{number} [dim]({interval})[/dim]" if interval and column.interval else number
            for column, (number, interval) in zip(columns, line.cells, strict=True)
        ]
        where = (line.sigma, line.snr) if several else (line.snr,)
        table.add_row(*(where if line.first else [""] * len(where)), line.estimator, *texts)
    # as wide as the table is: a narrower one, as in a pipe or a log, would cut the numbers off
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    wide = Console(file=console.file, width=max(console.width, width), force_terminal=console.is_terminal)
    wide.print(table)


def _title(result: SweepResult) -> str:
    return f"{len(result.scenes)} scenes of {result.split}; in brackets: 95 % confidence intervals; *: converged scenes"
