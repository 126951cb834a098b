"""Estimated noise variance: accuracy against the law of a mean, independence of the batch, and who reads what."""

import math

import pytest
import torch

from sensing import arrays
from sensing.coarse.detection import PathDetector
from sensing.coarse.noise import detect, estimate_noise_variance, rank_variance
from sensing.containers import Observation, map_tensors
from sensing.data import read_observations, write_observations
from sensing.errors import ConfigError, DomainError
from sensing.estimator import build_estimator
from sensing.evaluation import evaluate_file
from sensing.evaluation.runner import Runner

NAN = float("nan")


def unknown(observation):
    return observation._replace(noise_var=torch.full_like(observation.noise_var, NAN))


@pytest.mark.parametrize("snr_db", [-10.0, 10.0, 40.0])
def test_as_accurate_as_the_mean_power_of_noise_alone(hall_hard, snr_db):
    """4096 entries of known noise would give 1 / 64: twelve estimates within four of that, their mean in proportion."""
    example = hall_hard.simulator.examples("test", range(3), snr_db)
    found = estimate_noise_variance(unknown(example.observation), hall_hard.deployment)
    error = found / example.observation.noise_var - 1.0
    assert error.abs().max() < 4.0 / 64.0
    assert error.mean().abs() < 2.5 / 64.0 / math.sqrt(12.0)


def test_singular_values_are_biased_by_no_sidelobe(hall_hard):
    """The median of the periodogram, right for noise alone, is worthless at 30 dB; the singular values are not."""
    example = hall_hard.simulator.examples("test", range(3), 30.0)
    y, noise_var, *_ = example.observation
    spectrum = torch.fft.fftn(y.unflatten(-2, (8, 8)), dim=(-3, -2, -1), norm="ortho").abs().square()
    median = spectrum.flatten(-3).median(-1).values / math.log(2.0)
    assert (median / noise_var).min() > 1.3
    assert (rank_variance(y) / noise_var - 1.0).abs().max() < 0.1


def test_noise_alone_and_every_shape():
    """Against the mean power, which is the maximum likelihood estimate of noise alone."""
    generator = torch.Generator().manual_seed(1)
    for shape in ((2, 3, 1, 40), (2, 3, 5, 8), (1, 1, 40, 2)):
        y = torch.randn(shape, generator=generator, dtype=torch.complex128)
        power = y.abs().square().mean((-2, -1))
        assert (rank_variance(y) / power).min() > 0.6
        assert (rank_variance(y) / power).max() < 1.0 + 1e-12


def test_paths_are_those_of_the_variance_found(hall_hard):
    """Information and covariance scale with the variance: the same paths as from a detection at the final variance."""
    example = hall_hard.simulator.examples("test", range(2), 25.0)
    observation, paths = detect(unknown(example.observation), hall_hard.deployment, PathDetector(), "estimated")
    again = PathDetector()(observation, hall_hard.deployment)
    assert torch.equal(paths.mask, again.mask)
    scale = again.information.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(paths.information / scale, again.information / scale, rtol=0, atol=1e-3)
    torch.testing.assert_close(paths.range_m, again.range_m, rtol=0, atol=1e-3)


def test_scenes_do_not_see_their_batch_and_settle_in_their_own_time(hall_hard):
    """Antenna 0 alone: the rank says nothing, so that scenes need different numbers of detections."""
    example = hall_hard.simulator.examples("test", range(3), 25.0)
    one = hall_hard.deployment._replace(antenna_local=hall_hard.deployment.antenna_local[:1])
    observation = unknown(example.observation._replace(y=example.observation.y[:, :, :1]))
    whole, paths = detect(observation, one, PathDetector(), "estimated")
    for b in range(3):
        alone, own = detect(map_tensors(observation, lambda t, b=b: t[b : b + 1]), one, PathDetector(), "estimated")
        torch.testing.assert_close(alone.noise_var[0], whole.noise_var[b], rtol=1e-9, atol=0)
        count = own.mask.shape[-1]
        assert torch.equal(own.mask[0], paths.mask[b, :, :count])
        assert not paths.mask[b, :, count:].any()
        torch.testing.assert_close(own.range_m[0], paths.range_m[b, :, :count], rtol=0, atol=1e-6)
    assert (paths.direction.norm(dim=-1) - 1.0).abs().max() < 1e-9


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_equivariant_to_the_scale(hall_hard, scale):
    y = hall_hard.simulator.examples("test", range(1), 10.0).observation.y
    observation = Observation(y, torch.full(y.shape[:2], NAN))
    plain = estimate_noise_variance(observation, hall_hard.deployment)
    scaled = estimate_noise_variance(observation._replace(y=scale * y), hall_hard.deployment)
    torch.testing.assert_close(scaled / scale**2, plain, rtol=1e-6, atol=0)


def test_data_without_noise_or_without_anything(hall_hard):
    """A channel without noise, in single precision as a file holds it: positive, far below the signal, and located."""
    example = hall_hard.simulator.examples("test", range(2), 10.0)
    clean = example.channel.to(torch.complex64)
    y = torch.cat([clean[:1], torch.zeros_like(clean[:1])])
    observation = Observation(y, torch.full(y.shape[:2], NAN))
    estimator = build_estimator(noise="estimated", unrolled={"num_iterations": 2})
    with torch.no_grad():
        found = estimator(observation, hall_hard.deployment)
    assert (found.ue_position[0] - example.scene.ue_position[0]).norm() < 1e-3
    assert found.flags[1] != 0
    assert all(torch.isfinite(field).all() for field in found if field is not None)


def test_estimator_with_estimated_noise_never_reads_the_given_one(hall_hard):
    example = hall_hard.simulator.examples("test", range(2), 10.0)
    estimator = build_estimator(noise="estimated", unrolled={"num_iterations": 2})
    known = build_estimator(unrolled={"num_iterations": 2})
    with torch.no_grad():
        found = estimator(unknown(example.observation), hall_hard.deployment)
        wrong = estimator(
            example.observation._replace(noise_var=7.0 * example.observation.noise_var), hall_hard.deployment
        )
        exact = known(example.observation, hall_hard.deployment)
    assert torch.equal(found.ue_position, wrong.ue_position)
    std = exact.covariance.diagonal(dim1=-2, dim2=-1)[:, :3].sqrt()
    assert ((found.ue_position - exact.ue_position).abs() < 0.2 * std).all()
    with pytest.raises(DomainError, match="noise_var must be known"):
        known(unknown(example.observation), hall_hard.deployment)
    with pytest.raises(ConfigError, match="noise must be one of known, estimated, got 'guessed'"):
        build_estimator(noise="guessed")


def test_runner_estimates_once_for_all(hall_hard):
    """The estimators get the variance of the shared front end, a genie keeps the true one."""
    seen = {}

    class Spy:
        def __init__(self, name, needs_truth, front_end):
            self.name, self.needs_truth, self.front_end = name, needs_truth, front_end

        def __call__(self, observation, deployment, paths=None, truth=None):
            seen[self.name] = observation.noise_var, paths

    example = hall_hard.simulator.examples("test", range(2), 10.0)
    spies = [Spy("plain", False, "nomp"), Spy("no_paths", False, None), Spy("genie", True, None)]
    Runner({spy.name: spy for spy in spies}, {"nomp": PathDetector()}, hall_hard.deployment, "estimated")(example)
    assert torch.equal(seen["plain"][0], estimate_noise_variance(example.observation, hall_hard.deployment))
    assert seen["plain"][1] is not None
    assert torch.equal(seen["no_paths"][0], seen["plain"][0])
    assert torch.equal(seen["genie"][0], example.observation.noise_var)


def test_a_file_without_noise_variance(tiny, tmp_path):
    """Read as NaN, refused where the noise is to be known, located where it is to be estimated."""
    example = tiny.simulator.examples("test", range(2), 25.0)
    for name, noise_var in (("none.h5", None), ("nan.h5", torch.full((2, 3), NAN))):
        write_observations(
            tmp_path / name, tiny.deployment, Observation(example.observation.y, noise_var), scene=example.scene
        )
        assert read_observations(tmp_path / name).observation.noise_var.isnan().all()
    with pytest.raises(ConfigError, match=r"noise must be estimated \(noise=estimated\), because .*none\.h5 has no"):
        evaluate_file(tmp_path / "none.h5", {"classical": build_estimator()}, {}, tmp_path, progress=False)
    data = read_observations(tmp_path / "none.h5")
    settings = {"unrolled": {"num_iterations": 2}}
    runner = Runner({"classical": build_estimator(**settings)}, {"nomp": PathDetector()}, data.deployment, "estimated")
    with torch.no_grad():
        alone = build_estimator(noise="estimated", **settings)(data.observation, data.deployment)
    assert torch.equal(runner(data.truth)["classical"].estimate.ue_position, alone.ue_position)
    assert torch.isfinite(alone.ue_position).all()


def test_arrays_of_one_line_and_one_antenna(hall_hard):
    """No assumption on the array: a line and a single antenna at 30 dB, against the power of the noise drawn."""
    for array, tolerance in ((arrays.ula(8), 0.3), (arrays.ula(1), 1.0)):
        deployment = hall_hard.deployment._replace(antenna_local=0.0107 / 2 * array)
        simulator = type(hall_hard.simulator)(deployment, hall_hard.simulator.sampler, seed=1)
        example = simulator.examples("test", range(2), 30.0)
        found = estimate_noise_variance(unknown(example.observation), deployment)
        assert (found / example.observation.noise_var - 1.0).abs().median() < tolerance
