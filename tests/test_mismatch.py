"""The experiment on noise, priors and diffuse tails."""

import csv
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from benchmarks.hall import hall
from sensing import runs
from sensing.channel import channel_response, scene_paths
from sensing.cli import conf_dir
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator
from sensing.evaluation.mismatch import METHODS
from sensing.evaluation.mismatch_methods import Matched, candidate
from sensing.evaluation.mismatch_output import closed, compared, statistics
from sensing.simulation import Impairments, Simulator

SMALL = [
    "experiment=mismatch", "ofdm.num_subcarriers=512", "task.num_scenes=2", "task.val_scenes=1", "task.seeds=[0,1]",
    "task.train_scenes=2", "task.progress=false",
    "~task.cases.noise", "~task.cases.clocks", "~task.cases.priors",
    "array.num_y=4", "array.num_z=4",
    "task.cases.diffuse.candidates=[{noise_factor: 4.0, clock_factor: 2.0}]",
]  # fmt: skip


def composed(folder, *overrides):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("evaluate", [f"output_dir={folder}", *SMALL, *overrides])


def test_statistics_and_closed_gaps():
    error, ratio, nmse = np.array([3.0, 4.0, 0.0]), np.array([1.0, 2.0, 2.0]), np.array([-10.0, -20.0, -math.inf])
    rms, median, over, decibel = statistics(error, ratio, nmse)
    assert (rms, median, over) == pytest.approx((math.sqrt(25 / 3), 3.0, math.sqrt(3)))
    assert decibel == pytest.approx(10 * math.log10(0.11 / 3))
    assert closed(np.array(5.0), np.array(2.0), np.array(1.0)) == pytest.approx(0.75)
    found = compared(*(np.array(values) for values in ([5.0, 4, 3, -9], [2.0, 2, 3, -12], [1.0, 0, 3, -13])))
    np.testing.assert_allclose(found[:, 0], [0.4, 0.5, 1.0, -3.0])
    np.testing.assert_allclose(found[:, 1], [4.0, 4.0, 0.0, 4.0])
    np.testing.assert_allclose(found[:, 2], [0.75, 0.5, np.nan, 0.75])


def test_matched_estimator_is_told_the_true_covariance():
    """What its whitener makes of noise and tail, from the simulator's own draws."""
    plain = hall(6)
    sizes = Impairments(diffuse=0.2, diffuse_decay_m=12.0, noise_db=2.0)
    simulator = Simulator(plain.deployment, plain.sampler, 0, sizes)
    example = simulator.examples("val", range(12), 10.0)
    seen = []

    class Spy(Matched):
        def located(self, observation, deployment, paths=None):
            seen.append(observation)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Spy(simulator, LocationEstimator())(example.observation, plain.deployment, truth=example)
    observation = seen[0]
    assert torch.equal(observation.noise_var, example.true_noise_var)
    specular = channel_response(scene_paths(example.scene, plain.deployment), plain.deployment)
    rows = (example.observation.y - specular) @ observation.whitener.mT
    rows = (rows / observation.noise_var.sqrt()[..., None, None]).flatten(0, 2)
    found = rows.mT @ rows.conj() / len(rows)
    torch.testing.assert_close(found, torch.eye(64, dtype=found.dtype), rtol=0, atol=6 / math.sqrt(len(rows)))


def test_task_writes_all_four_estimators_of_two_seeds(tmp_path):
    runs.evaluate(composed(tmp_path))
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["estimator"] for row in rows] == list(METHODS)
    assert {row["case"] for row in rows} == {"diffuse"}
    assert {(row["seeds"], row["num_scenes"]) for row in rows} == {("2", "4")}
    assert [row["parameters"] for row in rows] == ["0", "0", "13", "0"]
    assert [row["training_scenes"] for row in rows] == ["0", "1", "2", "0"]
    with np.load(tmp_path / "per_scene.npz") as file:
        error = {name: file[f"diffuse/1/{name}/error_m"] for name in METHODS}
    rms = {name: np.sqrt(np.mean(each**2, -1)) for name, each in error.items()}  # [seed]
    assert all(each.shape == (2,) for each in rms.values())
    whole = {name: float(np.sqrt(np.mean(each**2))) for name, each in error.items()}
    assert float(rows[2]["rms_m"]) == pytest.approx(whole["learned"], rel=1e-3)
    assert [float(x) for x in rows[2]["rms_m_of_seeds"].split(" / ")] == pytest.approx(list(rms["learned"]), rel=5e-3)
    with (tmp_path / "gaps.csv").open() as file:
        gaps = {(row["from"], row["quantity"]): row for row in csv.DictReader(file)}
    assert len(gaps) == 8
    gap = gaps["classical", "rms_m"]
    assert float(gap["learned_over_from"]) == pytest.approx(whole["learned"] / whole["classical"], rel=1e-3)
    assert float(gap["gap"]) == pytest.approx(whole["classical"] - whole["matched"], rel=1e-3)
    assert "<img" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.num_scenes=0", "task.num_scenes must be"),
        ("task.methods=[classical,best]", "task.methods must be out of"),
        ("+task.cases.more={matched: {}}", "task.cases.more must have values and may have candidates"),
        ("+task.cases.diffuse.nothing=1", "task.cases.diffuse must have values and may have candidates"),
        ("+task.cases.diffuse.values.nothing=1", "must be one of the configuration"),
        ("+task.cases.diffuse.learned=walls", "task.cases.diffuse.learned must be one of"),
        ("task.cases.diffuse=null", "task.cases must hold a case"),
        ("task.seeds=[1,1]", "task.seeds must hold distinct numbers"),
        ("task.severities=[-1]", "task.severities must hold distinct numbers"),
    ],
)
def test_bad_tasks_are_refused_before_any_work(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        runs.evaluate(composed(tmp_path, override))


def test_without_impairments_the_cases_are_one(tmp_path):
    """Measured once and reported in each; what is not an impairment stays a difference."""
    two = ["+task.cases.noise={values: {impairments.noise_db: 6.0}}", "task.cases.diffuse.matched=null"]
    three = ["+task.cases.priors={values: {prior.visibility: 0.1}}", "task.cases.diffuse.candidates=[]"]
    few = ["task.methods=[classical]", "task.severities=[0]", "task.seeds=[0]"]
    runs.evaluate(composed(tmp_path, *two, *three, *few))
    with np.load(tmp_path / "per_scene.npz") as file:
        found = {case: file[f"{case}/0/classical/error_m"] for case in ("diffuse", "noise", "priors")}
        assert len(file.files) == 9
    np.testing.assert_array_equal(found["diffuse"], found["noise"])
    assert (found["priors"] != found["noise"]).any()


def test_candidates_vary_what_the_estimator_is_told(tmp_path):
    build = runs.build.Builder(composed(tmp_path))
    assert candidate(build, {}).name == "classical"
    assert candidate(build, {"noise": "estimated"}).noise == "estimated"
    layer = candidate(build, {"prior.visibility": 0.3}).unrolled.layers[0]
    assert layer.shares["visibility"] == 0.3
    told = candidate(build, {"noise_factor": 4.0, "clock_factor": 2.0}).surroundings
    assert (
        told.described()
        == "noise 6.02 6.02 6.02 6.02 dB; tail 0.000 0.000 0.000 0.000, decay 10.0 10.0 10.0 10.0 m; clock 2.000"
    )
    with pytest.raises(ConfigError, match="must be one of the configuration"):
        candidate(build, {"nothing": 1})
