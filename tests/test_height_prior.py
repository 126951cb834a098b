"""A known or bounded user height: one prior in all stages, and worth what the bound with it says."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from sensing import runs
from sensing.bounds import uplink_bound
from sensing.cli import conf_dir
from sensing.coarse.normal_equations import location_prior
from sensing.coarse.user_search import user_grid
from sensing.containers import map_tensors
from sensing.estimator import build_estimator
from sensing.inference.m_step import prior_precision
from tests.conftest import build

SCENES = 16


def ranged(deployment, low, high):
    return deployment._replace(ue_height_range=torch.tensor([low, high], dtype=torch.float64))


@pytest.fixture(scope="module")
def four():
    """Four shared scatterers: just enough for the user, so that the height matters."""
    setup = build(4)
    return setup, setup.simulator.examples("test", range(SCENES), snr_db=10.0)


def test_coarse_stage_and_refinement_have_the_prior_of_the_bound(hall):
    """Mean and variance of the uniform law, and the grid within it."""
    deployment = ranged(hall.deployment, 1.0, 2.0)
    coarse, (precision, mean) = location_prior(deployment), prior_precision(deployment, 3)
    assert float(coarse.mean[2]) == float(mean[2]) == 1.5
    assert float(coarse.precision[2]) == pytest.approx(12.0)
    assert float(precision[2]) == pytest.approx(12.0)
    grid, _ = user_grid(deployment, 500)
    assert bool((grid[:, 2] > 1.0).all() and (grid[:, 2] < 2.0).all())


def test_it_helps_as_the_bound_says(four):
    setup, example = four
    median = {}
    for name, deployment in (("free", setup.deployment), ("range", ranged(setup.deployment, 1.0, 2.0))):
        bound = uplink_bound(example.scene, example.observation.noise_var, deployment).ue_position_m
        with torch.no_grad():
            found = build_estimator(unrolled={"num_iterations": 4})(example.observation, deployment)
        error = (found.ue_position - example.scene.ue_position).norm(dim=-1)
        assert 0.4 < (error / bound).median() < 1.3
        median[name] = error.median(), bound.median()
    assert median["range"][0] < 0.8 * median["free"][0]
    assert median["range"][1] < 0.9 * median["free"][1]


def test_a_known_height_is_returned(four):
    setup, example = four
    height = float(example.scene.ue_position[0, 2])
    one = map_tensors(example, lambda field: field[:1])
    deployment = ranged(setup.deployment, height, height)
    with torch.no_grad():
        found = build_estimator(unrolled={"num_iterations": 4})(one.observation, deployment)
    bound = uplink_bound(one.scene, one.observation.noise_var, deployment).ue_position_m
    assert abs(float(found.ue_position[0, 2]) - height) < 0.01
    assert (found.ue_position - one.scene.ue_position).norm() < 3.0 * bound


def test_configuration_key():
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("evaluate", ["output_dir=x", "scene.deployment.ue_height_range=[1,2]"])
    assert runs.build_deployment(config).ue_height_range.tolist() == [1.0, 2.0]
