"""Maps of the bound: against single points, chunk by chunk, with unobservable points counted; paper 2's maps."""

import csv

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from sensing import runs
from sensing.arrays import ula
from sensing.bounds import Reason
from sensing.bounds.coverage import build_area, coverage_map
from sensing.bounds.monostatic import Waveform, position_bounds
from sensing.bounds.radar import build_radar
from sensing.cli import conf_dir
from sensing.errors import ConfigError, DomainError, SensingError
from sensing.radar import echo_snr

LINE = [[10.5, 10.5], [40.5, 10.5], [60.5, 10.5]]
"""Three stations on one line, each at the centre of a cell of 1 m."""


def radar(**changes):
    values = {
        "bs_position": [[0, 0], [30, 0], [30, 40]],
        "array": ula(4),
        "carrier_hz": 28e9,
        "num_subcarriers": 64,
        "spacing_hz": 1e6,
        "num_symbols": 10,
        "symbol_s": 1e-5,
        "eirp_w": 2.0,
        "sensing_fraction": 0.3,
        "noise_psd": 4e-20,
        "target": [15, 20],
    }
    return build_radar(**(values | changes))


def composed(*overrides, folder="unused"):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("evaluate", [f"output_dir={folder}", "task.progress=false", *overrides])


def test_area_has_the_centres_of_its_cells():
    area = build_area(torch.tensor([[0.0, 2.0, 5.0], [6.0, 4.0, 5.0]]), num_points=[3, 4], height_m=1.5)
    assert area.x_m.tolist() == [1.0, 3.0, 5.0]
    assert area.y_m.tolist() == [2.25, 2.75, 3.25, 3.75]
    assert area.extent == (0.0, 6.0, 2.0, 4.0)
    assert area.points.shape == (4, 3, 3)
    assert area.points[2, 1].tolist() == [3.0, 3.25, 1.5]


def test_map_is_the_bound_of_each_point_alone_and_chunks_do_not_matter():
    model = radar()
    area = build_area(model.bs_position, num_points=[11, 7], height_m=2.0)
    found = coverage_map(model, area, chunk=10)
    for row, y in enumerate(area.y_m.tolist()):
        for column, x in enumerate(area.x_m.tolist()):
            alone = model.point_bound(torch.tensor([x, y, 2.0], dtype=torch.float64))
            assert float(alone.peb_m) == pytest.approx(float(found.peb_m[row, column]), rel=1e-14)
    for chunk in (1, 77, 1000):
        assert torch.equal(coverage_map(model, area, chunk).peb_m, found.peb_m)


def test_map_against_the_papers_closed_form_added_up_in_numpy():
    """Equation 2.10 from the scalar bounds of each station, with numpy's inverse."""
    stations, angles = np.array([[0.0, 0.0], [30.0, 0.0], [30.0, 40.0]]), []
    model = radar()
    for station in stations:
        direction = np.array([15.0, 20.0]) - station
        angles.append(np.arctan2(direction[1], direction[0]))
    area = build_area(model.bs_position, num_points=[5, 4])
    found = coverage_map(model, area)
    waveform = Waveform(10, 64, 4, 1e-5, 1e6)
    for row, y in enumerate(area.y_m.tolist()):
        for column, x in enumerate(area.x_m.tolist()):
            point = torch.tensor([x, y, 0.0], dtype=torch.float64)
            information = np.zeros((2, 2))
            for number, (station, turned) in enumerate(zip(stations, angles, strict=True)):
                d = np.array([x, y]) - station
                local = torch.tensor(np.arctan2(d[1], d[0]) - turned)
                snr = echo_snr(point, model.network)[number]
                own = position_bounds(snr, torch.tensor(np.hypot(*d)), local, waveform)
                covariance = np.array([[float(own.x), float(own.xy)], [float(own.xy), float(own.y)]])
                turn = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
                information += np.linalg.inv(turn @ covariance @ turn.T)
            expected = np.sqrt(np.trace(np.linalg.inv(information)))
            assert float(found.peb_m[row, column]) == pytest.approx(expected, rel=1e-9)


def test_unobservable_points_are_infinite_and_counted_by_reason():
    model = radar(bs_position=LINE, array=ula(1), target=[30, 40])
    area = build_area(model.bs_position, [[0, 0], [71, 21]], num_points=[71, 21])
    found = coverage_map(model, area)
    assert found.unobservable == {"at_station": 3, "singular": 68}  # range alone cannot tell the sides of the line
    assert torch.equal(torch.isinf(found.peb_m), found.reason > 0)
    assert bool((found.reason[10] > 0).all())
    assert not torch.isnan(found.peb_m).any()
    finite = found.peb_m[torch.isfinite(found.peb_m)]
    assert found.worst is not None
    assert found.worst.peb_m == float(finite.max())
    assert float(model.point_bound(torch.tensor([*found.worst[1:], 0.0])).peb_m) == found.worst.peb_m
    assert found.covered(float(finite.median())) == float((found.peb_m <= finite.median()).sum()) / (71 * 21)
    assert found.covered(float("inf")) == 1.0
    assert np.isinf(found.quantile(1.0))
    assert found.quantile(0.5) == np.sort(found.peb_m.numpy().ravel())[(71 * 21 + 1) // 2 - 1]


def test_without_power_nothing_is_observable():
    model = radar(eirp_w=0.0)
    found = coverage_map(model, build_area(model.bs_position, num_points=[3, 3]))
    assert found.unobservable == {"no_power": 9}
    assert found.worst is None
    assert found.covered(1e9) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area": [[0, 0], [0, 1]]}, r"area must be .* with x0 < x1"),
        ({"area": [[0, 0]]}, "area must be"),
        ({"area": [["a", 0], [1, 1]]}, "area must be"),
        ({"height_m": float("nan")}, "height_m must be a finite number, got nan"),
        ({"num_points": [0, 5]}, r"num_points must be two whole numbers >= 1, along x and y, got \[0, 5\]"),
        ({"num_points": 5}, "num_points must be"),
    ],
)
def test_bad_areas(change, message):
    with pytest.raises(ConfigError, match=message):
        build_area(torch.tensor([[0.0, 0, 0], [1.0, 1, 0]]), **change)


def test_stations_in_a_line_need_an_area():
    with pytest.raises(ConfigError, match=r"area must be .* the rectangle around the stations"):
        build_area(torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]))


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("task.num_points=[5,0]", ConfigError, r"num_points must be .* \(in task\)"),
        ("task.required_m=0", ConfigError, r"required_m must be a number > 0, got 0 \(in task\)"),
        ("task.chunk=0", ConfigError, r"chunk must be a whole number >= 1, got 0 \(in task\)"),
        ("task.color_limits_m=[2,1]", ConfigError, r"color_limits_m must be .* \(in task\)"),
        ("+task.points=3", ConfigError, r"task must fit .*points"),
        ("network.spacing_hz=-120e3", ConfigError, r"spacing_hz must be a positive number.*\(in network\)"),
        ("network.sensing_fraction=1.2", DomainError, r"sensing_fraction must be from 0 to 1.*\(in network\)"),
        ("network.eirp_w=-1", DomainError, r"eirp_w must be >= 0.*\(in network\)"),
        ("network.array.num=0", ConfigError, r"num.*\(in network\)"),
    ],
)
def test_bad_values_are_refused_before_any_work(override, kind, message, tmp_path):
    with pytest.raises(kind, match=message) as caught:
        runs.evaluate(composed("task=coverage", override, folder=tmp_path / "out"))
    assert isinstance(caught.value, SensingError)
    assert not (tmp_path / "out").exists()


def test_papers_maps_and_their_files(tmp_path, capsys):
    """EQUATIONS 2(c), tests 1 and 2, from the files that the experiments write."""
    worst = {}
    for name, cell in (("2", (22, 22)), ("3", (44, 0)), ("4", None)):
        folder = tmp_path / name
        runs.evaluate(composed(f"experiment=paper2_map_{name}", "task.num_points=[45,45]", folder=folder))
        saved = np.load(folder / "coverage.npz")
        assert saved["peb_m"].shape == saved["reason"].shape == (len(saved["y_m"]), len(saved["x_m"])) == (45, 45)
        assert saved["x_m"][22] == saved["y_m"][22] == pytest.approx(36.0)
        row, column = np.unravel_index(saved["peb_m"].argmax(), (45, 45))
        assert (row, column) == cell if cell else sorted((row, column))[0] in (0, 22) and 22 in (row, column)
        worst[name] = float(saved["peb_m"].max())
        with (folder / "coverage.csv").open() as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == 45 * 45
        at = lines[row * 45 + column]
        assert [float(at[key]) for key in ("x_m", "y_m")] == pytest.approx([saved["x_m"][column], saved["y_m"][row]])
        assert float(at["peb_m"]) == pytest.approx(worst[name], rel=1e-8)
        with (folder / "results.csv").open() as file:
            results = {line["quantity"]: float(line["value"]) for line in csv.DictReader(file)}
        assert results["max_peb_m"] == worst[name]
        assert results["covered_fraction"] == pytest.approx((saved["peb_m"] <= 5e-4).mean())
        assert (folder / "figures/coverage.png").read_bytes().startswith(b"\x89PNG")
        assert "data:image/png" in (folder / "report.html").read_text()
        assert "max_peb_m" in capsys.readouterr().out
    assert 1 - worst["3"] / worst["2"] == pytest.approx(0.283, abs=0.02)  # coarse cells keep away from the corner
    assert 1 - worst["4"] / worst["2"] == pytest.approx(0.628, abs=0.01)


def test_unobservable_points_are_in_the_files(tmp_path):
    overrides = ["network.bs_position=[[10.5,10.5],[40.5,10.5],[60.5,10.5]]", "network.array.num=1"]
    area = ["task.area=[[0,0],[71,21]]", "task.num_points=[71,21]"]
    runs.evaluate(composed("task=coverage", *overrides, *area, folder=tmp_path))
    with (tmp_path / "coverage.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["reason"] for line in lines].count("singular") == 68
    assert all((line["peb_m"] == "inf") == bool(line["reason"]) for line in lines)
    saved = np.load(tmp_path / "coverage.npz")
    assert np.array_equal(np.isinf(saved["peb_m"]), saved["reason"] > 0)
    assert f"{Reason.SINGULAR}=singular" in saved["reason_names"]
    report = (tmp_path / "report.html").read_text()
    assert "unobservable_at_station" in report
