"""The main numbers of an evaluation with 95 % confidence intervals, printed and for the report."""

import math
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from sensing.evaluation.result import SweepResult
from sensing.evaluation.statistics import Value, proportion, with_interval

Cells = list[tuple[str, str]]  # (number, interval), both empty where there is none


class Summary(NamedTuple):
    """One estimator, or bound, at one SNR; None where it has no such output."""

    estimator: str
    snr_db: float | None
    median_m: Value | None = None
    p90_m: Value | None = None
    rms_m: Value | None = None
    rms_over_peb: Value | None = None  # converged scenes
    converged: Value | None = None
    below_1m: Value | None = None
    below_3m: Value | None = None
    nmse_db: Value | None = None  # mean
    flagged: Value | None = None
    covered: Value | None = None  # true user inside the claimed 95 % ellipsoid
    time_s: float | None = None
    num_failed: int = 0  # scenes without a finite user position


HEADERS = {
    "median_m": "median [m]",
    "p90_m": "90 % [m]",
    "rms_m": "rms [m]",
    "rms_over_peb": "rms/PEB, converged",
    "converged": "converged [%]",
    "below_1m": "below 1 m [%]",
    "below_3m": "below 3 m [%]",
    "nmse_db": "NMSE [dB]",
    "flagged": "flagged [%]",
    "covered": "inside 95 % [%]",
    "time_s": "ms/scene",
}

PRINTED = {
    "median_m": "median \\[m]",
    "rms_m": "rms \\[m]",
    "rms_over_peb": "rms/PEB*",
    "converged": "converged \\[%]",
    "below_1m": "below 1 m \\[%]",
    "below_3m": "below 3 m \\[%]",
    "nmse_db": "NMSE \\[dB]",
    "flagged": "flagged \\[%]",
    "time_s": "ms/scene",
}
WITH_INTERVAL = ("median_m", "converged", "below_1m", "below_3m")


def summaries(result: SweepResult) -> list[Summary]:
    """By SNR, then estimator; bounds last within an SNR."""
    lines = []
    for at, snr in enumerate(result.snr_db):
        lines += [_summary(result, name, at) for name in result.names]
        for name, bound in result.bounds.items():
            error = bound["ue_error_m"][at]
            median, p90, rms = (with_interval(error, stat) for stat in ("median", "p90", "rms"))
            lines.append(Summary(name, snr, median, p90, rms))
    return lines


def _summary(result: SweepResult, name: str, at: int) -> Summary:
    scores, ratio, converged, flagged = (
        result.scores[name],
        result.over_bound(name),
        result.converged(name),
        result.flagged(name),
    )
    line = Summary(name, result.snr_db[at], time_s=float(np.mean(scores["time_s"][at])))
    if "ue_error_m" in scores:
        error = scores["ue_error_m"][at]
        line = line._replace(
            median_m=with_interval(error, "median"),
            p90_m=with_interval(error, "p90"),
            rms_m=with_interval(error, "rms"),
            below_1m=proportion(error < 1.0),
            below_3m=proportion(error < 3.0),
            num_failed=int(np.sum(~np.isfinite(error))),
        )
    if "covered" in scores:
        line = line._replace(covered=proportion(scores["covered"][at] == 1.0))
    if ratio is not None and converged is not None:
        line = line._replace(
            rms_over_peb=with_interval(ratio[at][converged[at]], "rms"), converged=proportion(converged[at])
        )
    if "channel_nmse_db" in scores:
        line = line._replace(nmse_db=with_interval(scores["channel_nmse_db"][at], "mean", decibel=True))
    return line if flagged is None else line._replace(flagged=proportion(flagged[at]))


def shown_columns(lines: list[Summary]) -> dict[str, str]:
    """Columns that some estimator fills; with a bound, `converged` stands in for the shares below 1 m and 3 m."""
    filled = {key: head for key, head in HEADERS.items() if any(getattr(line, key) is not None for line in lines)}
    if "converged" in filled:
        filled.pop("below_1m", None)
        filled.pop("below_3m", None)
    return filled


def cells(line: Summary, columns: dict[str, str]) -> Cells:
    """The line as texts: number and interval."""
    return [_cell(key, getattr(line, key)) for key in columns]


def _cell(key: str, value: Value | float | None) -> tuple[str, str]:
    if value is None:
        return "", ""
    if isinstance(value, float):
        return _number(1e3 * value, 3), ""
    if not math.isfinite(value.value):
        return "-", ""
    if key == "nmse_db":
        return f"{value.value:.1f}", f"{value.low:.1f} .. {value.high:.1f}"
    if key in ("converged", "below_1m", "below_3m", "flagged", "covered"):
        return f"{100 * value.value:.1f}", f"{100 * value.low:.0f}–{100 * value.high:.0f}"
    return _number(value.value, 3), f"{_number(value.low, 2)}–{_number(value.high, 2)}"


def _number(value: float, digits: int) -> str:
    """So many significant digits, never an exponent."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def snr_label(snr_db: float | None) -> str:
    """An SNR for people."""
    return "unknown" if snr_db is None else f"{snr_db:g} dB"


def print_summary(result: SweepResult, console: Console | None = None) -> None:
    """Print the table, what was left out and why, and how many scenes failed."""
    console = Console() if console is None else console
    lines = summaries(result)
    columns = {key: head for key, head in shown_columns(lines).items() if key in PRINTED}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title_justify="left", title=_title(result))
    table.add_column("SNR", justify="right", no_wrap=True)
    table.add_column("estimator", no_wrap=True)
    for key in columns:
        table.add_column(PRINTED[key], justify="right", no_wrap=True)
    previous: float | None = math.nan
    for line in lines:
        if line.snr_db != previous and table.row_count:
            table.add_section()
        texts = [
            f"{number} [dim]({interval})[/dim]" if interval and key in WITH_INTERVAL else number
            for key, (number, interval) in zip(columns, cells(line, columns), strict=True)
        ]
        table.add_row(snr_label(line.snr_db) if line.snr_db != previous else "", line.estimator, *texts)
        previous = line.snr_db
    # as wide as the table is: a narrower one, as in a pipe or a log, would cut the numbers off
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    wide = Console(file=console.file, width=max(console.width, width), force_terminal=console.is_terminal)
    wide.print(table)
    for line in lines:
        if line.num_failed:
            console.print(f"{line.estimator} at {snr_label(line.snr_db)}: no position in {line.num_failed} scenes")
    for name, reason in result.left_out.items():
        console.print(f"left out: {name} ({reason})", markup=False)


def _title(result: SweepResult) -> str:
    return f"{len(result.scenes)} scenes of {result.split}; in brackets: 95 % confidence intervals; *: converged scenes"
