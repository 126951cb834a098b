"""Fusion tasks as a user runs them: files and their columns, reproducible errors, bad settings; grids of the domain."""

import csv

import numpy as np
import pytest
import torch

from sensing import runs
from sensing.errors import ConfigError, SensingError
from sensing.evaluation.fusion import Case, FusionErrors, pool_generator
from sensing.evaluation.fusion_output import draw
from sensing.fusion.domain import box, hexagon
from sensing.fusion.methods import METHODS, Pooling, check_methods, fuse
from sensing.fusion.modes import FusionFlag
from sensing.simulation.drops import DropSampler
from tests.test_coverage import composed

TINY = ["task=fusion", "task.num_drops=12", "task.num_samples=300", "task.tuning_drops=8", "drops.domain.spacing_m=6"]
SAMPLES = ["task=fusion_samples", "task.num_drops=6", "task.counts=[20,400]", "drops.domain.spacing_m=6"]


def test_fusion_writes_its_files(tmp_path, capsys):
    methods = ["equal", "optimal", "inverse_variance", "covariance_intersection", "best_station", "fixed_range_weight"]
    runs.evaluate(
        composed(*TINY, "task.stations=[[0,1],[0,1,2]]", f"task.methods={[*methods, 'bayes']}", folder=tmp_path)
    )
    with (tmp_path / "fusion.csv").open() as file:
        assert file.readline() == "method,modality,num_stations,quantile,error_m,num_drops\n"
    with (tmp_path / "fusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 7 * 3
    assert {row["num_drops"] for row in rows} == {"12"}
    assert {row["modality"] for row in rows} == {"toa", "aoa", "hybrid"}
    saved = np.load(tmp_path / "errors.npz")
    for row in rows:
        errors = saved[f"{row['modality']}_{row['num_stations']}_{row['method']}_error_m"]
        assert float(row["error_m"]) == pytest.approx(np.quantile(errors, float(row["quantile"])), rel=1e-5)
    assert saved["hybrid_3_optimal_weight"].sum(-1) == pytest.approx(np.ones(12))
    assert (saved["toa_3_optimal_weight"][:, 3:] == 0).all()
    assert saved["hybrid_3_equal_flags"].shape == (12,)
    assert (saved["toa_2_best_station_flags"] & FusionFlag.LONE_MEMBER > 0).all()
    with (tmp_path / "results.csv").open() as file:
        full = list(csv.DictReader(file))
    assert all(float(row["low_m"]) <= float(row["error_m"]) <= float(row["high_m"]) for row in full)
    for base in ("equal", "bayes"):
        assert {row[f"over_{base}"] for row in full if row["method"] == base} == {"1"}
        for row in full:
            place = f"{row['modality']}_{row['num_stations']}"
            ratio = np.divide(*(np.quantile(saved[f"{place}_{name}_error_m"], float(row["quantile"])) for name in
                                (row["method"], base)))  # fmt: skip
            assert float(row[f"over_{base}"]) == pytest.approx(ratio, rel=1e-5)
            assert float(row[f"low_over_{base}"]) <= ratio + 1e-6
            assert ratio <= float(row[f"high_over_{base}"]) + 1e-6
    assert (tmp_path / "figures/error_cdf.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png" in (tmp_path / "report.html").read_text()
    assert "90 % error" in capsys.readouterr().out


def test_same_seed_same_errors_and_another_seed_others(tmp_path):
    errors = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        runs.evaluate(composed(*TINY, "task.modalities=[toa]", f"seed={seed}", folder=tmp_path / name))
        errors.append(np.load(tmp_path / name / "errors.npz")["toa_3_optimal_error_m"])
    assert np.array_equal(errors[0], errors[1])
    assert not np.array_equal(errors[0], errors[2])


def test_the_seed_reaches_the_samples():
    """Generators read 32 bits of their seed; seed 0 keeps the samples that it always had."""
    same = torch.Generator().manual_seed(128)
    assert torch.equal(torch.rand(4, generator=pool_generator(0, 128)), torch.rand(4, generator=same))
    drawn = {float(torch.rand((), generator=pool_generator(seed, first))) for seed in range(20) for first in (0, 128)}
    assert len(drawn) == 40


def test_a_single_drop_shows_in_the_figure():
    found = [FusionErrors(Case("toa", (0,)), {"equal": np.array([2.0])}, {}, {}, 1.0)]
    panel = draw(found).axes[0]
    assert panel.lines[0].get_xydata().tolist() == [[2.0, 0.0], [2.0, 1.0]]
    assert panel.get_xlim()[1] > 2.0


def test_samples_write_their_files(tmp_path):
    runs.evaluate(composed(*SAMPLES, folder=tmp_path))
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["proposal"], row["method"], row["num_samples"]) for row in rows} == {("none", "bayes", "0")} | {
        (proposal, method, count) for proposal in ("pool", "uniform") for method in ("equal", "optimal")
        for count in ("20", "400")
    }  # fmt: skip
    saved = np.load(tmp_path / "errors.npz")
    for row in rows:
        errors = saved[f"{row['proposal']}_{row['method']}_{row['num_samples']}_error_m"]
        assert float(row["error_m"]) == pytest.approx(np.quantile(errors, float(row["quantile"])), rel=1e-5)
    assert np.median(saved["none_bayes_0_error_m"]) < np.median(saved["uniform_equal_20_error_m"])
    coarse, fine = (np.median(saved[f"uniform_equal_{count}_error_m"]) for count in (20, 400))
    assert coarse > 2 * fine
    assert (tmp_path / "figures/samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.methods=[best]", r"methods must be out of"),
        ("task.methods=[equal,equal]", r"each once"),
        ("task.modalities=[tdoa]", r"modalities must be out of .*got \['tdoa'\]"),
        ("task.stations=[[0,3]]", r"stations must be sets out of stations 0 to 2"),
        ("task.stations=[[]]", r"stations must be sets"),
        ("task.stations=[[0],[1]]", r"sets of different sizes"),
        ("task.stations=[[0,0]]", r"stations must be sets"),
        ("task.stations=[[0.0,1]]", r"stations must be sets"),
        ("drops.range_std_m=0.7", r"at most 8 least deviations of a range \(5.6 m\) for the method bayes, got 5.9"),
        ("task.num_drops=0", r"num_drops must be a whole number >= 1, got 0"),
        ("task.num_samples=0", r"number of samples must be at least 1, got 0"),
        ("task.proposal=best", r"proposal must be one of"),
        ("drops.range_std_m=0", r"range_std_m must be positive"),
        ("drops.range_std_m=[1,1]", r"range_std_m must be positive, one or one for each of 3"),
        ("drops.angle_std_deg=-1", r"angle_std_deg must be positive"),
        ("drops.bias=gamma", r"bias must be one of"),
    ],
)
def test_bad_settings_are_refused_before_any_work(override, message, tmp_path):
    with pytest.raises(SensingError, match=message):
        runs.evaluate(composed(*TINY, override, folder=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_bad_counts(tmp_path):
    with pytest.raises(ConfigError, match="rising order"):
        runs.evaluate(composed(*SAMPLES, "task.counts=[100,10]", folder=tmp_path / "out"))


@pytest.mark.parametrize("name", ["num_drops", "batch_size"])
def test_samples_need_drops(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} must be a whole number >= 1, got 0"):
        runs.evaluate(composed(*SAMPLES, f"task.{name}=0", folder=tmp_path / "out"))


def test_methods_by_name():
    assert check_methods(METHODS) == list(METHODS)
    with pytest.raises(ConfigError, match="got \\[\\]"):
        check_methods([])
    domain = hexagon(30.0, 1.5, 1.0)
    measured = DropSampler([[30.0, 0.0, 10.0]], domain).sample(0, "test", range(2)).measured
    with pytest.raises(ConfigError, match="bayes needs the law"):
        fuse(["bayes"], measured, Pooling(domain, 50), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("domain", [hexagon(20.0, 1.5, 1.0), box([0, 0, 0], [4, 3, 2], 0.7)])
def test_contains_against_the_shape_itself(domain):
    lower, upper = domain.points.amin(0) - domain.cell, domain.points.amax(0) + domain.cell
    generator = torch.Generator().manual_seed(0)
    places = lower + torch.rand(4000, 3, dtype=torch.float64, generator=generator) * (upper - lower)
    if len(domain.unknown) == 2:
        # the cells of a hexagon are those with their centres in it: centres are what decides
        index = ((places - domain.points.amin(0)) / torch.where(domain.cell > 0, domain.cell, 1.0)).round()
        centre = domain.points.amin(0) + index * domain.cell
        x, y = centre[:, 0].abs(), centre[:, 1].abs()
        inside = (y <= 10 * 3**0.5) & (3**0.5 * x + y <= 20 * 3**0.5) & (x <= 20)
    else:
        inside = ((places >= 0) & (places <= torch.tensor([4.0, 3.0, 2.0]))).all(-1)
    assert torch.equal(domain.contains(places), inside)
    assert 0.2 < float(inside.double().mean()) < 0.9


def test_refinement_leaves_the_grid_of_samples_behind():
    """With few samples the best of them is coarse; refined, it is the minimum itself, and still inside the domain."""
    domain = hexagon(60.0, 1.5, 1.0)
    stations = [[60.0, 0.0, 10.0], [-30.0, 52.0, 10.0], [-30.0, -52.0, 10.0]]
    sample = DropSampler(stations, domain).sample(0, "test", range(60))
    found = {}
    for count in (100, 10_000):
        for refine in (False, True):
            pooling = Pooling(domain, count, refine=refine)
            fused = fuse(["equal"], sample.measured, pooling, torch.Generator().manual_seed(0))
            found[count, refine] = fused["equal"].position
    assert bool(domain.contains(found[100, True]).all())
    coarse, fine = ((found[count, False] - found[10_000, True]).norm(dim=-1).median() for count in (100, 10_000))
    assert fine < 0.3 * coarse
    inside = (found[100, True] - found[10_000, True]).norm(dim=-1)
    assert float(inside.quantile(0.9)) < 1e-3 < 0.01 < float(coarse)
