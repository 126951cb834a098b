"""Paper 1's degree-of-freedom figure: its count of equations beside the rank of the joint Jacobian in random scenes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sensing.bounds.identifiability import equation_count, nullity, paper_ratio, singular_values
from sensing.containers import Deployment
from sensing.data.atomic import atomic_path
from sensing.errors import ConfigError
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.page import write_page
from sensing.evaluation.style import SPARE, panels
from sensing.evaluation.task import Build
from sensing.simulation import SceneSampler, Simulator

NEEDED = 4  # shared scatterers for four unknowns, the user and the common clock offset
CAPTION = (
    "Left: least share of shared scatterers among those that a station sees, by the paper's count (equation 1.13, "
    "inferred) with its limit for many scatterers, by counting all equations, and by the rank of the Jacobian (4 "
    "scatterers, whatever the number Q of stations). Right: directions of (user, clock offsets, scatterers) that no "
    "path depends on, in random scenes, and the rule that they follow; arrows: from here on there are equations enough."
)
NEED = ("stations", "seen by each", "paper's count", "all equations", "rank", "nullity, 0 .. shared")


class Case(NamedTuple):
    """Scenes with the same numbers of stations and scatterers: a line of results.csv."""

    stations: int
    per_station: int  # scatterers that each station sees
    shared: int  # of these, the same for all stations
    shared_ratio: float
    paper_ratio: float  # least ratio by the paper's count
    paper_satisfied: bool
    equation_count: int  # least number of shared scatterers by the count of all equations
    equation_count_satisfied: bool
    nullity_min: int
    nullity_max: int
    nullity_known_height_min: int
    nullity_known_height_max: int
    least_kept: float  # smallest singular value that counts, over the largest
    largest_zero: float  # largest that does not
    num_scenes: int


def degrees_of_freedom(
    build: Build,
    folder: str | Path,
    stations: Sequence[int] = (2, 3, 4),
    per_station: Sequence[int] = (4, 8, 12),
    most_shared: int = 8,
    num_scenes: int = 20,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
    progress: bool = True,
) -> list[Case]:
    """Compute all cases, print what is needed, and write results.csv, the figure and report.html.

    Args:
        build: its simulator has the stations (the first Q are taken), boxes of users and scatterers, seed.
        folder: run folder, made if absent.
        stations: numbers Q of stations.
        per_station: numbers L of scatterers that each station sees.
        most_shared: largest number of shared scatterers.
        num_scenes: random scenes per case.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.
        progress: show a progress bar.

    Raises:
        ConfigError: more stations than the scene has, or fewer than two.
    """
    simulator = build.simulator()
    available = len(simulator.deployment.bs_position)
    if not stations or min(stations) < 2 or max(stations) > available:
        raise ConfigError(f"task.stations must be from 2 to the {available} of the scene, got {list(stations)}")
    if num_scenes < 1 or not per_station or min(per_station) < 1:
        raise ConfigError(f"task needs scenes and scatterers, got {num_scenes} and {list(per_station)}")
    sizes = [(q, seen) for q in stations for seen in per_station]
    numbers = [(q, seen, shared) for q, seen in sizes for shared in range(min(seen, most_shared) + 1)]
    bar = track(numbers, "ranks", console=Console(stderr=True), disable=not progress)
    cases = [_case(simulator, *each, num_scenes) for each in bar]
    folder = Path(folder)
    write_csv(folder / "results.csv", Case._fields, [[_text(value) for value in case] for case in cases])
    picture = folder / "figures" / "degrees_of_freedom.png"
    with atomic_path(picture) as temporary:
        draw(cases).savefig(temporary, format="png")
    facts = {"command": command, "scenes": f"{num_scenes} per case, seed {simulator.seed}", **(notes or {})}
    rows = [[_text(value) for value in case] for case in cases]
    figures = [("degrees_of_freedom", picture, CAPTION)]
    page, template, needs = folder / "report.html", "degrees_of_freedom.html", needed(cases)
    write_page(
        page,
        template,
        "Degrees of freedom",
        facts,
        figures,
        settings,
        need_heads=NEED,
        needs=needs,
        heads=Case._fields,
        rows=rows,
    )
    _print(needs)
    return cases


def needed(cases: Sequence[Case]) -> list[list[str]]:
    """Shared scatterers that each criterion asks for: a line, under `NEED`, for each number of stations and scatterers.

    The rank's is the smallest tried number from which no scene has an open direction; the last cell gives these
    directions by number of shared scatterers.
    """
    lines = []
    for q, seen in dict.fromkeys((case.stations, case.per_station) for case in cases):
        those = [case for case in cases if (case.stations, case.per_station) == (q, seen)]
        count = math.ceil(those[0].paper_ratio * seen - 1e-9)
        enough = [case.shared for case in those if case.nullity_max == 0]
        span = ["-".join(map(str, sorted({case.nullity_min, case.nullity_max}))) for case in those]
        lines.append(
            [
                *(str(q), str(seen), str(count) if count <= seen else "never", str(those[0].equation_count)),
                *(str(min(enough)) if enough else f"> {those[-1].shared}", " ".join(span)),
            ]
        )
    return lines


def _print(needs: Sequence[Sequence[str]]) -> None:
    title = "Shared scatterers needed by each criterion, and nullity with 0, 1, 2, ... shared"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=title, title_justify="left")
    for head in NEED:
        table.add_column(head, justify="left" if head == NEED[-1] else "right", no_wrap=True)
    for line in needs:
        table.add_row(*line)
    Console().print(table)


def _case(simulator: Simulator, stations: int, per_station: int, shared: int, num_scenes: int) -> Case:
    law, full = simulator.sampler, simulator.deployment
    deployment: Deployment = full._replace(
        bs_position=full.bs_position[:stations], bs_rotation=full.bs_rotation[:stations]
    )
    sampler = SceneSampler(
        law.ue_region.tolist(),
        law.scatterer_region.tolist(),
        num_shared=shared,
        num_specific=per_station - shared,
        visibility=1.0,
        min_views=stations,
        min_spacing_m=0.0,
        clock_offset_std=law.clock_offset_std,
    )
    scene = sampler.sample(deployment, simulator.seed, "test", range(num_scenes))
    singular = singular_values(scene, deployment)
    null, lower = nullity(singular), nullity(singular_values(scene, deployment, known_height=True))
    relative = (singular / singular[:, :1]).numpy()
    kept = np.arange(relative.shape[1]) < relative.shape[1] - null.numpy()[:, None]
    needed, count = paper_ratio(stations, per_station), equation_count(stations)
    return Case(
        stations,
        per_station,
        shared,
        shared / per_station,
        needed,
        shared / per_station >= needed,
        count,
        shared >= count,
        int(null.min()),
        int(null.max()),
        int(lower.min()),
        int(lower.max()),
        float(relative[kept].min()),
        float(relative[~kept].max(initial=0.0)),
        num_scenes,
    )


def draw(cases: Sequence[Case]) -> Figure:
    """Required share of shared scatterers by three criteria, and the measured nullity."""
    figure, axes = panels(2, width=6.2, height=5.0)
    stations = sorted({case.stations for case in cases})
    colors = dict(zip(stations, ("#0072B2", "#D55E00", "#009E73", *(color for color, _ in SPARE)), strict=False))
    _required(axes[0], colors)
    _measured(axes[1], cases, colors)
    for each in axes:
        handles = dict(zip(*reversed(each.get_legend_handles_labels()), strict=True))  # one of each label
        each.legend(handles.values(), handles, fontsize=8, loc="upper right")
    return figure


def _required(axes: Axes, colors: Mapping[int, str]) -> None:
    seen = np.arange(4, 41)
    for q, color in colors.items():
        ratio = np.array([paper_ratio(q, int(count)) for count in seen])
        if ratio.min() <= 1:  # never with two stations
            axes.plot(seen, np.where(ratio <= 1, ratio, np.nan), color=color, label=f"paper's count, {q} stations")
            axes.axhline(1 / (q - 1), color=color, linewidth=0.8, label=f"its limit, {q} stations: 1 / {q - 1}")
    for count in sorted({equation_count(q) for q in colors}):
        those = [q for q in colors if equation_count(q) == count]
        label = f"all equations, {' or '.join(map(str, those))} stations"
        axes.plot(seen, count / seen, color=colors[those[0]], linestyle=":", label=label)
    axes.plot(seen, NEEDED / seen, color="black", linestyle="--", label="rank of the Jacobian, any number")
    axes.set(
        title="shared scatterers needed, by criterion",
        xlabel="scatterers per station",
        ylabel="least share of shared scatterers",
        ylim=(0, 1.02),
    )


def _measured(axes: Axes, cases: Sequence[Case], colors: Mapping[int, str]) -> None:
    shared = np.unique([case.shared for case in cases])
    some = shared[shared > 0]
    rule = f"max(0, {NEEDED} - shared); Q + 3 without any"
    axes.plot(some, np.maximum(0, NEEDED - some), color="black", linestyle="--", linewidth=1.2, zorder=1, label=rule)
    for place, (q, color) in enumerate(colors.items()):
        for case in _of(cases, q):
            for value in {case.nullity_min, case.nullity_max}:
                x = case.shared + 0.13 * (place - (len(colors) - 1) / 2)
                axes.plot(x, value, "os^Dv"[place % 5], linestyle="", color=color, label=f"measured, {q} stations")
        x = equation_count(q) + 0.13 * (place - (len(colors) - 1) / 2)
        arrow = axes.plot(x, -0.6, linestyle="", marker=r"$\uparrow$", markersize=11, color=color)[0]
        arrow.set_label(f"equations enough from here, {q} stations")
    axes.set(
        title="open directions in random scenes",
        xlabel="shared scatterers",
        ylabel="open directions (nullity)",
        xticks=shared,
        ylim=(-1.0, None),
    )


def _of(cases: Sequence[Case], stations: int) -> Iterator[Case]:
    return (case for case in cases if case.stations == stations)


def _text(value: float) -> str:
    return str(int(value)) if isinstance(value, (bool, int)) else f"{value:.4g}"
