"""Array calibration: neutral at zero, M-step against a loop, Anderson against a solve, self-calibration as a whole."""

import lightning
import pytest
import torch

from benchmarks.hall import hall
from sensing.containers import Observation
from sensing.data.scenes import SceneDataModule
from sensing.errors import ConfigError, NumericalError, ShapeError
from sensing.estimator import build_estimator
from sensing.inference.calibration import Anderson, ArrayCalibration, GainStatistics
from sensing.learning import CalibrationLearner, self_calibrated
from sensing.units import SPEED_OF_LIGHT

SETTINGS = {"calibration": {"num_stations": 4, "num_antennas": 64}, "name": "calibrated"}


def filled(stations=2, antennas=3, seed=0):
    calibration = ArrayCalibration(stations, antennas)
    rng = torch.Generator().manual_seed(seed)
    calibration.assign(0.2 * torch.randn(2 * stations * antennas, generator=rng, dtype=torch.float64))
    return calibration


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


def test_untrained_changes_no_bit():
    y = noise(2, 4, 64, 5)
    observation = Observation(y, torch.ones(2, 4, dtype=torch.float64))
    calibration = ArrayCalibration(4, 64)
    assert torch.equal(calibration(observation).y, y)
    assert torch.equal(calibration.observed(y), y)


def test_an_untrained_calibration_leaves_the_classical_estimate(tiny):
    example = tiny.simulator.examples("val", range(2), 10.0)
    shape = {"num_stations": len(tiny.deployment.bs_position), "num_antennas": len(tiny.deployment.antenna_local)}
    with torch.no_grad():
        plain = build_estimator()(example.observation, tiny.deployment)
        calibrated = build_estimator(calibration=shape)(example.observation, tiny.deployment)
    assert torch.equal(plain.ue_position, calibrated.ue_position)
    assert torch.equal(plain.channel, calibrated.channel)


def test_common_gain_and_phase_are_left_to_the_paths():
    gain = filled().gain()
    torch.testing.assert_close(gain.abs().log().mean(-1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(gain.angle().mean(-1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15)


def test_m_step_against_a_least_squares_solve_of_every_element():
    calibration = filled()
    truth, channel = filled(seed=5).gain(), noise(4, 2, 3, 6, seed=1)
    variance = torch.tensor([0.01, 0.04, 0.09, 0.02], dtype=torch.float64)[:, None].expand(4, 2)
    y = channel * truth[:, :, None] + variance.sqrt()[..., None, None] * noise(4, 2, 3, 6, seed=2)
    calibrated = calibration(Observation(y, variance))
    statistics = GainStatistics(calibration)
    for scene in range(4):  # in two steps and more: sums add up
        statistics.add(Observation(calibrated.y[scene : scene + 1], variance[scene : scene + 1]), channel[[scene]])
    log_gain, phase = statistics.updated().reshape(2, 2, 3)
    for b in range(2):
        by_hand = []
        for m in range(3):
            root = variance[:, b].sqrt()[:, None]
            a, right = (channel[:, b, m] / root).flatten(), (calibrated.y[:, b, m] / root).flatten()
            by_hand.append(torch.linalg.lstsq(a[:, None], right[:, None]).solution[0, 0])
        wanted = calibration.gain()[b] * torch.stack(by_hand)
        torch.testing.assert_close(log_gain[b], wanted.abs().log() - wanted.abs().log().mean())
        torch.testing.assert_close(phase[b], wanted.angle() - wanted.angle().mean())


def test_anderson_solves_a_linear_iteration_in_as_many_steps_as_dimensions():
    rng = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64)).Q
    slow = turn @ torch.diag(torch.tensor([0.99, 0.9, 0.5, 0.1], dtype=torch.float64)) @ turn.T
    shift = torch.ones(4, dtype=torch.float64)
    fixed = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - slow, shift)
    mixing, point = Anderson(5), torch.zeros(4, dtype=torch.float64)
    for _ in range(6):
        point = mixing.step(point, slow @ point + shift)
    torch.testing.assert_close(point, fixed, rtol=1e-6, atol=0)


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match="belongs to"):
        ArrayCalibration(2, 3)(Observation(noise(1, 2, 4, 5), torch.ones(1, 2)))
    with pytest.raises(ConfigError, match="num_stations"):
        ArrayCalibration(0, 3)
    with pytest.raises(NumericalError, match="finite"):
        ArrayCalibration(1, 2).assign(torch.full((4,), torch.nan, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"estimator\.calibration"):
        CalibrationLearner({}, {}, {})
    with pytest.raises(ConfigError, match="optimizer=em"):
        CalibrationLearner(SETTINGS, {}, {"lr": 0.1})
    with pytest.raises(ConfigError, match="early_scenes must be >= 1"):
        CalibrationLearner(SETTINGS, {}, {"early_scenes": 0})
    simulator = hall()
    with pytest.raises(ConfigError, match="num_labels <= num_scenes, got 3 of 2"):
        self_calibrated(simulator, {}, num_scenes=2, num_labels=3)
    example = simulator.examples("val", [0], 10.0)
    estimator = build_estimator(**SETTINGS)
    _, paths = estimator.detect(example.observation, simulator.deployment)
    with pytest.raises(ConfigError, match="own paths"):
        estimator(example.observation, simulator.deployment, paths)


def test_a_known_user_is_held_and_an_unknown_one_is_not(tiny):
    data = SceneDataModule(tiny.simulator, val_snr_db=15.0, val_amplitude=3.0, detected_every=0)
    task = data.task(torch.utils.data.default_collate([data.datasets["val"][i] for i in range(3)]), "val")
    estimator, example, start = build_estimator(), task.example, task.start
    observation = example.observation
    user = example.scene.ue_position.clone()
    user[1:] = torch.nan
    with torch.no_grad():
        plain = estimator.unrolled(observation, tiny.deployment, start)
        held = estimator.unrolled(observation._replace(known_user=user), tiny.deployment, start)
    found, free = held.final.geometry, plain.final.geometry
    assert (found.ue_position[0] - user[0]).norm() < 1e-3 < (free.ue_position[0] - user[0]).norm()
    torch.testing.assert_close(found.ue_position[1:], free.ue_position[1:], rtol=1e-9, atol=1e-9)
    truth = SPEED_OF_LIGHT * example.scene.clock_offset[0]  # what the label tells of the rest
    assert (found.offset_m[0] - truth).norm() < (free.offset_m[0] - truth).norm()


class Impaired(SceneDataModule):
    """Scenes seen by arrays with element errors."""

    gain: torch.Tensor

    def task(self, draw, split):
        task = super().task(draw, split)
        observation, channel = task.example.observation, task.example.channel
        seen = channel * self.gain[:, :, None]
        y = observation.y - channel + seen
        return task._replace(example=task.example._replace(observation=observation._replace(y=y), channel=seen))


def test_self_calibration_finds_the_element_errors(tmp_path):
    """Phases of 5 degrees rms and gains of 0.5 dB rms from 12 unlabelled scenes."""
    simulator = hall()
    rng = torch.Generator().manual_seed(7)
    errors = torch.randn(2, 4, 64, generator=rng, dtype=torch.float64)
    truth = ArrayCalibration(4, 64)
    truth.assign(torch.cat([0.5 * errors[0].flatten() / 8.686, torch.deg2rad(5.0 * errors[1]).flatten()]))
    data = Impaired(
        simulator, scenes_per_epoch=12, num_train_scenes=12, snr_db=[15, 15], val_scenes=16, detected_every=0
    )
    data.gain = truth.gain().detach()
    learner = CalibrationLearner(SETTINGS, {}, {"model_error": [0.03], "detect_every": 4})
    trainer = lightning.Trainer(
        max_epochs=5, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, limit_val_batches=0, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(learner, data)
    found = learner.calibration.gain().detach()
    phase = (found / data.gain).angle()
    left = torch.rad2deg((phase - phase.mean(-1, keepdim=True)).square().mean().sqrt())
    assert left < 1.0, "5 degrees before"
    ratio = (found / data.gain).abs().log()
    assert 8.686 * (ratio - ratio.mean(-1, keepdim=True)).square().mean().sqrt() < 0.05, "0.5 dB before"
