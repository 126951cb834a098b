"""The whole estimator: neutral corrections, symmetries, bad input, and scenes that hold nothing."""

import pytest
import torch

from sensing.coarse.detection import PathDetector
from sensing.coarse.localization import CoarseLocalizer
from sensing.containers import Estimate, Flag, Observation
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.estimator import LocationEstimator, build_estimator, doubtful_covariance
from tests.conftest import build
from tests.reference.oracle import C

DEPTH = 3


class NeverCalled(PathDetector):
    """A detector that must not be reached."""

    def forward(self, *_, **__):
        raise AssertionError("work began before the input was checked")


@pytest.fixture(scope="module")
def example(hall):
    return hall.simulator.examples("test", range(3), snr_db=12.0)


@pytest.fixture(scope="module")
def paths(hall, example):
    with torch.no_grad():
        return PathDetector()(example.observation, hall.deployment)


@pytest.fixture(scope="module")
def estimate(hall, example, paths):
    with torch.no_grad():
        return build_estimator(unrolled={"num_iterations": DEPTH})(example.observation, hall.deployment, paths)


def finite(estimate):
    return all(torch.isfinite(field).all() for field in estimate if field is not None)


def rows(container, index):
    return type(container)(*(field if field is None else field[index] for field in container))


def test_untrained_unfolded_equals_classical_bit_for_bit(hall, example, paths, estimate):
    unfolded = build_estimator(unrolled={"num_iterations": DEPTH, "tied": False}, fusion={}, name="unfolded")
    with torch.no_grad():
        other = unfolded(example.observation, hall.deployment, paths)
    with_gradient = unfolded(example.observation, hall.deployment, paths)
    for name, a, b, c in zip(Estimate._fields, estimate, other, with_gradient, strict=True):
        if name in ("fallback", "near"):  # no learned step, no fall-back
            assert a is b is c is None
            continue
        assert torch.equal(a, b), name
        assert torch.equal(a, c), name


def test_finds_paths_itself(hall, example, estimate):
    with torch.no_grad():
        own = build_estimator(unrolled={"num_iterations": DEPTH})(example.observation, hall.deployment)
    for a, b in zip(estimate, own, strict=True):
        assert (a is b is None) or torch.equal(a, b)


def test_error_lies_within_the_covariance(hall, example, estimate):
    assert (estimate.flags == 0).all()
    error = torch.cat(
        [
            estimate.ue_position - example.scene.ue_position,
            C * (estimate.clock_offset - example.scene.clock_offset),
        ],
        -1,
    )
    std = estimate.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert (error.abs() < 5.0 * std).all()
    power = example.channel.abs().square().sum((-3, -2, -1))
    nmse = (estimate.channel - example.channel).abs().square().sum((-3, -2, -1)) / power
    noise = example.observation.noise_var[:, 0] * example.channel[0].numel() / power
    assert (nmse < 0.1 * noise).all()


def test_scale_of_observation_and_noise(hall, example, estimate):
    scale = 3e-5
    observation = Observation(scale * example.observation.y, scale**2 * example.observation.noise_var)
    with torch.no_grad():
        other = build_estimator(unrolled={"num_iterations": DEPTH})(observation, hall.deployment)
    torch.testing.assert_close(other.ue_position, estimate.ue_position, rtol=0, atol=1e-5)
    torch.testing.assert_close(C * other.clock_offset, C * estimate.clock_offset, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.covariance, estimate.covariance, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(other.channel / scale, estimate.channel, rtol=0, atol=1e-4)
    assert torch.equal(other.flags, estimate.flags)


def test_batch_equals_singles(hall, example, estimate):
    estimator = build_estimator(unrolled={"num_iterations": DEPTH})
    for b in range(3):
        with torch.no_grad():
            alone = estimator(rows(example.observation, [b]), hall.deployment)
        torch.testing.assert_close(alone.ue_position[0], estimate.ue_position[b], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.channel[0], estimate.channel[b], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.covariance[0], estimate.covariance[b], rtol=1e-4, atol=1e-9)
        assert alone.flags[0] == estimate.flags[b]


def test_noise_alone_is_flagged_and_finite(hall, example):
    """Beside good scenes, which it must not disturb."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(example.observation.y[:1].shape, generator=generator, dtype=torch.complex128)
    noise_var = example.observation.noise_var
    y = torch.cat([noise * noise_var[0, 0].sqrt(), example.observation.y[1:], torch.zeros_like(noise)])
    observation = Observation(y, torch.cat([noise_var, noise_var[:1]]))
    estimator = build_estimator(unrolled={"num_iterations": DEPTH})
    with torch.no_grad():
        found = estimator(observation, hall.deployment)
        good = estimator(rows(example.observation, [1, 2]), hall.deployment)
    assert finite(found)
    for b in (0, 3):
        assert found.flags[b] & Flag.TOO_FEW_SHARED
        assert found.flags[b] & Flag.UNOBSERVABLE
        assert found.covariance[b, :3, :3].trace().sqrt() > 10.0
        assert found.channel[b].abs().square().mean() < noise_var[0, 0]
    assert found.flags[3] & Flag.NO_PATHS
    torch.testing.assert_close(found.ue_position[1:3], good.ue_position, rtol=0, atol=1e-6)


@pytest.mark.parametrize("snr_db", [-20.0, -8.0, 60.0])
def test_extreme_noise_never_gives_nan(tiny, snr_db):
    example = tiny.simulator.examples("test", range(6), snr_db=snr_db)
    for settings in ({}, {"tied": False}):
        with torch.no_grad():
            found = build_estimator(unrolled={"num_iterations": 2} | settings)(example.observation, tiny.deployment)
        assert finite(found)


@pytest.mark.parametrize("std", [0.0, float("inf")])
def test_known_clocks_and_a_flat_prior(tiny, std):
    deployment = tiny.deployment._replace(clock_offset_std=torch.tensor(std, dtype=torch.float64))
    example = tiny.simulator.examples("test", range(4), snr_db=20.0)
    with torch.no_grad():
        found = build_estimator(unrolled={"num_iterations": 2})(example.observation, deployment)
    assert finite(found)
    if std == 0.0:
        assert (C * found.clock_offset).abs().max() < 1e-2


def test_bad_input_is_refused_before_any_work(tiny):
    estimator = LocationEstimator(NeverCalled())
    y, noise_var, *_ = tiny.simulator.examples("test", range(2), snr_db=10.0).observation
    broken = y.clone()
    broken[0, 0, 0, 0] = float("nan")
    cases = (
        (Observation(y[..., :-1], noise_var), ShapeError, "sc"),
        (Observation(y, noise_var[:, :-1]), ShapeError, "noise_var"),
        (Observation(broken, noise_var), DomainError, "y"),
        (Observation(y, 0.0 * noise_var), DomainError, "noise_var"),
        (Observation(y.real, noise_var), DomainError, "complex"),
        (Observation(y[0], noise_var[0]), ShapeError, "scene bs ant sc"),
        (Observation(y[:0], noise_var[:0]), ShapeError, "at least one scene"),
    )
    for observation, kind, message in cases:
        with pytest.raises(kind, match=message):
            estimator(observation, tiny.deployment)
    bad = tiny.deployment._replace(clock_offset_std=torch.tensor(-1.0))
    with pytest.raises(DomainError, match="clock_offset_std"):
        estimator(Observation(y, noise_var), bad)


@pytest.mark.parametrize("key", ["detector", "localizer", "unrolled", "fusion"])
def test_unknown_settings_name_their_key(key):
    with pytest.raises(ConfigError, match=rf"estimator\.{key} must hold arguments"):
        build_estimator(**{key: {"nonsense": 1}})


def test_a_refinement_that_strays_returns_to_the_coarse_solution(hall, example, paths):
    """An M-step that jumps by hundreds of metres without a guard."""
    wild = {"num_iterations": 2, "guard": False, "cap": 1e4, "step": 300.0}
    with torch.no_grad():
        found = build_estimator(unrolled=wild)(example.observation, hall.deployment, paths)
    lost = (found.flags & Flag.DIVERGED) > 0
    assert lost.any()
    error = (found.ue_position - example.scene.ue_position).norm(dim=-1)
    assert (error[lost] < 2.0).all()
    assert finite(found)


def test_a_single_pilot_is_refused(hall, example):
    lone = hall.deployment._replace(pilot_freq=hall.deployment.pilot_freq[:1])
    observation = Observation(example.observation.y[..., :1], example.observation.noise_var)
    with pytest.raises(ShapeError, match="pilot_freq must hold at least two pilots"):
        build_estimator()(observation, lone)


def test_covariance_owns_up_to_the_flags(hall, example, paths):
    """By hand: a poor fit scales it, a rival mode and a groundless solution widen it, a trusted scene keeps it."""
    coarse = CoarseLocalizer()(paths, hall.deployment)
    rival = torch.zeros(3, 3, dtype=torch.float64)
    rival[1] = torch.tensor([2.0, 0.0, -4.0])
    coarse = coarse._replace(rival=rival, cost_per_dof=torch.tensor([9.0, 5.0, 0.5], dtype=torch.float64))
    flags = torch.tensor([0, Flag.SECOND_MODE | Flag.POOR_FIT, Flag.TOO_FEW_SHARED])
    eye = torch.eye(7, dtype=torch.float64).expand(3, 7, 7)
    wide = doubtful_covariance(eye, flags, coarse, hall.deployment)
    assert torch.equal(wide[0], eye[0])
    step = torch.tensor([2.0, 0.0, -4.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.allclose(wide[1], 5.0 * eye[1] + 0.5 * torch.outer(step, step))
    box = torch.tensor([1600.0, 1600.0, 64.0] + 4 * [3264.0], dtype=torch.float64) / 12.0
    assert torch.allclose(wide[2], eye[2] + torch.diag(box))


def test_too_few_shared_scatterers_give_a_flag_and_a_large_covariance():
    setup = build(2, num_specific=3)
    example = setup.simulator.examples("test", range(4), snr_db=15.0)
    with torch.no_grad():
        estimate = LocationEstimator()(example.observation, setup.deployment)
    assert (estimate.flags & Flag.TOO_FEW_SHARED != 0).all()
    assert (estimate.covariance[:, 0, 0] > 100.0).all()
    assert finite(estimate)
