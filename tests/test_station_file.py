"""CSV files of stations' ranges and directions: what is read, refused with line and column, and written; their area."""

import csv
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sensing.data.station_file import COLUMNS, TRUTH, read_stations, write_stations
from sensing.errors import ConfigError, DomainError, FileFormatError
from sensing.fusion.area import measured_area
from sensing.fusion.domain import hexagon
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.solve import solve_position
from sensing.fusion.uncertainty import pool_covariance
from sensing.simulation.drops import DropSampler

EXAMPLES = Path(__file__).parents[1] / "examples"
STATIONS = [[115.47, 0.0, 10.0], [-57.735, 100.0, 10.0], [-57.735, -100.0, 10.0]]
HEAD = ",".join(COLUMNS)
ROWS = ["a,north,0,0,10,100,30,-5,1,2", "a,south,0,-80,10,120,45,0,0.5,1", "b,north,0,0,10,50,,,1,"]


def written(tmp_path, rows=ROWS, head=HEAD, encoding="utf-8"):
    path = tmp_path / "stations.csv"
    path.write_text("\n".join([head, *rows]) + "\n", encoding=encoding)
    return path


def test_what_is_read(tmp_path):
    rows = [
        "day 1,-80,south,4,10,1,1, 120 ,45.0,0,0.5,1,7,8,9",
        "",
        "day 1,0,north,4,10,3,0,100,30,-5,1,2,7,8,9",
        '"b, too",0,north,4,10,3,0,,-390e-1,2,,1,,,',
    ]
    head = "drop,y_m,station,time,z_m,note,x_m,range_m,azimuth_deg,elevation_deg,range_std_m,angle_std_deg," + ",".join(
        TRUTH
    )
    file = read_stations(written(tmp_path, rows, head, "utf-8-sig"))
    assert file.ignored == ["time", "note"]
    one, two = file.drops
    assert (one.name, one.stations, two.name, two.stations) == ("day 1", ["south", "north"], "b, too", ["north"])
    assert (one.num_stations, one.modality, two.num_stations, two.modality) == (2, "hybrid", 1, "aoa")
    assert one.measured.bs_position.tolist() == [[1, -80, 10], [0, 0, 10]]
    assert one.measured.range_m.tolist() == [[120, 100]]
    assert np.degrees(one.measured.azimuth.numpy()) == pytest.approx(np.array([[45, 30]]))
    assert np.degrees(one.measured.elevation.numpy()) == pytest.approx(np.array([[0, -5]]))
    assert np.degrees(one.measured.angle_std.numpy()) == pytest.approx(np.array([[1, 2]]))
    assert one.measured.range_std.tolist() == [[0.5, 1.0]]
    assert one.position.tolist() == [7, 8, 9]
    assert two.position is None
    assert two.measured.range_std.tolist() == [[math.inf]]
    assert math.degrees(two.measured.azimuth) == pytest.approx(-39)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,n,0,0,10,far,30,0,1,2"], r"line 2, column range_m must be a number, got 'far'"),
        (["a,n,0,0,10,nan,30,0,1,2"], r"line 2, column range_m must be from 0 to 1e\+09, got nan"),
        (["a,n,0,0,10,inf,30,0,1,2"], r"column range_m must be from 0"),
        (["a,n,0,0,10,-3,30,0,1,2"], r"column range_m must be from 0 to 1e\+09, got -3"),
        ([ROWS[0], "b,n,0,0,10,9,30,0,0,2"], r"line 3, column range_std_m must be a number > 0 .*empty cell\), got 0"),
        (["a,n,0,0,10,9,30,0,1,-2"], r"column angle_std_deg must be a number > 0"),
        (["a,n,0,0,10,9,30,0,inf,2"], r"column range_std_m must be a number > 0 .*got inf"),
        (["a,n,0,0,10,9,30,0,,2"], r"column range_std_m must be given where range_m is, got an empty cell"),
        (["a,n,0,0,10,9,30,0,1,"], r"column angle_std_deg must be given where azimuth_deg is"),
        (["a,n,0,0,10,9,400,0,1,2"], r"column azimuth_deg must be from -360 to 360, got 400"),
        (["a,n,0,0,10,9,30,91,1,2"], r"column elevation_deg must be from -90 to 90, got 91"),
        (["a,n,0,0,10,9,30,,1,2"], r"column elevation_deg must be given where azimuth_deg is"),
        (["a,n,0,0,10,9,,5,1,2"], r"column azimuth_deg must be given where elevation_deg is"),
        (["a,n,0,,10,9,30,0,1,2"], r"column y_m must be a number, got an empty cell"),
        ([",n,0,0,10,9,30,0,1,2"], r"column drop must be a name"),
        ([*ROWS, "a,north,0,0,10,9,30,0,1,2"], r"line 5, column station must be once in drop 'a', .*again, .*line 2"),
        ([*ROWS, "c,north,0,1,10,9,30,0,1,2"], r"line 5, column y_m must be 0 as in line 2, both of station 'north'"),
        ([*ROWS, "c,north,0,0,10,9,30,0,1"], r"line 5 must have 10 cells as line 1 has, got 9"),
        ([], r"must have a row below"),
    ],
)  # fmt: skip
def test_refused_with_line_and_column(tmp_path, rows, message):
    with pytest.raises(FileFormatError, match=message):
        read_stations(written(tmp_path, rows))


@pytest.mark.parametrize(
    ("truths", "message"),
    [
        (["1,2,3", "1,2,4"], r"line 3, column true_z_m must be 3 as in line 2, both of drop 'a', got 4"),
        (["1,2,3", ",,"], r"column true_x_m must be 1 as in line 2, both of drop 'a', got empty"),
        (["1,,3", "1,,3"], r"line 2, column true_y_m must be given where the other coordinates are"),
        (["1,x,3", "1,2,3"], r"column true_y_m must be a number"),
    ],
)
def test_truths_agree(tmp_path, truths, message):
    rows = [f"{row},{truth}" for row, truth in zip(ROWS, truths, strict=False)]
    with pytest.raises(FileFormatError, match=message):
        read_stations(written(tmp_path, rows, f"{HEAD},{','.join(TRUTH)}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"an empty file"),
        (b"\n\n", r"an empty file"),
        (HEAD.replace("range_m,", "").encode(), r"missing \['range_m'\]"),
        (HEAD.replace(",", ";").encode(), r"separated by commas; missing \['drop'"),
        (f"{HEAD},x_m\n".encode(), r"each column once"),
        (f"{HEAD},true_x_m\n".encode(), r"missing \['true_y_m', 'true_z_m'\]"),
        (b"\xff\xfe\x00", r"must be a readable CSV file, got UnicodeDecodeError"),
        (f'{HEAD}\n"a,n'.encode(), r"must be a readable CSV file, got Error"),
    ],
)
def test_no_such_files(tmp_path, text, message):
    path = tmp_path / "stations.csv"
    path.write_bytes(text)
    with pytest.raises(FileFormatError, match=message):
        read_stations(path)
    with pytest.raises(FileFormatError, match="FileNotFoundError"):
        read_stations(tmp_path / "none.csv")


def test_what_is_written_is_read(tmp_path):
    drops = DropSampler(STATIONS, hexagon(115.47, 1.5, 2.0)).sample(0, "test", range(5))
    measured = drops.measured
    measured.angle_std[1, 2], measured.range_std[2, 0] = math.inf, math.inf
    measured.angle_std[3], measured.range_std[3] = math.inf, math.inf  # a drop that nobody saw
    file = read_stations(write_stations(tmp_path / "new" / "drops.csv", measured, drops.position))
    assert [drop.name for drop in file.drops] == ["0", "1", "2", "3", "4"]
    for i, drop in enumerate(file.drops):
        assert torch.allclose(drop.position, drops.position[i], atol=1e-6)
        assert torch.equal(drop.measured.members[0], measured.members[i])
        for name, tolerance in (("range_m", 1e-6), ("azimuth", 1e-8), ("elevation", 1e-8)):
            std = drop.measured.range_std if name == "range_m" else drop.measured.angle_std
            got, wanted = getattr(drop.measured, name)[0], getattr(measured, name)[i]
            assert torch.allclose(got, torch.where(torch.isfinite(std[0]), wanted, 0.0), atol=tolerance)
        assert torch.allclose(drop.measured.angle_std[0], measured.angle_std[i])
    with pytest.raises(DomainError, match="range_m must be finite"):
        write_stations(tmp_path / "bad.csv", measured._replace(range_m=measured.range_m * math.nan))
    assert not (tmp_path / "bad.csv").exists()


def test_example_is_what_its_script_makes(tmp_path, monkeypatch):
    path = tmp_path / "sample.csv"
    monkeypatch.setattr(sys, "argv", ["make_fusion_sample.py", "--out", str(path)])
    runpy.run_path(str(EXAMPLES / "make_fusion_sample.py"), run_name="__main__")
    with path.open() as new, (EXAMPLES / "fusion_sample.csv").open() as old:
        rows = list(zip(csv.reader(new), csv.reader(old), strict=True))
    assert len(rows) == 121
    assert rows[0][0] == rows[0][1]
    for made, kept in rows[1:]:
        assert [cell == "" for cell in made] == [cell == "" for cell in kept]
        numbers = [[float(cell or "0") for cell in row] for row in (made, kept)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-7)


def test_area_holds_what_was_measured():
    sampler = DropSampler(STATIONS, hexagon(115.47, 1.5, 2.0), range_std_m=2.0)
    drops = sampler.sample(0, "test", range(20))
    for modality in ("toa", "aoa", "hybrid"):
        each = [
            StationMeasurements(m[0], *(f[i : i + 1] for f in m[1:]))
            for i in range(20)
            for m in [drops.measured.only(modality)]
        ]
        plane, space = measured_area(each, 1.5), measured_area(each)
        assert bool(plane.contains(drops.position).all())
        assert bool(space.contains(drops.position).all())
        assert plane.unknown == [0, 1]
        assert space.unknown == [0, 1, 2]
        assert len(space.points) < 2.5e5
        if modality != "aoa":
            assert float(plane.cell.max()) <= 4.0
    beyond = each[0]._replace(range_m=each[0].range_m * 1e4)  # cells stay few
    assert len(measured_area([beyond]).points) < 2.5e5
    line = StationMeasurements(
        torch.tensor(STATIONS[:1], dtype=torch.float64), *(f[:1, :1] for f in drops.measured.only("aoa")[1:])
    )
    with pytest.raises(ConfigError, match="lower_m and upper_m must be given"):
        measured_area([line])


@pytest.mark.parametrize("precisions", [False, True])
def test_covariance_against_draws(precisions):
    """Positions of a pool with unequal weights scatter as claimed; weights that are precisions claim their own."""
    sampler = DropSampler(STATIONS, hexagon(115.47, 1.5, 2.0), range_std_m=[0.5, 1.0, 2.0])
    truth = torch.tensor([[20.0, -30.0, 1.5]], dtype=torch.float64).expand(20_000, 3)
    drawn = sampler.sample(0, "test", range(1))
    generator = torch.Generator().manual_seed(0)
    offset = truth[:1, None] - sampler.bs_position
    noise = torch.randn(3, 20_000, 3, dtype=torch.float64, generator=generator)
    tilt = torch.asin(offset[..., 2] / offset.norm(dim=-1))
    angle_std = drawn.measured.angle_std.expand(20_000, 3)
    measured = StationMeasurements(
        sampler.bs_position,
        offset.norm(dim=-1) + noise[0] * drawn.measured.range_std,
        torch.atan2(offset[..., 1], offset[..., 0]) + noise[1] * angle_std / tilt.cos(),
        tilt + noise[2] * angle_std,
        drawn.measured.range_std.expand(20_000, 3),
        angle_std,
    )
    weight = torch.tensor([0.3, 1.0, 2.0, 0.1, 0.5, 0.7], dtype=torch.float64).expand(20_000, 6)
    place = solve_position(truth, measured, weight.unflatten(-1, (2, 3))).position
    exact = measured._replace(
        range_m=offset.norm(dim=-1).expand(20_000, 3),
        azimuth=torch.atan2(offset[..., 1], offset[..., 0]).expand(20_000, 3),
        elevation=tilt.expand(20_000, 3),
    )
    claimed = pool_covariance(truth, exact, weight, [0, 1], precisions)[0]
    if precisions:
        doubled = pool_covariance(truth, exact, 2.0 * weight, [0, 1], True)[0]
        assert torch.allclose(doubled, 0.5 * claimed)
        equal = pool_covariance(truth, exact, torch.ones_like(weight), [0, 1], True)[0]
        assert torch.allclose(equal, pool_covariance(truth, exact, 0.2 * torch.ones_like(weight), [0, 1])[0])
    else:
        scatter = torch.cov((place - truth)[:, :2].T)
        whole = torch.linalg.solve(claimed, scatter)
        assert torch.allclose(whole, torch.eye(2, dtype=torch.float64), atol=0.06)


def test_open_coordinates_have_no_variance():
    measured = DropSampler(STATIONS[:1], hexagon(30.0, 1.5, 2.0)).sample(0, "test", range(2)).measured.only("toa")
    covariance = pool_covariance(torch.zeros(2, 3, dtype=torch.float64), measured, measured.members.double(), [0, 1])
    assert torch.isinf(covariance.diagonal(dim1=-2, dim2=-1)).all()
    assert (covariance[:, 0, 1] == 0).all()
