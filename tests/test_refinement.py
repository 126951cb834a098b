"""Task `refinement`: rows by hand, refusals, and where methods meet."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest

from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator
from sensing.evaluation.refinement import Found, Method, refinement
from sensing.evaluation.refinement_output import write_refinement
from sensing.evaluation.task import Trained
from sensing.inference.unrolled import Unrolled


class Build(SimpleNamespace):
    """The tiny hall for every case; checkpoints are numbers of iterations."""

    def varied(self, values):
        return self

    def simulator(self):
        return self.setup.simulator

    def unrolled(self, checkpoint):
        return Trained(Unrolled(checkpoint, guard=False), 320)

    def classical(self):
        return LocationEstimator()


METHODS = {"classical_2": {"num_iterations": 2}, "unfolded_2": {"checkpoints": [2, 2]}}


def rows(folder):
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_iterations_give_the_same_row(tiny, tmp_path):
    build = Build(setup=tiny)
    methods = {"classical_2": {"num_iterations": 2, "guard": False}, "unfolded_2": {"checkpoints": [2, 2]}}
    settings = {"starts": [1.0, "detected"], "snr_db": [15.0], "num_scenes": 3, "batch_size": 2, "progress": False}
    found = refinement(build, tmp_path, methods, **settings)
    lines = rows(tmp_path)
    assert [(line["start"], line["estimator"]) for line in lines] == [
        (start, name) for start in ("1.0", "detected") for name in methods
    ]
    for ours, learned in (lines[:2], lines[2:]):
        assert ours["rms_over_peb"] == learned["rms_over_peb"]
        assert float(learned["rms_ratio"]) == 1.0
        assert float(learned["converged_gain"]) == 0.0
        assert float(learned["rms_seed_std"]) == 0.0
        assert ours["versus"] == ours["rms_ratio"] == ""
        assert (learned["seeds"], learned["training_scenes"], ours["training_scenes"]) == ("2", "320", "0")
        assert int(learned["parameters"]) > int(ours["parameters"]) == 0
    again = refinement(build, tmp_path / "one", methods, **(settings | {"batch_size": 3, "starts": [1.0]}))
    for one, other in zip(found[:2], again, strict=True):
        np.testing.assert_allclose(one.over_peb, other.over_peb, rtol=1e-6)


def test_statistics_by_hand(tmp_path):
    ours, theirs = np.array([[1.0, 1.0, 2.0, 4.0], [1.0, 1.0, 2.0, 2.0]]), np.array([[2.0, 2.0, 2.0, 8.0]])
    methods = {"a": Method([Unrolled(1)], 0), "b": Method([Unrolled(2), Unrolled(2)], 7)}
    zero = np.zeros_like
    found = [
        Found("x", "8.0", 10.0, "a", theirs, zero(theirs), zero(theirs, bool), zero(theirs, bool), 0.2),
        Found("x", "8.0", 10.0, "b", ours, zero(ours) - 20.0, ours > 3, ours < 2, 0.05),
    ]
    write_refinement(found, methods, "a", tmp_path, "", "", None)
    line = rows(tmp_path)[1]
    rms, theirs_rms = math.sqrt(32 / 8), math.sqrt(76 / 4)
    spread = np.std([math.sqrt(22 / 4), math.sqrt(10 / 4)], ddof=1)
    expected = {
        "rms_over_peb": rms, "rms_ratio": rms / theirs_rms, "rms_seed_std": spread, "converged": 7 / 8,
        "converged_gain": 7 / 8 - 3 / 4, "fallback_share": 1 / 8, "near_share": 1 / 2, "time_ratio": 0.25,
        "ms_per_scene": 50.0, "nmse_db": -20.0, "training_scenes": 7, "median_ratio": 1.5 / 2.0,
    }  # fmt: skip
    for name, value in expected.items():
        assert float(line[name]) == pytest.approx(value, rel=1e-3), name
    # the same scenes are drawn for both: where the errors are half of the others' in all scenes, there is no spread
    half = [found[0], found[1]._replace(over_peb=np.concatenate([0.5 * theirs, 0.5 * theirs]))]
    write_refinement(half, methods, "a", tmp_path, "", "", None)
    line = rows(tmp_path)[1]
    assert {float(line[name]) for name in ("rms_ratio", "rms_ratio_low", "rms_ratio_high")} == {0.5}


@pytest.mark.parametrize(
    "settings",
    [
        {"methods": {}},
        {"reference": "nobody"},
        {"num_scenes": 0},
        {"starts": ["somewhere"]},
        {"split": "train"},
        {"methods": {"x": {"iterations": 3}}},
        {"methods": {"x": {"checkpoints": []}}},
        {"methods": {"x": {"checkpoints": [1], "step": 2.0}}},
    ],
)
def test_refusals(tiny, tmp_path, settings):
    with pytest.raises(ConfigError):
        refinement(Build(setup=tiny), tmp_path, **({"methods": METHODS, "progress": False} | settings))
    assert not any(tmp_path.iterdir())
