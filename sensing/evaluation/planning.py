"""Task `planning`: stations' places, boresights or powers that make the bound small over an area, before and after."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from sensing.bounds.coverage import CoverageMap, build_area, coverage_map
from sensing.bounds.plan_variables import build_variables
from sensing.bounds.planning import Plan, best_of_draws, lattice, optimise
from sensing.bounds.radar import Radar
from sensing.data.atomic import atomic_path
from sensing.errors import ConfigError
from sensing.evaluation.coverage import summary, write_map
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.page import write_page
from sensing.evaluation.plan_figures import curves, maps
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.radar.network import RadarNetwork

MAPS = (
    "Position error bound before (the network as configured) and after, on one colour scale. Triangles: stations; "
    "arrows: boresights; numbers: EIRP or sensing fraction where these were planned. Dashed: the required accuracy."
)
CURVES = (
    "Left: the objective of the best plan so far against evaluations of the bound (a value with its gradient counts "
    "three), one start after the other, and of random plans from the same limits. Right: share of the area whose bound "
    "is at most this."
)
NUMBERS = (
    *("max_peb_m", "max_x_m", "max_y_m", "p999_peb_m", "p90_peb_m", "median_peb_m", "mean_peb_m", "rms_peb_m"),
    *("covered_fraction", "unobservable", "points"),
)


class Case(NamedTuple):
    """A network, its bound over the map, and the same in numbers."""

    network: RadarNetwork
    found: CoverageMap
    numbers: dict[str, float]


def planning(
    build: Build,
    folder: str | Path,
    objective: str = "worst",
    place: str | None = None,
    region: Sequence[Sequence[float]] | None = None,
    boresight: str | None = None,
    power: str | None = None,
    power_limit: Sequence[float] = (0.0, math.inf),
    area: Sequence[Sequence[float]] | None = None,
    height_m: float = 0.0,
    num_points: Sequence[int] = (289, 289),
    required_m: float = 0.01,
    points: int = 25,
    checks: int = 289,
    starts: int = 8,
    random_plans: int | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    seed: int = 0,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> dict[str, Case]:
    """Plan; write plan.json, results.csv, convergence.csv, maps of `given` and `plan`, figures and report.html.

    Args:
        build: its network, of radars, is where the plan starts.
        folder: run folder, made if absent.
        objective: `worst`, `mean` or `rms` bound over the area.
        place: `inside` the region, on its `walls`, or None: positions stay.
        region: lower and upper corner of the allowed positions, [2 xy] or, inside, [2 xyz] [m]; None: the area.
        boresight: facing the `centre` of the area, `free`, or None: stays, even where the station moves.
        power: what is split anew: `eirp`, `sensing_fraction`, or None.
        power_limit: least and largest EIRP [W] or sensing fraction of a station.
        area: [[x0, y0], [x1, y1]], opposite corners [m]; None: the least rectangle around the stations.
        height_m: height of all points [m].
        num_points: cells of the maps along x and y.
        required_m: accuracy that counts as covered [m].
        points: along the longer side of the area, where the bound is lowered.
        checks: the same, where plans are compared.
        starts: number of starts, the first from the given network.
        random_plans: random plans to compare with; None: as many as the optimiser evaluated; 0: none.
        max_iterations: quasi-Newton steps per stage.
        tolerance: a stage ends when a step lowers the bound by less, relatively.
        seed: of starts and random plans.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Returns:
        The cases `given`, `random` (unless none was asked for) and `plan`.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    if not isinstance(required_m, (int, float)) or not 0 < required_m < math.inf:
        raise ConfigError(f"required_m must be a number > 0, got {required_m!r}")
    if random_plans is not None and (not isinstance(random_plans, int) or random_plans < 0):
        raise ConfigError(f"random_plans must be null or a whole number >= 0, got {random_plans!r}")
    model = build.network()
    if not isinstance(model, Radar):
        raise ConfigError(f"planning needs a radar network (say network=square), got {type(model).__name__}")
    cells = build_area(model.bs_position, area, height_m, num_points)
    left, right, lower, upper = cells.extent
    box = [[left, lower], [right, upper]] if region is None else region
    centre = [(left + right) / 2, (lower + upper) / 2, height_m]
    variables = build_variables(model.network, place, box, boresight, centre, power, power_limit)
    few, many = (lattice(cells, count, edges=objective == "worst") for count in (points, checks))
    with progress_bar(progress, "") as bar:
        task = bar.add_task("starts", total=starts)
        advance = lambda: bar.advance(task)  # noqa: E731
        plan = optimise(model, variables, few, many, objective, starts, seed, max_iterations, tolerance, advance)
        count = int(plan.trace.evaluations[-1]) if random_plans is None else random_plans
        plans, networks = {"plan": plan}, {"given": model.network}
        if count:
            task = bar.add_task("random plans", total=count)
            plans["random"] = best_of_draws(model, variables, few, many, objective, count, seed, advance)
            networks["random"] = plans["random"].network
        networks["plan"] = plan.network
        task = bar.add_task("maps", total=len(networks))
        cases = {}
        for name, network in networks.items():
            found = coverage_map(model._replace(network=network), cells)
            cases[name] = Case(network, found, numbers(found, required_m))
            advance()
    folder = Path(folder)
    stations = model.network.links.unique()
    for name in ("given", "plan"):
        place_m = cases[name].network.deployment.bs_position[stations].numpy()
        write_map(cases[name].found, folder / name, required_m, place_m)
    with atomic_path(folder / "plan.json") as temporary:
        about = {"objective": objective, "seed": seed, "evaluations": int(plan.trace.evaluations[-1])}
        described = {name: describe(case, stations.tolist()) for name, case in cases.items()}
        temporary.write_text(json.dumps(about | {"plans": described}, indent=2) + "\n")
    rows = [[name, *(_text(case.numbers[key]) for key in NUMBERS)] for name, case in cases.items()]
    write_csv(folder / "results.csv", ["network", *NUMBERS], rows)
    write_csv(folder / "convergence.csv", ["search", *plan.trace._fields], _tries(plans))
    pictures = {
        "maps": (maps(cases["given"], cases["plan"], stations, required_m, power), MAPS),
        "curves": (curves(objective, plans, {name: case.found for name, case in cases.items()}), CURVES),
    }
    figures = []
    for name, (figure, caption) in pictures.items():
        path = folder / "figures" / f"{name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
        figures.append((name, path, caption))
    facts = {
        "command": command,
        "objective": f"{objective} bound over the area",
        "gain": _gains(cases),
        **(notes or {}),
    }
    heads = ["network", *NUMBERS]
    write_page(folder / "report.html", "bounds.html", "Network plan", facts, figures, settings, heads=heads, rows=rows)
    _print(cases)
    return cases


def numbers(found: CoverageMap, required_m: float) -> dict[str, float]:
    """A map in a few numbers; means and the largest value are over its finite points, inf where there are none."""
    finite = found.peb_m[torch.isfinite(found.peb_m)]
    finite = finite if len(finite) else torch.full((1,), torch.inf, dtype=torch.float64)
    means = {"mean_peb_m": float(finite.mean()), "rms_peb_m": float(finite.square().mean().sqrt())}
    extreme = {"max_peb_m": math.inf, "max_x_m": math.nan, "max_y_m": math.nan, "p999_peb_m": found.quantile(0.999)}
    return extreme | means | dict(summary(found, required_m))


def describe(case: Case, stations: Sequence[int]) -> dict[str, Any]:
    """A network as a reader, and as a configuration, wants it: `network` holds keys of `conf/network`."""
    deployment, network = case.network.deployment, case.network
    place, axis = deployment.bs_position.tolist(), deployment.boresight.tolist()
    return {
        "stations": [
            {
                "station": index,
                **dict(zip(("x_m", "y_m", "z_m"), place[index], strict=True)),
                "boresight_azimuth_deg": math.degrees(math.atan2(axis[index][1], axis[index][0])),
                "eirp_w": float(network.eirp_w[index]),
                "sensing_fraction": float(network.sensing_fraction[index]),
            }
            for index in stations
        ],
        "bound": {key: value if math.isfinite(value) else None for key, value in case.numbers.items()},
        "network": {
            "bs_position": place,
            "bs_rotation": deployment.bs_rotation.tolist(),
            "eirp_w": network.eirp_w.tolist(),
            "sensing_fraction": network.sensing_fraction.tolist(),
        },
    }


def _tries(plans: Mapping[str, Plan]) -> list[list[str]]:
    """Lines of convergence.csv: every try of every search."""
    return [
        [name, *(_text(value) for value in row)]
        for name, plan in plans.items()
        for row in zip(*(column.tolist() for column in plan.trace), strict=True)
    ]


def _gains(cases: Mapping[str, Case]) -> str:
    given, plan = cases["given"].numbers, cases["plan"].numbers
    named = {"worst": "max_peb_m", "mean": "mean_peb_m", "median": "median_peb_m"}
    return ", ".join(
        f"{name} {given[key]:.4g} to {plan[key]:.4g} m ({plan[key] / given[key] - 1:+.1%})"
        for name, key in named.items()
    )


def _print(cases: Mapping[str, Case]) -> None:
    table = Table(title="position error bound over the area", title_justify="left")
    table.add_column("")
    for name in cases:
        table.add_column(name, justify="right")
    for key in NUMBERS:
        table.add_row(key, *(_text(case.numbers[key]) for case in cases.values()))
    Console().print(table)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
