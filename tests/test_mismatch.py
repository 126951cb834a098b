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
from sensing.evaluation.mismatch import METHODS, Matched
from sensing.evaluation.mismatch_output import closed, statistics
from sensing.simulation import Impairments, Simulator

SMALL = [
    "experiment=mismatch", "ofdm.num_subcarriers=512", "task.num_scenes=3", "task.val_scenes=2",
    "task.train_scenes=2", "task.progress=false", "~task.cases.clocks", "~task.candidates.clocks",
    "array.num_y=4", "array.num_z=4", "~task.cases.noise", "~task.candidates.noise",
    "task.candidates.diffuse=[{noise: estimated},{noise_factor: 4.0, clock_factor: 2.0}]",
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


def test_task_writes_all_four_estimators(tmp_path):
    runs.evaluate(composed(tmp_path))
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["estimator"] for row in rows] == list(METHODS)
    assert {row["case"] for row in rows} == {"diffuse"}
    assert {row["num_scenes"] for row in rows} == {"3"}
    assert [row["parameters"] for row in rows] == ["0", "0", "13", "0"]
    assert [row["training_scenes"] for row in rows] == ["0", "2", "2", "0"]
    with np.load(tmp_path / "per_scene.npz") as file:
        error = file["diffuse/1/learned/error_m"]
    assert float(rows[2]["rms_m"]) == pytest.approx(float(np.sqrt(np.mean(error**2))), rel=1e-4)
    with (tmp_path / "gaps.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "<img" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.num_scenes=0", "task.num_scenes must be"),
        ("task.methods=[classical,best]", "task.methods must be out of"),
        ("+task.cases.more={impairments.diffuse: 1.0}", "task.candidates must hold those of"),
        ("+task.cases.diffuse.nothing=1", "must be one of the configuration"),
    ],
)
def test_bad_tasks_are_refused_before_any_work(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        runs.evaluate(composed(tmp_path, override))
