"""Baselines against dense formulas that share no code with the structured operators."""

import math

import pytest
import torch

from sensing import arrays, ofdm
from sensing.baselines import GenieLmmse, IdealSync, NompLs, shift_ranges, synchronous
from sensing.containers import Estimate, Example, PathEstimates
from sensing.errors import DomainError
from sensing.geometry import bounce_ranges
from sensing.simulation import SceneSampler, Simulator, build_deployment
from sensing.units import SPEED_OF_LIGHT


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    deployment = build_deployment(
        [[0, 0, 6], [40, 0, 5], [40, 40, 6]],
        arrays.upa(3, 2),
        ofdm.pilot_frequencies(128, 120e3, 16),
        28e9,
        1e-8,
        target=[20, 20, 4],
    )
    sampler = SceneSampler([[3, 3, 1], [37, 37, 2]], [[1, 1, 0.5], [39, 39, 7.5]], num_shared=3, num_specific=1)
    return Simulator(deployment, sampler, seed=5)


@pytest.fixture(scope="module")
def example(simulator: Simulator) -> Example:
    return simulator.examples("test", range(4), snr_db=8.0)


def true_paths(example: Example, simulator: Simulator) -> PathEstimates:
    """The true paths in the form that a detector returns, ranges modulo the ambiguity."""
    scene, deployment = example.scene, simulator.deployment
    range_m, direction, _, _ = bounce_ranges(
        scene.scatterer_position, scene.ue_position, deployment.bs_position, SPEED_OF_LIGHT * scene.clock_offset
    )
    zero = torch.zeros(*range_m.shape, 4, 4, dtype=range_m.dtype)
    return PathEstimates(range_m, direction, scene.gain * scene.visible, zero, zero, scene.visible)


def dense_column(simulator: Simulator, q: int, point: torch.Tensor, ue: torch.Tensor, offset_s: float) -> torch.Tensor:
    """One column of Phi, entry by entry from equations 1.2 to 1.4, over (antenna, subcarrier)."""
    deployment = simulator.deployment
    bs = deployment.bs_position[q]
    delay = (float((point - bs).norm()) + float((point - ue).norm())) / SPEED_OF_LIGHT + offset_s
    k = (point - bs) / (point - bs).norm()
    column = []
    for element in deployment.antenna_local:
        lag = float((deployment.bs_rotation[q] @ element) @ k) / float(deployment.wavelength)
        for f in deployment.pilot_freq.tolist():
            angle = 2 * math.pi * (lag - f * delay)
            column.append(complex(math.cos(angle), math.sin(angle)))
    return torch.tensor(column, dtype=torch.complex128)


def dense_matrices(example: Example, simulator: Simulator):
    """(scene, station, Phi) with the visible scatterers as columns."""
    scene = example.scene
    for i in range(len(scene.ue_position)):
        for q in range(scene.visible.shape[1]):
            seen = scene.visible[i, q].nonzero()[:, 0].tolist()
            columns = [
                dense_column(
                    simulator, q, scene.scatterer_position[i, n], scene.ue_position[i], float(scene.clock_offset[i, q])
                )
                for n in seen
            ]
            yield i, q, torch.stack(columns, -1) if columns else torch.zeros(48, 0, dtype=torch.complex128)


def test_nomp_ls_equals_dense_least_squares(example: Example, simulator: Simulator) -> None:
    estimate = NompLs()(example.observation, simulator.deployment, true_paths(example, simulator))
    for i, q, phi in dense_matrices(example, simulator):
        y = example.observation.y[i, q].reshape(-1)
        wanted = phi @ torch.linalg.lstsq(phi, y[:, None]).solution[:, 0]
        torch.testing.assert_close(estimate.channel[i, q].reshape(-1), wanted, rtol=1e-7, atol=1e-8)
    assert [estimate.ue_position, estimate.clock_offset, estimate.scatterer_position] == [None] * 3


def test_nomp_ls_survives_coinciding_and_absent_paths(example: Example, simulator: Simulator) -> None:
    paths = true_paths(example, simulator)
    doubled = PathEstimates(*(torch.cat([field, field], 2) for field in paths))
    single = NompLs()(example.observation, simulator.deployment, paths).channel
    torch.testing.assert_close(
        NompLs()(example.observation, simulator.deployment, doubled).channel, single, rtol=1e-6, atol=1e-6
    )
    none = paths._replace(mask=torch.zeros_like(paths.mask))
    assert float(NompLs()(example.observation, simulator.deployment, none).channel.abs().max()) == 0.0


def test_nomp_ls_calls_its_detector_or_says_what_it_needs(example: Example, simulator: Simulator) -> None:
    paths = true_paths(example, simulator)
    own = NompLs(lambda observation, deployment: paths)(example.observation, simulator.deployment)
    given = NompLs()(example.observation, simulator.deployment, paths)
    assert torch.equal(own.channel, given.channel)
    with pytest.raises(DomainError, match="paths or a detector"):
        NompLs()(example.observation, simulator.deployment)


@pytest.mark.parametrize("variance", [0.3, 1.0])
def test_genie_equals_dense_data_space_lmmse(example: Example, simulator: Simulator, variance: float) -> None:
    estimate = GenieLmmse(variance)(example.observation, simulator.deployment, truth=example)
    for i, q, phi in dense_matrices(example, simulator):
        y = example.observation.y[i, q].reshape(-1)
        covariance = variance * phi @ phi.mH  # data space form: h = C (C + sigma^2 I)^-1 y
        noisy = covariance + example.observation.noise_var[i, q] * torch.eye(len(y), dtype=phi.dtype)
        wanted = covariance @ torch.linalg.solve(noisy, y)
        torch.testing.assert_close(estimate.channel[i, q].reshape(-1), wanted, rtol=1e-7, atol=1e-8)


def test_genie_says_what_the_truth_lacks(example: Example, simulator: Simulator) -> None:
    genie = GenieLmmse()
    with pytest.raises(DomainError, match="no scene"):
        genie(example.observation, simulator.deployment)
    without = example._replace(scene=example.scene._replace(gain=None))
    with pytest.raises(DomainError, match="without path gains"):
        genie(example.observation, simulator.deployment, truth=without)
    with pytest.raises(DomainError, match="gain_variance"):
        GenieLmmse(0.0)


@pytest.mark.parametrize("std", [1e-8, 1e-6])  # 1e-6 s is twice the ambiguity: ranges wrap
def test_ideal_sync_removes_the_offsets_exactly(simulator: Simulator, std: float) -> None:
    wide = Simulator(simulator.deployment._replace(clock_offset_std=torch.tensor(std)), simulator.sampler, 5)
    example = wide.examples("test", range(4), 20.0)
    still = example.scene._replace(clock_offset=torch.zeros_like(example.scene.clock_offset))
    seen: dict = {}

    def recorder(observation, deployment, paths=None, truth=None) -> Estimate:
        seen.update(observation=observation, deployment=deployment, paths=paths, truth=truth)
        offset = torch.full_like(still.clock_offset, 1e-12)
        return Estimate(observation.y, still.ue_position, offset)

    period = float(simulator.deployment.range_ambiguity)
    paths = true_paths(example, wide)
    paths = paths._replace(range_m=paths.range_m.remainder(period))
    estimate = IdealSync(recorder)(example.observation, wide.deployment, paths, example)

    # the pilots, path ranges and truth that the wrapped estimator sees are those of a synchronous system
    noise = example.observation.y - example.channel
    phase = torch.exp(2j * math.pi * simulator.deployment.pilot_freq * example.scene.clock_offset[..., None, None])
    for i, q, phi in dense_matrices(example._replace(scene=still), wide):
        gain = still.gain[i, q][still.visible[i, q]]
        wanted = (phi @ gain).reshape(noise.shape[-2:]) + (noise * phase)[i, q]
        torch.testing.assert_close(seen["observation"].y[i, q], wanted, rtol=1e-6, atol=1e-6)
    wanted_range = true_paths(example._replace(scene=still), wide).range_m.remainder(period)
    torch.testing.assert_close(seen["paths"].range_m, wanted_range, rtol=0, atol=1e-6)
    assert float(seen["truth"].scene.clock_offset.abs().max()) == 0.0
    assert float(seen["deployment"].clock_offset_std * wide.deployment.bandwidth) == pytest.approx(1e-4)

    # and everything is put back
    torch.testing.assert_close(estimate.channel, example.observation.y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(estimate.clock_offset, example.scene.clock_offset + 1e-12, rtol=0, atol=1e-18)


def test_ideal_sync_leaves_the_channel_of_a_path_fit_alone(example: Example, simulator: Simulator) -> None:
    paths = true_paths(example, simulator)
    plain = NompLs()(example.observation, simulator.deployment, paths)
    known = IdealSync(NompLs())(example.observation, simulator.deployment, paths, example)
    torch.testing.assert_close(known.channel, plain.channel, rtol=1e-9, atol=1e-9)
    with pytest.raises(DomainError, match="clock offsets"):
        IdealSync(NompLs())(example.observation, simulator.deployment, paths)


@pytest.mark.parametrize("count", [7, 8])  # an even number of centred pilots flips the sign of the gain at every wrap
def test_shifted_paths_have_the_shifted_response(example: Example, simulator: Simulator, count: int) -> None:
    pilots = ofdm.pilot_frequencies(16 * count, 120e3, 16)
    deployment = simulator.deployment._replace(pilot_freq=pilots)
    paths = true_paths(example, simulator)
    shift = torch.tensor([-400.0, 10.0, 700.0], dtype=torch.float64)
    moved = shift_ranges(paths, shift, deployment)
    assert bool(((moved.range_m >= 0) & (moved.range_m < deployment.range_ambiguity)).all())

    def response(gain, range_m):
        return gain[..., None] * torch.exp(-2j * math.pi * pilots * range_m[..., None] / SPEED_OF_LIGHT)

    wanted = response(paths.gain, paths.range_m + shift[:, None])
    torch.testing.assert_close(response(moved.gain, moved.range_m), wanted, rtol=0, atol=1e-9)


def test_synchronous_changes_the_prior_only(simulator: Simulator) -> None:
    changed = synchronous(simulator.deployment)
    assert changed._replace(clock_offset_std=simulator.deployment.clock_offset_std) is not None
    assert float(changed.clock_offset_std) < 1e-3 * float(simulator.deployment.clock_offset_std)
