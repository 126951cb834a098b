"""Paper 1's degree-of-freedom figure: its count of equations beside the rank of the joint Jacobian in random scenes."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sensing.bounds.identifiability import equation_count, nullity, paper_ratio, singular_values
from sensing.containers import Deployment
from sensing.data.atomic import atomic_path
from sensing.errors import ConfigError
from sensing.evaluation.page import write_page
from sensing.evaluation.style import SPARE, legend_below, panels
from sensing.evaluation.task import Build
from sensing.simulation import SceneSampler, Simulator

NEEDED = 4  # shared scatterers for four unknowns, the user and the common clock offset
CAPTION = (
    "Left: least share of shared scatterers among those that a station sees, by the paper's count (equation 1.13, "
    "inferred; thin: its limit 1 / (Q - 1)), by counting all equations, and by the rank of the Jacobian (4 scatterers, "
    "whatever Q). Right: directions of (user, clock offsets, scatterers) that no path depends on, in random scenes; "
    "dashed: max(0, 4 - shared), and Q + 3 without any; arrows: from here on there are equations enough."
)


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
) -> list[Case]:
    """Compute all cases and write results.csv, the figure and report.html.

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

    Raises:
        ConfigError: more stations than the scene has, or fewer than two.
    """
    simulator = build.simulator()
    available = len(simulator.deployment.bs_position)
    if not stations or min(stations) < 2 or max(stations) > available:
        raise ConfigError(f"task.stations must be from 2 to the {available} of the scene, got {list(stations)}")
    if num_scenes < 1 or not per_station or min(per_station) < 1:
        raise ConfigError(f"task needs scenes and scatterers, got {num_scenes} and {list(per_station)}")
    cases = [
        _case(simulator, count, seen, shared, num_scenes)
        for count in stations
        for seen in per_station
        for shared in range(min(seen, most_shared) + 1)
    ]
    folder = Path(folder)
    with atomic_path(folder / "results.csv") as temporary:
        temporary.write_text(_table(cases))
    picture = folder / "figures" / "degrees_of_freedom.png"
    with atomic_path(picture) as temporary:
        draw(cases).savefig(temporary, format="png")
    facts = {"command": command, "scenes": f"{num_scenes} per case, seed {simulator.seed}", **(notes or {})}
    rows = [[_text(value) for value in case] for case in cases]
    figures = [("degrees_of_freedom", picture, CAPTION)]
    page, template = folder / "report.html", "degrees_of_freedom.html"
    write_page(page, template, "Degrees of freedom", facts, figures, settings, heads=Case._fields, rows=rows)
    return cases


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
    figure, axes = panels(2, width=5.6, height=4.4)
    stations = sorted({case.stations for case in cases})
    colors = dict(zip(stations, ("#0072B2", "#D55E00", "#009E73", *(color for color, _ in SPARE)), strict=False))
    _required(axes[0], colors)
    _measured(axes[1], cases, colors)
    legend_below(figure, axes)
    return figure


def _required(axes: Axes, colors: Mapping[int, str]) -> None:
    seen = np.arange(4, 41)
    for q, color in colors.items():
        ratio = np.array([paper_ratio(q, int(count)) for count in seen])
        if ratio.min() <= 1:  # never with two stations
            axes.plot(seen, np.where(ratio <= 1, ratio, np.nan), color=color, label=f"paper's count, {q} stations")
            axes.axhline(1 / (q - 1), color=color, linewidth=0.8)
    for count in sorted({equation_count(q) for q in colors}):
        those = [q for q in colors if equation_count(q) == count]
        label = f"all equations, {' or '.join(map(str, those))} stations"
        axes.plot(seen, count / seen, color=colors[those[0]], linestyle=":", label=label)
    axes.plot(seen, NEEDED / seen, color="black", linestyle="--", label="rank of the Jacobian, any number")
    axes.set(xlabel="scatterers per station", ylabel="least share of shared scatterers", ylim=(0, 1.02))


def _measured(axes: Axes, cases: Sequence[Case], colors: Mapping[int, str]) -> None:
    shared = np.unique([case.shared for case in cases])
    some = shared[shared > 0]
    axes.plot(some, np.maximum(0, NEEDED - some), color="black", linestyle="--", linewidth=1.2, zorder=1)
    for place, (q, color) in enumerate(colors.items()):
        for case in _of(cases, q):
            for value in {case.nullity_min, case.nullity_max}:
                x = case.shared + 0.13 * (place - (len(colors) - 1) / 2)
                axes.plot(x, value, "os^Dv"[place % 5], color=color, label=f"measured, {q} stations")
        count = equation_count(q)
        x = count + 0.13 * (place - (len(colors) - 1) / 2)
        axes.annotate("", (x, -0.45), (x, -0.9), arrowprops={"arrowstyle": "->", "color": color}, annotation_clip=False)
    axes.set(xlabel="shared scatterers", ylabel="open directions (nullity)", xticks=shared, ylim=(-0.95, None))


def _of(cases: Sequence[Case], stations: int) -> Iterator[Case]:
    return (case for case in cases if case.stations == stations)


def _table(cases: Sequence[Case]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Case._fields)
    writer.writerows([[_text(value) for value in case] for case in cases])
    return text.getvalue()


def _text(value: float) -> str:
    return str(int(value)) if isinstance(value, (bool, int)) else f"{value:.4g}"
