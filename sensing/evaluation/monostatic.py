"""Monte Carlo of the classical radar estimator against the bound: python evaluate.py task=monostatic."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from sensing.bounds.radar import Radar
from sensing.data.atomic import atomic_path
from sensing.errors import ConfigError
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.monte_carlo import TargetLaw, Trials, run_trials
from sensing.evaluation.page import write_page
from sensing.evaluation.statistics import Floats, Value, bootstrapped, proportion
from sensing.evaluation.style import SPARE, legend_below, log_scale, panels
from sensing.evaluation.task import Build

COLOURS = ("#0072B2", "#D55E00", "#009E73", *(color for color, _ in SPARE))
REDUCED = {"array.num": 16, "num_subcarriers": 256, "spacing_hz": 1.485e6, "num_symbols": 8, "symbol_s": 1.25e-4}
PRINTED = ("stations", "snr_db", "located", "rmse_m", "peb_rms_m", "rmse_over_peb", "coverage_95")
CHI2_95 = {2: 5.991, 3: 7.815}  # 95 % of the chi-square distribution with as many degrees of freedom
CAPTION = (
    "Root mean square error of the position (solid, with 95 % intervals) and its bound (dashed) over random targets "
    "against the SNR of an echo from the middle of the area, all samples of a link together; below the threshold "
    "echoes are missed, and a target without any counts with the error of the area's centre. Middle: medians over "
    "targets of the velocity's error and of its bound, a root mean square, where the links observe it; the median "
    "error of an efficient estimator is about 0.7 to 0.8 of that. Right: RMSE over bound (line: 1.1)."
)

LINK_HEADS = (
    *("transmitter", "receiver", "snr_db", "link_snr_median_db", "detected"),
    *(f"{name}_{kind}_over_bound" for kind in ("rms", "median") for name in ("range", "doppler", "direction")),
)
"""Columns of links.csv."""


class Row(NamedTuple):
    """A point of a case: a line of results.csv. Intervals are 95 %."""

    stations: str
    num_links: int
    snr_db: float  # of an echo from the middle of the area
    num_trials: int
    located: float  # share of targets with an estimate
    rmse_m: float  # over all targets
    rmse_low_m: float
    rmse_high_m: float
    peb_rms_m: float
    rmse_over_peb: float
    rmse_over_peb_low: float
    rmse_over_peb_high: float
    error_over_peb_rms: float  # root mean square of each target's error over its bound
    median_m: float
    p90_m: float
    nees_mean: float  # 2 (with unknown height 3) where the covariance tells the errors
    coverage_95: float  # share of located targets inside the estimator's own 95 % ellipse
    coverage_95_low: float
    coverage_95_high: float
    outliers: float  # share of located targets with an error above 5 bounds
    velocity_median_m_s: float  # NaN where the links do not observe the velocity; its bound has a heavy tail
    veb_median_m_s: float
    velocity_over_veb_rms: float  # root mean square of each target's error over its bound
    flagged: float


def monostatic(
    build: Build,
    folder: str | Path,
    area: Sequence[Sequence[float]] = ((8.0, 8.0), (64.0, 64.0)),
    height_m: Sequence[float] = (0.0, 0.0),
    speed_m_s: float = 8.0,
    stations: Sequence[Sequence[int]] = ((0,), (0, 2), (0, 1, 2, 3)),
    snr_db: Sequence[float] = (5.0, 10.0, 12.5, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0),
    num_trials: int = 500,
    waveform: Mapping[str, Any] | None = REDUCED,
    false_alarm: float = 1e-3,
    batch_size: int = 10,
    seed: int = 0,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Run the trials and write results.csv, links.csv, per_trial.npz, the figure and report.html.

    Args:
        build: its network is a radar network.
        folder: run folder, made if absent.
        area: lower and upper corner of the targets, [2 xy] [m].
        height_m: their lowest and highest height [m].
        speed_m_s: their largest speed [m/s].
        stations: cases: the stations that take part, each with the links between them.
        snr_db: SNR of the echo from the middle of the area, all samples of a link together [dB].
        num_trials: random targets per point.
        waveform: keys of the network that are replaced, by default for fewer samples; null: none.
        false_alarm: of the detection of an echo.
        batch_size: targets at once; does not change the results.
        seed: target i depends on (seed, i) alone.
        progress: progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit.
    """
    radar = build.varied({f"network.{key}": value for key, value in (waveform or {}).items()}).network()
    if not isinstance(radar, Radar):
        raise ConfigError(f"task=monostatic needs a radar network (network=square), got {type(radar).__name__}")
    law = TargetLaw(area, height_m, speed_m_s, seed)
    _check(law, snr_db, num_trials, batch_size)
    names, cases = ["+".join(map(str, case)) for case in stations], _links_of(radar, stations)
    trials = run_trials(radar, law, snr_db, cases, num_trials, batch_size, false_alarm, progress)
    size = 2 if radar.unknown == "xy" else 3
    rows = [
        _row(trials, case, at, names[case], len(cases[case]), float(snr), size)
        for case in range(len(cases))
        for at, snr in enumerate(snr_db)
    ]
    folder = Path(folder)
    write_csv(folder / "results.csv", rows[0]._fields, [[_text(value) for value in row] for row in rows])
    write_csv(folder / "links.csv", LINK_HEADS, _link_rows(trials, radar, snr_db))
    with atomic_path(folder / "per_trial.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, snr_db=np.array(snr_db, float), stations=np.array(names), **trials._asdict())
    picture = folder / "figures" / "error_vs_bound.png"
    with atomic_path(picture) as temporary:
        draw(rows).savefig(temporary, format="png")
    facts = {"command": command, "trials": f"{num_trials} per point, seed {seed}", **(notes or {})}
    cells = [[_text(value) for value in row] for row in rows]
    figures = [("error_vs_bound", picture, CAPTION)]
    page, title = folder / "report.html", "Radar estimator against the bound"
    write_page(page, "monostatic.html", title, facts, figures, settings, heads=Row._fields, rows=cells)
    shown = Table(*PRINTED, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*(_text(getattr(row, name)) for name in PRINTED))
    Console().print(shown)
    return rows


def _check(law: TargetLaw, snr_db: Sequence[float], num_trials: int, batch_size: int) -> None:
    numbers = np.array([*np.ravel(law.area), *law.height_m, law.speed_m_s, *snr_db], float)
    if np.shape(law.area) != (2, 2) or np.shape(law.height_m) != (2,) or not np.isfinite(numbers).all():
        raise ConfigError(
            f"task.area must be [2 xy], task.height_m [2], all finite, got {law.area}, {law.height_m}, {snr_db}"
        )
    low, high = (np.array([*corner, z]) for corner, z in zip(law.area, law.height_m, strict=True))
    if (low > high).any() or law.speed_m_s < 0:
        raise ConfigError(f"task.area and task.height_m must be (lower, upper), got {law.area} and {law.height_m}")
    if not len(snr_db) or len(set(snr_db)) < len(snr_db):
        raise ConfigError(f"task.snr_db must hold distinct values, got {list(snr_db)}")
    if num_trials < 1 or batch_size < 1:
        raise ConfigError(f"task.num_trials and task.batch_size must be at least 1, got {num_trials} and {batch_size}")


def _links_of(radar: Radar, stations: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the links between the stations of every case."""
    pairs = radar.network.links.tolist()
    cases = [[i for i, pair in enumerate(pairs) if set(pair) <= set(case)] for case in stations]
    if not cases or not all(cases):
        raise ConfigError(f"task.stations must be lists of stations with links {pairs} between them, got {stations}")
    return cases


def _row(trials: Trials, case: int, at: int, name: str, num_links: int, snr_db: float, size: int) -> Row:
    """Statistics of one point."""
    error, peb, located = trials.error_m[case, at], trials.peb_m[case, at], trials.located[case, at]

    def ratio(error: Floats, bound: Floats) -> Floats:
        rms = np.sqrt((error**2).mean(-1)), np.sqrt((bound**2).mean(-1))
        return np.stack([rms[0], rms[0] / rms[1]])

    rmse, over = bootstrapped(ratio, error, peb)
    score = trials.nees[case, at][located]
    inside = proportion(score < CHI2_95[size]) if len(score) else Value(math.nan, math.nan, math.nan, 0)
    velocity, veb = trials.velocity_error_m_s[case, at], trials.veb_m_s[case, at]
    seen = np.isfinite(velocity) & np.isfinite(veb)
    speed, speed_bound = (float(np.median(x[seen])) if seen.any() else math.nan for x in (velocity, veb))
    median, p90 = np.quantile(error, [0.5, 0.9])
    return Row(
        stations=name,
        num_links=num_links,
        snr_db=snr_db,
        num_trials=len(error),
        located=float(located.mean()),
        rmse_m=rmse.value,
        rmse_low_m=rmse.low,
        rmse_high_m=rmse.high,
        peb_rms_m=_rms(peb),
        rmse_over_peb=over.value,
        rmse_over_peb_low=over.low,
        rmse_over_peb_high=over.high,
        error_over_peb_rms=_rms(error / peb),
        median_m=float(median),
        p90_m=float(p90),
        nees_mean=float(score.mean()) if len(score) else math.nan,
        coverage_95=inside.value,
        coverage_95_low=inside.low,
        coverage_95_high=inside.high,
        outliers=float((error[located] > 5 * peb[located]).mean()) if located.any() else math.nan,
        velocity_median_m_s=speed,
        veb_median_m_s=speed_bound,
        velocity_over_veb_rms=_rms(velocity[seen] / veb[seen]),
        flagged=float((trials.flags[case, at] != 0).mean()),
    )


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else math.nan


def draw(rows: Sequence[Row]) -> Figure:
    """Errors and bounds of position and velocity, and the ratio of the former, against SNR."""
    figure, axes = panels(3, width=4.6, height=4.2)
    names = list(dict.fromkeys(row.stations for row in rows))
    for name, color in zip(names, COLOURS, strict=False):
        line = sorted((row for row in rows if row.stations == name), key=lambda row: row.snr_db)
        count = 1 + name.count("+")
        label = f"{count} station{'s' if count > 1 else ''} ({name})"
        snr = [row.snr_db for row in line]
        _curve(axes[0], snr, line, color, label)
        axes[0].plot(snr, [row.peb_rms_m for row in line], "--", color=color, label=f"bound, {label}")
        if any(math.isfinite(row.veb_median_m_s) for row in line):
            axes[1].plot(snr, [row.velocity_median_m_s for row in line], "o-", color=color, markersize=4)
            axes[1].plot(snr, [row.veb_median_m_s for row in line], "--", color=color)
        axes[2].plot(snr, [row.rmse_over_peb for row in line], "o-", color=color, markersize=4)
        axes[2].vlines(
            snr, [row.rmse_over_peb_low for row in line], [row.rmse_over_peb_high for row in line], color=color
        )
    axes[2].axhline(1.1, color="black", linewidth=0.8)
    labels = "position RMSE [m]", "median velocity error [m/s]", "position RMSE / bound"
    for each, label in zip(axes, labels, strict=True):
        each.set(xlabel="SNR of an echo from the middle [dB]", ylabel=label)
    for each in axes[:2]:
        if each.lines:
            log_scale(each, "y")
    axes[2].set_ylim(0.8, 1.8)
    legend_below(figure, axes)
    return figure


def _curve(axes: Axes, snr: Sequence[float], line: Sequence[Row], color: str, label: str) -> None:
    axes.plot(snr, [row.rmse_m for row in line], "o-", color=color, markersize=4, label=label)
    axes.vlines(snr, [row.rmse_low_m for row in line], [row.rmse_high_m for row in line], color=color)


def _link_rows(trials: Trials, radar: Radar, snr_db: Sequence[float]) -> list[list[str]]:
    """Detection and errors over bounds of the echoes, by link and SNR."""
    rows = []
    for link, pair in enumerate(radar.network.links.tolist()):
        for at, snr in enumerate(snr_db):
            seen = trials.detected[at, :, link]
            error = trials.echo_error[at, seen, link]
            blank = np.full(3, np.nan)
            rms, median = (np.sqrt((error**2).mean(0)), np.median(error, 0)) if seen.any() else (blank, blank)
            level = float(np.median(trials.echo_snr_db[at, :, link]))
            numbers = (snr, level, seen.mean(), *rms, *median)
            rows.append([*map(str, pair), *(_text(float(value)) for value in numbers)])
    return rows


def _text(value: Any) -> str:
    """A cell; empty for NaN, where there is nothing to measure."""
    if isinstance(value, (str, int)) or not isinstance(value, Real):
        return str(value)
    return "" if math.isnan(value) else f"{float(value):.4g}"
