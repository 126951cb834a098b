"""Network plans against finite differences, brute force, convexity and maps on finer grids; limits and files."""

import csv
import inspect
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sensing import runs
from sensing.arrays import ula, upa
from sensing.bounds.coverage import build_area, coverage_map
from sensing.bounds.plan_variables import build_variables
from sensing.bounds.planning import Search, best_of_draws, lattice, log_mean, optimise
from sensing.bounds.radar import build_radar
from sensing.cli import conf_dir
from sensing.errors import ConfigError, DomainError, NumericalError, SensingError, ShapeError
from sensing.evaluation.planning import planning

DOUBLE = torch.float64
SIDE = 40.0
SQUARE = [[0.0, 0.0], [SIDE, 0.0], [SIDE, SIDE], [0.0, SIDE]]
BOX = [[0.0, 0.0], [SIDE, SIDE]]
CENTRE = [SIDE / 2, SIDE / 2, 0.0]


def radar(bs_position=SQUARE, unknown="xy", **changes):
    values = {
        "array": ula(16),
        "carrier_hz": 28e9,
        "num_subcarriers": 256,
        "spacing_hz": 480e3,
        "num_symbols": 32,
        "symbol_s": 9e-6,
        "eirp_w": 20.0,
        "sensing_fraction": 0.3,
        "noise_psd": 4e-20,
        "target": CENTRE,
    } | changes
    return build_radar(bs_position, unknown, **values)


def area(count, box=BOX):
    return build_area(torch.zeros(1, 3), box, 0.0, [count, count])


def points(count, box=BOX):
    return lattice(area(1, box), count, edges=True)


def variables(model, **choices):
    return build_variables(model.network, **{"region": BOX, "centre": CENTRE} | choices)


def worst(model, network, count=81):
    return coverage_map(model._replace(network=network), area(count)).worst.peb_m


USERS = [[20.0, 30.0, 1.0], [5.0, 9.0, 1.0], [25.0, 4.0, 1.0], [30.0, 31.0, 1.0]]


@pytest.mark.parametrize("exponent", [2.0, 64.0])
@pytest.mark.parametrize(
    ("changes", "choices"),
    [
        ({}, {"place": "walls", "boresight": "centre", "power": "eirp"}),
        ({"links": "multistatic"}, {"place": "inside", "boresight": "free"}),
        ({"links": [[0, 1], [1, 2]]}, {"place": "walls", "power": "sensing_fraction"}),
        (
            {"communication_point": USERS},
            {"boresight": "free", "power": "sensing_fraction", "power_limit": [0.001, 0.999]},
        ),
        (
            {"array": upa(4, 4), "unknown": "xyz", "bs_position": [[*place, 6.0] for place in SQUARE]},
            {"place": "inside", "region": [[0.0, 0.0, 3.0], [SIDE, SIDE, 9.0]], "boresight": "centre", "power": "eirp"},
        ),
    ],
)
def test_slope_against_finite_differences(changes, choices, exponent):
    model = radar(**changes)
    free = variables(model, **choices)
    search = Search(model, free, points(4), "worst")
    x = free.draw(torch.Generator().manual_seed(3))
    value, slope = search.value_and_slope(x, search.checks, exponent)
    assert value == pytest.approx(float(log_mean(search.log_peb(x, search.checks), exponent)))
    step = 1e-6 * torch.eye(len(x), dtype=DOUBLE)
    ends = [[float(log_mean(search.log_peb(x + s * row, search.checks), exponent)) for s in (1, -1)] for row in step]
    expected = torch.tensor([(up - down) / 2e-6 for up, down in ends], dtype=DOUBLE)
    assert torch.allclose(slope, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_slope_in_space_where_the_information_is_isotropic():
    """In the middle of a symmetric network eigenvalues coincide; the slope of the eigenvectors would be NaN."""
    model = radar([[*place, 5.0] for place in SQUARE], "xyz", array=upa(4, 4))
    free = variables(model, place="walls", boresight="centre")
    middle = torch.tensor([CENTRE], dtype=DOUBLE)
    search = Search(model, free, torch.cat([middle, middle]), "mean")
    _, slope = search.value_and_slope(free.current() + 0.0, search.checks, 1.0)
    assert torch.isfinite(slope).all()


def test_objective_is_the_power_mean_of_what_counts():
    values = torch.tensor([3.0, 1.0, 7.0], dtype=DOUBLE)
    logs = torch.cat([values.log(), torch.tensor([-torch.inf], dtype=DOUBLE)])  # one on a station
    for exponent in (1.0, 2.0, 5.0):
        expected = (values.numpy() ** exponent).mean() ** (1 / exponent)
        assert float(log_mean(logs, exponent).exp()) == pytest.approx(expected, rel=1e-14)
    assert float(log_mean(logs, math.inf).exp()) == pytest.approx(7.0)
    assert float(log_mean(logs, 256.0).exp()) == pytest.approx(7.0, rel=5e-3)


def test_walls_by_walking_along_them():
    box = [[1.0, 2.0], [7.0, 5.0]]
    model = radar([[3.0, 2.5], [6.0, 4.9], [1.2, 3.0], [4.0, 9.0]])
    free = variables(model, place="walls", region=box)
    assert free.network(free.current()).deployment.bs_position[:, :2].tolist() == [[3, 2], [6, 5], [1, 3], [4, 5]]
    for way, expected in (
        (0.0, (1, 2)),
        (2.0, (3, 2)),
        (6.0, (7, 2)),
        (8.5, (7, 4.5)),
        (9.0, (7, 5)),
        (15.5, (1, 4.5)),
    ):
        for turns in (0, 3, -2):
            x = torch.full((4,), way / 18.0 + turns, dtype=DOUBLE)
            assert free.network(x).deployment.bs_position[0, :2].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("place", ["inside", "walls"])
def test_limits_hold_for_any_numbers(place):
    model = radar([*SQUARE, [10.0, 90.0]], eirp_w=[20.0, 5.0, 3.0, 9.0, 4.0], links=[[0, 0], [1, 1], [3, 3], [2, 0]])
    free = variables(model, place=place, region=[[3.1, 4.7], [17.3, 9.9]], boresight="centre", power="eirp")
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        network = free.network(free.draw(generator)).validate()
        x, y = network.deployment.bs_position[:4, :2].T
        on_a_wall = (x == 3.1) | (x == 17.3) | (y == 4.7) | (y == 9.9)
        assert bool(((x >= 3.1) & (x <= 17.3) & (y >= 4.7) & (y <= 9.9)).all())
        assert place == "inside" or bool(on_a_wall.all())
        toward = torch.tensor(CENTRE, dtype=DOUBLE) - network.deployment.bs_position[:4]
        assert torch.allclose(network.deployment.boresight[:4], toward / toward.norm(dim=-1, keepdim=True))
        assert float(network.eirp_w[:4].sum()) == pytest.approx(37.0, rel=1e-14)
        assert bool((network.eirp_w >= 0).all())
        for field in ("bs_position", "bs_rotation"):  # station 4 takes no part
            assert torch.equal(getattr(network.deployment, field)[4], getattr(model.network.deployment, field)[4])
        assert network.eirp_w[4] == 4.0


def test_sensing_power_has_its_total_and_its_limits():
    model = radar(eirp_w=[20.0, 5.0, 3.0, 9.0], sensing_fraction=[0.9, 0.1, 0.3, 0.2])
    total = float((model.network.eirp_w * model.network.sensing_fraction).sum())
    free = variables(model, power="sensing_fraction", power_limit=[0.1, 0.7])
    generator = torch.Generator().manual_seed(0)
    plan = optimise(model, free, points(5), points(9), "rms", starts=2)
    for network in (
        free.network(free.current()),
        *(free.network(free.draw(generator)) for _ in range(20)),
        plan.network,
    ):
        assert float((network.eirp_w * network.sensing_fraction).sum()) == pytest.approx(total, rel=1e-12)
        assert bool(((network.sensing_fraction >= 0.1) & (network.sensing_fraction <= 0.7)).all())
        assert torch.equal(network.eirp_w, model.network.eirp_w)


@pytest.mark.parametrize("objective", ["worst", "rms"])
def test_two_stations_against_all_places_on_the_walls(objective):
    """Brute force over both positions: no pair is better, and the best pair is nearly as good."""
    model = radar([[3.0, 0.0], [29.0, 0.0]])
    free = variables(model, place="walls", boresight="centre")
    checks = points(9)
    plan = optimise(model, free, checks, checks, objective, starts=4)
    search = Search(model, free, checks, objective)
    ways = (torch.arange(24, dtype=DOUBLE) + 0.5) / 24
    pairs = [torch.stack(pair) for pair in itertools.combinations(ways, 2)]
    best = min(float(log_mean(search.log_peb(x, checks), search.final).exp()) for x in pairs)
    assert 0.9 * best < plan.criterion_m <= best * (1 + 1e-9)
    bound = model._replace(network=plan.network).point_bound(checks).peb_m
    bound = bound[torch.isfinite(bound)]
    expected = bound.max() if objective == "worst" else bound.square().mean().sqrt()
    assert plan.criterion_m == pytest.approx(float(expected), rel=1e-12)
    assert float(plan.trace.criterion_m.min()) == plan.criterion_m


@pytest.mark.parametrize("objective", ["worst", "rms", "mean"])
def test_a_symmetric_network_shares_its_power_equally(objective):
    model = radar(eirp_w=[35.0, 5.0, 10.0, 30.0])
    plan = optimise(model, variables(model, power="eirp"), points(8), points(15), objective, 2, tolerance=1e-9)
    assert plan.network.eirp_w.tolist() == pytest.approx([20.0] * 4, rel=1e-2)
    equal = model._replace(network=model.network._replace(eirp_w=torch.full((4,), 20.0, dtype=DOUBLE)))
    search = Search(equal, variables(equal, power="eirp"), points(15), objective)
    search.check(search.variables.current(), 0)
    assert plan.criterion_m == pytest.approx(search.plan().criterion_m, rel=1e-4)


@pytest.mark.parametrize("objective", ["worst", "rms"])
@pytest.mark.parametrize("power", ["eirp", "sensing_fraction"])
def test_two_unequal_stations_against_all_shares(objective, power):
    model = radar([[0.0, 0.0], [SIDE, 10.0]], eirp_w=[20.0, 10.0], noise_psd=[4e-20, 4e-19])
    limit = [0.0, math.inf] if power == "eirp" else [0.05, 0.9]
    free = variables(model, power=power, power_limit=limit)
    checks = points(9)
    plan = optimise(model, free, checks, checks, objective, starts=2, tolerance=1e-9)
    low, high = free.bounds[0]
    least = max(low, 1 - free.bounds[1][1])
    share = torch.linspace(least, min(high, 1 - free.bounds[1][0]), 301, dtype=DOUBLE)
    search = Search(model, free, checks, objective)
    found = [float(log_mean(search.log_peb(torch.stack([s, 1 - s]), checks), search.final).exp()) for s in share]
    assert plan.criterion_m == pytest.approx(min(found), rel=2e-3)
    best = float(share[int(np.argmin(found))])
    field = plan.network.eirp_w if power == "eirp" else plan.network.sensing_fraction * plan.network.eirp_w
    assert float(field[0] / field.sum()) == pytest.approx(best, abs=0.02)
    assert abs(best - 0.5) > 0.02  # not the symmetric answer


def test_no_power_can_be_moved_to_advantage():
    """Convexity makes a lower bound out of the slope: f(q) >= f(p) + slope . (q - p) for all splits q of the power."""
    model = radar(SQUARE[:3])
    free = variables(model, power="eirp")
    checks = points(12)
    plan = optimise(model, free, checks, checks, "rms", starts=1, tolerance=1e-10)
    search = Search(model, free, checks, "rms")
    share = (plan.network.eirp_w / plan.network.eirp_w.sum()).double()
    value, slope = search.value_and_slope(share, checks, 2.0)
    slope = math.exp(value) * slope
    lower = math.exp(value) + float(slope.min() - slope @ share)
    assert lower > 0.999 * math.exp(value)
    assert plan.network.eirp_w.tolist() != pytest.approx([20.0] * 3, rel=0.01)


@pytest.mark.parametrize("place", ["walls", "inside"])
def test_the_worst_point_of_a_finer_grid_gets_better(place):
    model = radar()
    free = variables(model, place=place, boresight="centre")
    plan = optimise(model, free, points(7), points(81), starts=2, seed=1)
    drawn = best_of_draws(model, free, points(7), points(81), "worst", int(plan.trace.evaluations[-1]), seed=1)
    before, after, random = (worst(model, network, 120) for network in (model.network, plan.network, drawn.network))
    assert after < 0.8 * before
    assert after < random


def test_worst_points_between_the_few_are_found():
    """Four points alone are served perfectly; the exchange brings in what lies between them."""
    model = radar()
    free = variables(model, place="inside", boresight="centre")
    few = points(2)
    blind = optimise(model, free, few, few, starts=2)
    seeing = optimise(model, free, few, points(33), starts=2)
    assert blind.criterion_m < 0.5 * worst(model, blind.network)
    assert seeing.criterion_m > 0.8 * worst(model, seeing.network)
    assert worst(model, seeing.network) < 0.7 * worst(model, blind.network)


def test_same_seed_same_plan_and_draws():
    model = radar(SQUARE[:2])
    free = variables(model, place="walls", boresight="free")
    plans = [optimise(model, free, points(4), points(6), "rms", 2, seed, 5) for seed in (5, 5)]
    assert torch.equal(plans[0].network.deployment.bs_position, plans[1].network.deployment.bs_position)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(plans[0].trace, plans[1].trace, strict=True))
    draws = [best_of_draws(model, free, points(4), points(6), "worst", 9, seed=seed).criterion_m for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_points_without_a_bound_count_with_the_size_of_the_area():
    model = radar([[0.0, 10.0], [20.0, 10.0]], array=ula(1))  # range only: singular on the line through both
    free = variables(model, place="walls", boresight="centre")
    line = torch.tensor([[5.0, 10.0, 0.0], [31.0, 10.0, 0.0], [5.0, 20.0, 0.0]], dtype=DOUBLE)
    search = Search(model, free, line, "worst")
    x = free.current()
    moved = model._replace(network=free.network(x))
    assert moved.network.deployment.bs_position[:, 1].tolist() == [10.0, 0.0]  # the second went to the nearest wall
    search = Search(model, build_variables(model.network, power="eirp"), line, "worst")
    log_peb = search.log_peb(torch.tensor([0.5, 0.5], dtype=DOUBLE), line)
    size = math.hypot(26.0, 10.0)
    assert log_peb.exp().tolist()[:2] == pytest.approx([size, size])
    assert float(log_peb[2].exp()) < 0.1


BAD = [
    ({"place": "roof"}, ConfigError, r"place must be one of \[None, 'inside', 'walls'\], got 'roof'"),
    ({"boresight": "up"}, ConfigError, "boresight must be one of"),
    ({"power": "all"}, ConfigError, "power must be one of"),
    ({}, ConfigError, r"a plan needs something to vary \(place, boresight=free or power\), got None, None, None"),
    ({"boresight": "centre"}, ConfigError, "a plan needs something to vary"),
    ({"boresight": "centre", "centre": None}, ConfigError, "boresight=centre needs the point to face"),
    ({"place": "inside", "region": None}, ConfigError, "place=inside needs the region"),
    ({"place": "inside", "region": [[0, 0]]}, ConfigError, r"region must be \[2 xy\] or \[2 xyz\], got \[1, 2\]"),
    ({"place": "walls", "region": [[0, 0, 0], [1, 1, 1]]}, ConfigError, r"region must be \[2 xy\], got \[2, 3\]"),
    ({"place": "inside", "region": [[0, 0], [-1, 5]]}, DomainError, "region must be .* not empty"),
    ({"place": "inside", "region": [[3, 3], [3, 3]]}, DomainError, "region must be .* not empty"),
    ({"place": "walls", "region": [[0, 0], [0, 5]]}, DomainError, "region must be .* not empty"),
    ({"place": "inside", "region": [[0, 0], [math.nan, 5]]}, DomainError, "region must be finite"),
    ({"power": "eirp", "power_limit": [5.0, 4.0]}, DomainError, r"power_limit must be \(least, largest\)"),
    ({"power": "eirp", "power_limit": [-1.0, 4.0]}, DomainError, r"power_limit must be \(least, largest\)"),
    ({"power": "eirp", "power_limit": [0.0, 4.0]}, DomainError, "power_limit must leave room for a total of 80 W"),
    ({"power": "eirp", "power_limit": [30.0, 90.0]}, DomainError, "power_limit must leave room"),
    ({"power": "sensing_fraction", "power_limit": [0.4, 1.0]}, DomainError, "power_limit must leave room"),
    ({"power": "eirp", "power_limit": [1.0]}, ShapeError, r"power_limit must be \[2\]"),
]


@pytest.mark.parametrize(("choices", "kind", "message"), BAD)
def test_bad_choices(choices, kind, message):
    with pytest.raises(kind, match=message):
        variables(radar(), **choices)


def test_bad_budgets_and_searches():
    dark = radar(eirp_w=0.0)
    with pytest.raises(DomainError, match=r"power=eirp needs stations that send and a total > 0, got .*, 0 W"):
        variables(dark, power="eirp")
    free = variables(dark, place="walls")
    with pytest.raises(DomainError, match="the area must hold observable points, got 9 without a bound"):
        optimise(dark, free, points(3), points(3))
    model = radar()
    free = variables(model, place="walls")
    for change, message in (
        ({"objective": "best"}, "objective must be one of"),
        ({"starts": 0}, "starts must be a whole number >= 1, got 0"),
        ({"max_iterations": 1.5}, "max_iterations must be a whole number"),
        ({"tolerance": 0.0}, "tolerance must be between 0 and 1"),
        ({"checks": points(3)[:0]}, "a plan needs points"),
    ):
        with pytest.raises(ConfigError, match=message):
            optimise(**{"model": model, "variables": free, "points": points(3), "checks": points(3)} | change)
    with pytest.raises(ConfigError, match="number of random plans"):
        best_of_draws(model, free, points(3), points(3), "worst", 0)
    with pytest.raises(ConfigError, match="a lattice needs a whole number of points >= 2"):
        lattice(area(1), 1, edges=True)


def test_an_infinite_slope_is_an_error():
    """At a sensing fraction of zero the beams' interference has one; the limits therefore keep away from it."""
    model = radar(communication_point=USERS)
    with pytest.raises(
        DomainError, match=r"power_limit must lie inside 0 to 1 where communication beams leak, got \[0"
    ):
        variables(model, power="sensing_fraction", power_limit=[0.0, 0.9])
    free = variables(model, power="sensing_fraction", power_limit=[0.1, 0.9])
    open_ = free._replace(parts=[free.parts[0]._replace(limit=torch.tensor([0.0, 1.0], dtype=DOUBLE))])
    search = Search(model, open_, points(3), "mean")
    with pytest.raises(NumericalError, match="slope of the objective must be finite"):
        search.value_and_slope(torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=DOUBLE), points(3), 1.0)


def test_lattices():
    longer = build_area(torch.zeros(1, 3), [[0, 0], [30, 10]], 1.5, [1, 1])
    centres = lattice(longer, 6, edges=False)
    assert centres.tolist() == [[x, y, 1.5] for x in (2.5, 7.5, 12.5, 17.5, 22.5, 27.5) for y in (2.5, 7.5)]
    assert lattice(longer, 4, edges=True).tolist() == [[x, y, 1.5] for x in (0, 10, 20, 30) for y in (0, 10)]


def composed(*overrides, folder="unused"):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("evaluate", [f"output_dir={folder}", "eval.progress=false", *overrides])


SMALL = ["task.points=6", "task.checks=13", "task.num_points=[31,31]", "task.starts=1", "task.random_plans=20"]


@pytest.mark.parametrize("name", ["planning_placement", "planning_power"])
def test_task_writes_its_files(name, tmp_path, capsys):
    runs.evaluate(composed(f"experiment={name}", *SMALL, folder=tmp_path))
    with (tmp_path / "results.csv").open() as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["given", "random", "plan"]
    assert float(rows["plan"]["max_peb_m"]) < 0.95 * float(rows["given"]["max_peb_m"])
    for case in ("given", "plan"):
        saved = np.load(tmp_path / case / "coverage.npz")
        assert saved["peb_m"].shape == (31, 31)
        assert saved["peb_m"].max() == pytest.approx(float(rows[case]["max_peb_m"]), rel=1e-5)
        finite = saved["peb_m"][np.isfinite(saved["peb_m"])]
        assert np.sqrt((finite**2).mean()) == pytest.approx(float(rows[case]["rms_peb_m"]), rel=1e-5)
        assert finite.mean() == pytest.approx(float(rows[case]["mean_peb_m"]), rel=1e-5)
    with (tmp_path / "convergence.csv").open() as file:
        tries = list(csv.DictReader(file))
    assert {row["search"] for row in tries} == {"plan", "random"}
    assert max(int(row["evaluations"]) for row in tries if row["search"] == "random") <= 20
    for picture in ("maps", "curves"):
        assert (tmp_path / f"figures/{picture}.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.html").read_text()
    assert "worst" in report
    assert "data:image/png" in report
    assert "max_peb_m" in capsys.readouterr().out
    # the plan's keys of conf/network make the same network again
    plan = json.loads((tmp_path / "plan.json").read_text())["plans"]["plan"]
    rebuilt = runs.Builder(composed(f"experiment={name}")).varied(
        {f"network.{k}": v for k, v in plan["network"].items()}
    )
    cells = build_area(rebuilt.network().bs_position, [[0, 0], [72, 72]], 0.0, [31, 31])
    assert np.allclose(coverage_map(rebuilt.network(), cells).peb_m, np.load(tmp_path / "plan/coverage.npz")["peb_m"])
    assert sum(station["eirp_w"] for station in plan["stations"]) == pytest.approx(20.0 * len(plan["stations"]))


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("task.place=null", ConfigError, "a plan needs something to vary"),
        ("task.region=[[0,0],[0,0]]", DomainError, "region must be"),
        ("task.area=[[0,0],[0,0]]", ConfigError, "area must be"),
        ("task.objective=best", ConfigError, "objective must be one of"),
        ("task.required_m=0", ConfigError, "required_m must be a number > 0"),
        ("task.random_plans=-1", ConfigError, "random_plans must be null or a whole number >= 0"),
        ("task.starts=0", ConfigError, "starts must be"),
        ("task.checks=1", ConfigError, "a lattice needs"),
        ("task.power=eirp network.eirp_w=0", DomainError, "power=eirp needs stations that send"),
        ("network=uplink", ConfigError, "planning needs a radar network .*, got Uplink"),
    ],
)
def test_bad_values_are_refused_before_any_work(override, kind, message, tmp_path):
    with pytest.raises(kind, match=message) as caught:
        runs.evaluate(composed("experiment=planning_placement", *override.split(), folder=tmp_path / "out"))
    assert isinstance(caught.value, SensingError)
    assert not (tmp_path / "out").exists()


def test_yaml_and_python_have_the_same_defaults():
    task = OmegaConf.to_container(composed("task=planning", "eval.progress=true"), resolve=True)["task"]
    wanted = {name: each.default for name, each in inspect.signature(planning).parameters.items()}
    for name, value in task.items():
        if name != "_target_":
            assert value == (list(wanted[name]) if isinstance(wanted[name], tuple) else wanted[name]), name
    assert set(wanted) - set(task) == {"build", "folder", "settings", "command", "notes"}
