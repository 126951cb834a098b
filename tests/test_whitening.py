"""Coloured noise in detector, joint detection and iterations, against dense matrices over all entries of a station."""

import math

import pytest
import torch

from sensing.coarse.detection import PathDetector
from sensing.coarse.joint_detection import unexplained_energy
from sensing.coarse.refinement import Refiner, Snapshots
from sensing.containers import Geometry, Observation
from sensing.geometry import tangent_basis
from sensing.inference.lmmse import lmmse
from sensing.inference.starts import perturbed_start
from sensing.inference.state import column_operator, normal_equations, prepare, products
from sensing.inference.unrolled import Unrolled
from sensing.operators.khatri_rao import extended_operator, path_operator, whitened

PILOTS = 10


def random_whitener(generator: torch.Generator, *batch: int) -> torch.Tensor:
    """W of random, well-conditioned covariances, not Hermitian."""
    root = torch.randn(*batch, PILOTS, PILOTS, dtype=torch.complex128, generator=generator) / math.sqrt(PILOTS)
    covariance = root @ root.mH + 0.3 * torch.eye(PILOTS)
    return torch.linalg.inv(torch.linalg.cholesky(covariance))


def dense_columns(operator) -> torch.Tensor:
    """[* bs ant*sc path]."""
    return (operator.steering[..., :, None, :] * operator.delay[..., None, :, :]).flatten(-3, -2)


def dense_whitener(whitener: torch.Tensor, ant: int) -> torch.Tensor:
    """Over (antenna, pilot)."""
    return torch.kron(torch.eye(ant, dtype=whitener.dtype), whitener.contiguous())


@pytest.fixture
def example(tiny):
    return tiny.simulator.examples("val", range(2), 10.0)


@pytest.fixture
def whitener(example):
    return random_whitener(torch.Generator().manual_seed(5), *example.observation.noise_var.shape)


def start_of(example, deployment) -> Geometry:
    from sensing.bounds import uplink_bound
    from sensing.simulation.sampler import scene_generator

    bound = uplink_bound(example.scene, example.observation.noise_var, deployment)
    rngs = [scene_generator(3, "val", i, 2) for i in range(len(example.observation.y))]
    return perturbed_start(example, deployment, bound.covariance, 1.0, 0, rngs)


def test_whitened_maps_are_dense_products(tiny, example, whitener):
    geometry = start_of(example, tiny.deployment)
    plain = column_operator(geometry, tiny.deployment)
    basis = tangent_basis(geometry.free_direction)
    extended = extended_operator(geometry.free_range_m, geometry.free_direction, tiny.deployment, None, basis)
    y = example.observation.y
    for scene, bs in ((0, 1), (1, 2)):
        matrix = dense_whitener(whitener[scene, bs], 12)
        wanted = matrix @ dense_columns(plain)[scene, bs]
        torch.testing.assert_close(dense_columns(plain.whitened(whitener))[scene, bs], wanted)
        white = whitened(y, whitener)
        torch.testing.assert_close(white[scene, bs].flatten(), matrix @ y[scene, bs].flatten())
        # derivative columns: range of the first path
        column = (extended.steering[..., 0][..., :, None, :] * extended.delay[..., 1][..., None, :, :]).flatten(-3, -2)
        moved = extended.whitened(whitener)
        found = (moved.steering[..., 0][..., :, None, :] * moved.delay[..., 1][..., None, :, :]).flatten(-3, -2)
        torch.testing.assert_close(found[scene, bs], matrix @ column[scene, bs])
    assert plain.whitened(None) is plain
    assert extended.whitened(None) is extended
    assert whitened(y, None) is y


def test_refiner_fits_by_generalised_least_squares(tiny):
    generator = torch.Generator().manual_seed(1)
    frame = torch.eye(3, dtype=torch.float64)
    local = tiny.deployment._replace(bs_position=0.0 * frame[:1], bs_rotation=frame[None])
    refiner = Refiner(local, 100.0, None)
    whitener = random_whitener(generator, 3, 1)
    y = torch.randn(3, 1, 12, PILOTS, dtype=torch.complex128, generator=generator)
    range_m = 20.0 + 30.0 * torch.rand(3, 1, 2, dtype=torch.float64, generator=generator)
    direction = torch.nn.functional.normalize(
        torch.randn(3, 1, 2, 3, dtype=torch.float64, generator=generator).abs(), dim=-1
    )

    def explained(range_m: torch.Tensor, snapshot: int) -> torch.Tensor:
        matrix = dense_whitener(whitener[snapshot, 0], 12)
        columns = matrix @ dense_columns(path_operator(range_m, direction, local))[snapshot, 0]
        data = matrix @ y[snapshot, 0].flatten()
        gain = torch.linalg.lstsq(columns, data[:, None]).solution[:, 0]
        return (columns @ gain).abs().square().sum()

    fit = refiner.fit(Snapshots(whitened(y, whitener), whitener), range_m, direction)
    step = 1e-5
    for snapshot in range(3):
        torch.testing.assert_close(fit.explained[snapshot, 0], explained(range_m, snapshot))
        for path in range(2):
            shift = torch.zeros_like(range_m)
            shift[..., path] = step
            slope = (explained(range_m + shift, snapshot) - explained(range_m - shift, snapshot)) / (2 * step)
            torch.testing.assert_close(fit.gradient[snapshot, 0, path], slope, rtol=1e-5, atol=1e-5)


def test_a_whitener_that_does_nothing_changes_nothing(tiny, example):
    observation = example.observation
    eye = torch.eye(PILOTS, dtype=torch.complex128).expand(*observation.noise_var.shape, PILOTS, PILOTS)
    same = observation._replace(whitener=eye)
    plain, other = PathDetector()(observation, tiny.deployment), PathDetector()(same, tiny.deployment)
    assert torch.equal(plain.mask, other.mask)
    torch.testing.assert_close(plain.range_m, other.range_m)
    torch.testing.assert_close(plain.covariance, other.covariance)
    geometry = start_of(example, tiny.deployment)
    refined = [Unrolled(num_iterations=2)(each, tiny.deployment, geometry).final for each in (observation, same)]
    torch.testing.assert_close(refined[0].geometry.ue_position, refined[1].geometry.ue_position)
    torch.testing.assert_close(refined[0].objective, refined[1].objective)


def test_detector_finds_no_ghosts_in_coloured_noise(tiny):
    """Noise alone, 200 snapshots: false alarms at the rate that was asked for, and far more without the whitener."""
    generator = torch.Generator().manual_seed(2)
    whitener = random_whitener(generator)
    # a strong colour: one direction of the pilots carries a hundred times the power of the others
    values, vectors = torch.linalg.eigh(torch.linalg.inv(whitener.mH @ whitener))
    values[-1] *= 100.0
    whitener = values.rsqrt()[:, None] * vectors.mH
    noise = torch.randn(67, 3, 12, PILOTS, dtype=torch.complex128, generator=generator)
    y = noise @ torch.linalg.inv(whitener).mT
    told = torch.ones(67, 3, dtype=torch.float64)
    known = Observation(y, told, whitener.expand(67, 3, PILOTS, PILOTS))
    rate = PathDetector(false_alarm=0.05)(known, tiny.deployment).mask.any(-1).double().mean()
    assert float(rate) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 201)
    white = Observation(y, y.abs().square().mean((-2, -1)))
    wrong = PathDetector(false_alarm=0.05)(white, tiny.deployment).mask.any(-1).double().mean()
    assert float(wrong) > 0.5


def test_evidence_is_that_of_the_dense_gaussian(tiny, example, whitener):
    """Differences of `ln CN(y; 0, Phi V Phi^H + C)` between two sets of prior deviations."""
    observation = example.observation._replace(whitener=whitener)
    geometry = start_of(example, tiny.deployment)
    problem, _ = prepare(observation, tiny.deployment, geometry, torch.complex128)
    gram, matched, _, mask = products(geometry, problem, torch.zeros((), dtype=torch.float64))
    noise = problem.noise_var
    deviation = [mask.double() * value for value in (0.3, 1.1)]
    found = [lmmse(gram[..., :, 0, :, 0], matched[..., 0], noise, each).log_evidence for each in deviation]
    columns, scene, bs = dense_columns(column_operator(geometry, tiny.deployment)), 1, 0
    inverse = torch.linalg.inv(dense_whitener(whitener[scene, bs], 12))
    covariance = noise[scene, bs] * inverse @ inverse.mH
    y, wanted = observation.y[scene, bs].flatten(), []
    for each in deviation:
        phi = columns[scene, bs] * each[scene, bs]
        total = phi @ phi.mH + covariance
        wanted.append(-torch.logdet(total).real - (y.conj() @ torch.linalg.solve(total, y)).real)
    torch.testing.assert_close((found[1] - found[0])[scene, bs], wanted[1] - wanted[0])


def test_gradient_of_the_iterations_is_that_of_the_coloured_evidence(tiny, example, whitener):
    """Fisher's identity: by finite differences of the evidence over the user's position, prior deviations at rest."""
    observation = example.observation._replace(whitener=whitener)
    geometry = start_of(example, tiny.deployment)
    problem, _ = prepare(observation, tiny.deployment, geometry, torch.complex128)
    zero = torch.zeros((), dtype=torch.float64)

    def posterior(geometry: Geometry):
        gram, matched, basis, mask = products(geometry, problem, zero)
        found = lmmse(gram[..., :, 0, :, 0], matched[..., 0], problem.noise_var, 0.8 * mask.double())
        return found, gram, matched, basis

    found, gram, matched, basis = posterior(geometry)
    system = normal_equations(geometry, found, gram, matched, basis, problem.noise_var, problem, 0.0)
    step = 1e-4
    for axis in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[axis]
        high, low = (
            posterior(geometry._replace(ue_position=geometry.ue_position + sign * shift))[0].log_evidence.sum(-1)
            for sign in (1.0, -1.0)
        )
        torch.testing.assert_close(system.gradient[:, axis], (high - low) / (2 * step), rtol=1e-5, atol=1e-4)


def test_unexplained_energy_of_a_projector(tiny, example, whitener):
    observation = example.observation._replace(whitener=whitener)
    geometry = start_of(example, tiny.deployment)
    place = torch.tensor([[[20.0, 18.0, 3.0], [12.0, 22.0, 2.0]]], dtype=torch.float64).expand(2, 2, 3)
    energy, tried = unexplained_energy(observation, geometry, place, tiny.deployment), 0
    nodes = geometry.node_mask.shape[-1]
    for scene in range(2):
        for bs in range(3):
            matrix = dense_whitener(whitener[scene, bs], 12)
            both = geometry._replace(
                node_position=torch.cat([geometry.node_position, place], 1),
                node_mask=torch.cat([geometry.node_mask, torch.ones(2, 2, dtype=torch.bool)], 1),
            )
            columns = matrix @ dense_columns(column_operator(both, tiny.deployment))[scene, bs]
            keep = torch.cat([geometry.member[scene, bs], geometry.free_mask[scene, bs]])
            known = torch.cat([columns[:, :nodes], columns[:, nodes + 2 :]], 1)[:, keep]
            projector = torch.eye(len(columns), dtype=known.dtype) - known @ torch.linalg.pinv(known)
            data = matrix @ observation.y[scene, bs].flatten()
            for number in range(2):
                left = projector @ columns[:, nodes + number]
                if energy[scene, bs, number] == 0 or left.norm() ** 2 < 0.25 * columns[:, nodes + number].norm() ** 2:
                    continue
                wanted = (left.conj() @ data).abs() ** 2 / left.norm() ** 2 / observation.noise_var[scene, bs]
                torch.testing.assert_close(energy[scene, bs, number], wanted, rtol=1e-4, atol=0.0)
                tried += 1
    assert tried >= 3
