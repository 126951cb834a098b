"""Task `fuse_file` as a user runs it: positions against scipy, flags with their reasons, files, errors before work."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sensing import runs
from sensing.data.station_file import write_stations
from sensing.errors import SensingError
from sensing.evaluation.fuse_file import fuse_file
from sensing.fusion.domain import hexagon
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.measurements import StationMeasurements
from sensing.simulation.drops import DropSampler
from tests.test_coverage import composed

EXAMPLE = Path(__file__).parents[1] / "examples" / "fusion_sample.csv"
STATIONS = np.array([[115.47, 0.0, 10.0], [-57.735, 100.0, 10.0], [-57.735, -100.0, 10.0]])
METHODS = "task.methods=[equal,optimal,inverse_variance,covariance_intersection,best_station,fixed_range_weight,bayes]"
QUICK = ("task=fuse_file", "task.num_samples=600", "task.spacing_m=6", "task.height_m=1.5")


def cut(tmp_path, drops, name="drops.csv", columns=slice(None)):
    """Rows of some drops of the example, in the order of the drops named."""
    with EXAMPLE.open() as file:
        head, *rows = csv.reader(file)
    path = tmp_path / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head[columns])
        writer.writerows(row[columns] for drop in drops for row in rows if int(row[0]) == drop)
    return path


def fused(folder):
    """Rows of fused.csv by drop and method."""
    with (folder / "fused.csv").open() as file:
        return {(row["drop"], row["method"]): row for row in csv.DictReader(file)}


def vector(row, *names):
    return np.array([float(row[name]) for name in names])


def run(path, folder, *overrides):
    runs.evaluate(composed(*QUICK, f"task.path={path}", *overrides, folder=folder))
    return fused(folder)


def negative_log_likelihood(rows, place):
    """Of Gaussian ranges and von Mises-Fisher directions, written out."""
    total = 0.0
    for row in rows:
        offset = np.array([*place, 1.5]) - vector(row, "x_m", "y_m", "z_m")
        distance = np.linalg.norm(offset)
        if row["range_m"]:
            total += 0.5 * ((float(row["range_m"]) - distance) / float(row["range_std_m"])) ** 2
        if row["azimuth_deg"]:
            azimuth, elevation, std = np.radians(vector(row, "azimuth_deg", "elevation_deg", "angle_std_deg"))
            unit = np.array(
                [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
            )
            total += (1 - unit @ offset / distance) / std**2
    return total


def test_example_against_scipy(tmp_path, capsys):
    """Equal weights are the most likely position; its covariance is the inverse curvature there."""
    drops = [1, 30, 33, 37, 38]
    path = cut(tmp_path, drops)
    found = run(path, tmp_path / "out", METHODS)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(found) == 7 * len(drops)
    for drop in map(str, drops):
        own, got = [row for row in rows if row["drop"] == drop], found[drop, "equal"]
        best = minimize(
            lambda place, own=own: negative_log_likelihood(own, place), vector(own[0], "true_x_m", "true_y_m"),
            method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12},
        )  # fmt: skip
        assert vector(got, "x_m", "y_m") == pytest.approx(best.x, abs=1e-4)
        assert float(got["z_m"]) == 1.5
        error = np.linalg.norm(best.x - vector(own[0], "true_x_m", "true_y_m"))
        assert float(got["error_m"]) == pytest.approx(error, abs=2e-4)
        step, curvature = 0.05, np.zeros((2, 2))
        for i, one in enumerate(np.eye(2) * step):
            for j, other in enumerate(np.eye(2) * step):
                signs = [(a * b, best.x + a * one + b * other) for a in (1, -1) for b in (1, -1)]
                curvature[i, j] = sum(s * negative_log_likelihood(own, place) for s, place in signs) / (4 * step**2)
        claimed = vector(got, "cov_xx_m2", "cov_xy_m2", "cov_yy_m2")
        wanted = np.linalg.inv(curvature)[[0, 0, 1], [0, 1, 1]]
        assert claimed == pytest.approx(wanted, rel=0.1, abs=0.05 * wanted.max())  # of residuals that are not zero
        assert [got[f"cov_{pair}_m2"] for pair in ("xz", "yz", "zz")] == ["0"] * 3
        # a posterior that is nearly Gaussian has its mean and covariance
        bayes = found[drop, "bayes"]
        assert vector(bayes, "x_m", "y_m") == pytest.approx(best.x, abs=0.35 * np.sqrt(wanted.max()))
        assert float(bayes["cov_xx_m2"]) == pytest.approx(claimed[0], rel=0.25)
    assert {found["37", method]["flags"] for method in ("equal", "bayes")} == {"one_station"}
    assert found["37", "equal"]["num_stations"] == "1"
    assert found["1", "equal"]["flags"] == ""
    assert "90 % error" in capsys.readouterr().out


def test_files_of_a_run_with_truth(tmp_path):
    found = run(cut(tmp_path, [2, 3, 4, 5, 31, 32]), tmp_path / "out", "task.methods=[equal,bayes]")
    with (tmp_path / "out" / "fusion.csv").open() as file:
        assert file.readline() == "method,modality,num_stations,quantile,error_m,num_drops\n"
        file.seek(0)
        rows = list(csv.DictReader(file))
    assert [(row["modality"], row["num_drops"]) for row in rows[::3]] == [("hybrid", "4")] * 2 + [("toa", "2")] * 2
    for row in rows:
        drops = ("2", "3", "4", "5") if row["modality"] == "hybrid" else ("31", "32")
        errors = [float(found[drop, row["method"]]["error_m"]) for drop in drops]
        assert float(row["error_m"]) == pytest.approx(np.quantile(errors, float(row["quantile"])), rel=1e-4)
    for name in ("map", "error_cdf"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("data:image/png") == 2
    assert "6, 6 of them with truth" in report


def test_without_truth_there_are_positions_and_no_errors(tmp_path):
    found = run(cut(tmp_path, [0, 36], columns=slice(10)), tmp_path / "out", "task.methods=[equal]")
    assert {row["error_m"] for row in found.values()} == {""}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures", "fused.csv", "report.html"]


def test_what_is_doubtful_says_why(tmp_path):
    """Mirror images with both modes, contradictory ranges, one range alone, and nothing at all."""
    drops = DropSampler(STATIONS.tolist(), hexagon(115.47, 1.5, 2.0)).sample(0, "sample", range(3))
    ranges = drops.measured.range_std.clone()
    ranges[0, 1:], ranges[1] = torch.inf, torch.inf
    alone = StationMeasurements(drops.measured.bs_position, *drops.measured.only("toa")[1:])._replace(range_std=ranges)
    path = write_stations(tmp_path / "alone.csv", alone)
    found = run(path, tmp_path / "alone", "task.methods=[equal,covariance_intersection,bayes]")
    assert {found["0", method]["flags"] for method in ("equal", "covariance_intersection")} == {
        "open|lone_member|one_station"
    }
    assert found["0", "equal"]["cov_xx_m2"] == "inf"
    assert found["0", "bayes"]["flags"] == "open|one_station"
    nothing = [found["1", method] for method in ("equal", "covariance_intersection", "bayes")]
    assert {(row["flags"], row["x_m"], row["cov_xx_m2"]) for row in nothing} == {("no_measurement", "", "")}
    assert found["2", "equal"]["flags"] == ""

    found = run(cut(tmp_path, [35, 39]), tmp_path / "out", METHODS)
    two = found["35", "equal"]
    assert two["flags"] == "mirror"
    along = STATIONS[1, :2] - STATIONS[0, :2]
    normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    place = vector(two, "x_m", "y_m") - STATIONS[0, :2]
    image = STATIONS[0, :2] + place - 2 * (place @ normal) * normal
    assert vector(two, "second_x_m", "second_y_m") == pytest.approx(image, abs=1e-3)
    assert float(two["second_z_m"]) == 1.5
    assert "mirror" in found["35", "bayes"]["flags"]
    assert "contradictory" in found["39", "equal"]["flags"]
    assert "contradictory" in found["39", "bayes"]["flags"]


def test_a_drop_depends_on_itself_alone(tmp_path):
    domain = ("task.lower_m=[-120,-105,0]", "task.upper_m=[120,105,5]")
    many = run(cut(tmp_path, [35, 3, 38]), tmp_path / "many", METHODS, *domain)
    few = run(cut(tmp_path, [38, 3], "few.csv"), tmp_path / "few", METHODS, *domain)
    assert {key: many[key] for key in few} == few
    other = run(cut(tmp_path, [3], "few.csv"), tmp_path / "other", "task.methods=[optimal]", *domain, "seed=5")
    assert other["3", "optimal"]["x_m"] != few["3", "optimal"]["x_m"]


def test_in_space_and_with_a_law_of_biases(tmp_path):
    path = cut(tmp_path, [0, 1])
    found = run(path, tmp_path / "space", "task.height_m=null", "task.methods=[equal]")
    for drop in "01":
        row = found[drop, "equal"]
        assert float(row["cov_zz_m2"]) > 0
        assert 0 < float(row["error_m"]) < 5
        assert row["flags"] == ""
    biased = run(path, tmp_path / "biased", "task.methods=[bayes]", "task.bias=delta", "task.bias_scale_m=3")
    plain = run(path, tmp_path / "plain", "task.methods=[bayes]")
    shift = [np.linalg.norm(vector(biased[key], "x_m", "y_m") - vector(plain[key], "x_m", "y_m")) for key in plain]
    assert min(shift) > 0.3


def test_learned_methods_take_part(tmp_path):
    """Untrained, the learned fusion has the position and the covariance of equal weights."""
    build = SimpleNamespace(fusion=lambda checkpoint: LearnedFusion(layers=1, steps=4))
    fuse_file(
        build, tmp_path / "out", str(cut(tmp_path, [3, 38])), ["equal", "learned"], height_m=1.5, spacing_m=6.0,
        num_samples=600, checkpoints={"learned": "best.ckpt"}, progress=False,
    )  # fmt: skip
    found = fused(tmp_path / "out")
    for drop in ("3", "38"):
        learned, equal = found[drop, "learned"], found[drop, "equal"]
        for names in (("x_m", "y_m", "z_m"), ("cov_xx_m2", "cov_xy_m2", "cov_yy_m2")):
            assert vector(learned, *names) == pytest.approx(vector(equal, *names), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, r"task.path must be an existing CSV file \(say task.path=FILE\), got None"),
        ({"path": "nowhere.csv"}, r"task.path must be an existing CSV file .*got 'nowhere.csv'"),
        ({"methods": ["best"]}, r"methods must be out of"),
        ({"methods": ["learned"]}, r"task.checkpoints.learned must be"),
        ({"height_m": np.inf}, r"height_m must be a number of metres or null"),
        ({"spacing_m": 0}, r"spacing_m must be"),
        ({"spacing_m": 1e-4}, r"a domain must have at most"),
        ({"lower_m": [0, 0, 0]}, r"upper_m must be \[x, y, z\] in metres, or both corners null, got None"),
        ({"lower_m": [0, 0], "upper_m": [1, 1, 1]}, r"lower_m must be \[x, y, z\]"),
        ({"lower_m": [9, 9, 0], "upper_m": [1, 1, 1]}, r"lower corner .* below upper"),
        ({"num_samples": 0}, r"num_samples must be a whole number >= 1, got 0"),
        ({"seed": -1}, r"seed must be a whole number >= 0, got -1"),
        ({"range_factor": 0}, r"range_factor must be a number > 0"),
        ({"bias": "gamma"}, r"bias must be one of"),
        ({"bias_scale_m": -1}, r"bias_scale_m must be a number >= 0"),
    ],
)
def test_bad_options_leave_nothing_behind(tmp_path, options, message):
    with pytest.raises(SensingError, match=message):
        fuse_file(SimpleNamespace(), tmp_path / "out", **{"path": str(EXAMPLE), "progress": False} | options)
    assert not (tmp_path / "out").exists()


def test_bad_files_leave_nothing_behind(tmp_path):
    path = cut(tmp_path, [0])
    path.write_text(path.read_text().replace(",1,1,", ",0,1,", 1))
    with pytest.raises(SensingError, match=r"line 2, column range_std_m must be a number > 0 .*\(in task\)"):
        run(path, tmp_path / "out")
    with EXAMPLE.open() as file:
        path.write_text(next(file) + "a,n,0,0,10,,,,,,1,2,3\n")
    with pytest.raises(SensingError, match=r"task.path must hold a range or a direction, got none in 1 drops"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
