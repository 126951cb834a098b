"""Path detection against slow loops, closed forms and the Cramer-Rao bound."""

import math
import pickle

import pytest
import torch

from sensing import arrays, ofdm
from sensing.channel import channel_response
from sensing.coarse import PathDetector
from sensing.coarse.periodogram import correlate, residual_peak, search_grid
from sensing.containers import Deployment, Observation, PathEstimates, Paths
from sensing.errors import ConfigError
from sensing.geometry import tangent_basis
from sensing.operators.khatri_rao import extended_operator, path_information
from sensing.simulation import build_deployment
from sensing.units import SPEED_OF_LIGHT

UPA = arrays.upa(6, 6)
PILOTS = ofdm.pilot_frequencies(1024, 120e3, 32)


def deployment_with(array: torch.Tensor = UPA, pilots: torch.Tensor = PILOTS, stations: int = 2) -> Deployment:
    position = [[0.0, 0.0, 6.0], [40.0, 10.0, 5.0], [30.0, 40.0, 4.0]][:stations]
    return build_deployment(position, array, pilots, 28e9, 1e-8, target=[20.0, 20.0, 2.0], tilt=True)


def random_paths(
    deployment: Deployment, num: int, generator: torch.Generator, batch: int = 1, spread: float = 0.6
) -> Paths:
    """Paths in front of every station, unit modulus gains."""
    shape = (batch, len(deployment.bs_position), num)
    uniform = torch.rand(*shape, 4, dtype=torch.float64, generator=generator)
    side = spread * (2.0 * uniform[..., :2] - 1.0)
    local = torch.cat([(1.0 - side.square().sum(-1, keepdim=True)).sqrt(), side], -1)
    return Paths(
        delay=uniform[..., 2] * 60.0 / SPEED_OF_LIGHT,
        direction=local @ deployment.bs_rotation.mT,
        gain=torch.polar(torch.ones(shape, dtype=torch.float64), 2.0 * math.pi * uniform[..., 3]),
        mask=torch.ones(shape, dtype=torch.bool),
    )


def observed(paths: Paths, deployment: Deployment, noise_var: float, generator: torch.Generator) -> Observation:
    clean = channel_response(paths, deployment)
    noise = torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
    return Observation(
        clean + math.sqrt(noise_var) * noise, torch.full(clean.shape[:-2], noise_var, dtype=torch.float64)
    )


def whitened_errors(found: PathEstimates, paths: Paths, deployment: Deployment) -> torch.Tensor:
    """NEES, `e^T information e` over (range, direction), of the nearest estimate of every true path."""
    period = float(deployment.range_ambiguity)
    range_m = paths.delay * SPEED_OF_LIGHT
    gap = (found.range_m[..., None, :] - range_m[..., None] + period / 2) % period - period / 2
    error = torch.cat([gap[..., None], found.direction[..., None, :, :] - paths.direction[..., None, :]], -1)
    nees = torch.einsum("...lni,...nij,...lnj->...ln", error, found.information, error)
    return nees.masked_fill(~found.mask[..., None, :], math.inf).amin(-1)


def test_single_path_lies_within_the_bound():
    deployment, generator = deployment_with(), torch.Generator().manual_seed(1)
    paths = random_paths(deployment, 1, generator, batch=8)
    found = PathDetector()(observed(paths, deployment, 1.0, generator), deployment)
    assert found.mask.sum(-1).eq(1).all()
    gram = extended_operator(paths.delay * SPEED_OF_LIGHT, paths.direction, deployment).gram()
    crb = torch.linalg.inv(path_information(gram, paths.gain, torch.ones(8, 2, dtype=torch.float64))[..., 0, :, 0, :])
    gap = found.range_m - paths.delay * SPEED_OF_LIGHT
    tangent = (found.direction - paths.direction)[..., None, :] @ tangent_basis(paths.direction)
    error = torch.cat([gap[..., None], tangent[..., 0, :]], -1)[..., 0, :]
    assert (error.abs() < 4.0 * crb.diagonal(dim1=-2, dim2=-1).sqrt()).all()
    assert torch.allclose(found.covariance[..., 0, 0, 0], crb[..., 0, 0], rtol=0.2)


@pytest.mark.parametrize("array", ["upa", "explicit plane", "explicit volume"])
@pytest.mark.parametrize("pilots", ["uniform", "raster", "irregular"])
def test_paths_are_found_with_any_array_and_pilots(array, pilots):
    generator = torch.Generator().manual_seed(3)
    scatter = 2.0 * torch.rand(40, 3, dtype=torch.float64, generator=generator)
    shapes = {"upa": UPA, "explicit plane": scatter * torch.tensor([0.0, 1.0, 1.0]), "explicit volume": scatter}
    raster = 1.92e6 * torch.tensor([0, 1, 2, 5, 7, 11, 12, 16, 19, 20, 24, 29, 31], dtype=torch.float64)
    grids = {"uniform": PILOTS, "raster": raster, "irregular": raster + 1.5e6 * torch.rand(13, generator=generator)}
    deployment = deployment_with(shapes[array], grids[pilots])
    paths = random_paths(deployment, 2, generator, batch=3)
    found = PathDetector()(observed(paths, deployment, 0.05, generator), deployment)
    nees = whitened_errors(found, paths, deployment)
    close = (paths.direction[..., 0, :] - paths.direction[..., 1, :]).norm(dim=-1) < 0.4
    assert (nees[~close] < 25.0).all()
    assert found.mask.sum() <= 2 * 3 * 2 + 1


def test_linear_array_finds_range_and_cosine_and_reports_the_rest_as_unknown():
    deployment, generator = deployment_with(arrays.ula(16)), torch.Generator().manual_seed(4)
    paths = random_paths(deployment, 2, generator, batch=4)
    found = PathDetector()(observed(paths, deployment, 0.1, generator), deployment)
    axis = deployment.bs_rotation[:, None, :, 1]
    for truth in range(2):
        gap = (found.range_m - SPEED_OF_LIGHT * paths.delay[..., truth, None]).abs()
        cosine = ((found.direction - paths.direction[..., truth, None, :]) * axis).sum(-1).abs()
        assert (gap + 10.0 * cosine).masked_fill(~found.mask, math.inf).amin(-1).max() < 0.2
    largest = torch.linalg.eigvalsh(found.covariance[..., 1:, 1:])[..., -1][found.mask]
    assert (largest > 0.9).all()
    assert (largest < 1.1).all()


@pytest.mark.parametrize(
    ("array", "pilots"), [(arrays.upa(1, 1), PILOTS), (UPA, PILOTS[:1]), (arrays.upa(1, 1), PILOTS[:1])]
)
def test_degenerate_hardware_gives_finite_output(array, pilots):
    deployment, generator = deployment_with(array, pilots), torch.Generator().manual_seed(5)
    found = PathDetector()(observed(random_paths(deployment, 2, generator, 3), deployment, 1e-3, generator), deployment)
    assert found.mask.any()
    for name, value in found._asdict().items():
        assert torch.isfinite(torch.view_as_real(value) if value.is_complex() else value).all(), name


def test_two_paths_closer_than_the_resolution():
    deployment, generator = deployment_with(), torch.Generator().manual_seed(6)
    first = random_paths(deployment, 1, generator, batch=4)
    paths = Paths(*(torch.cat([field, field], -2 if field.ndim == 4 else -1) for field in first))
    paths = paths._replace(delay=paths.delay + torch.tensor([0.0, 1e-11], dtype=torch.float64))
    found = PathDetector()(observed(paths, deployment, 0.01, generator), deployment)
    assert found.mask.any(-1).all()
    assert found.mask.sum(-1).max() <= 2
    assert torch.isfinite(found.covariance).all()


def test_periodogram_peak_against_a_loop():
    deployment, generator = deployment_with(arrays.upa(3, 2), PILOTS[:6], 1), torch.Generator().manual_seed(7)
    local = deployment._replace(bs_rotation=torch.eye(3, dtype=torch.float64)[None])
    grid = search_grid(local, 2.0, 1e-2, torch.complex128)
    y = torch.randn(2, 6, 6, dtype=torch.complex128, generator=generator)
    steering = torch.randn(2, 6, 2, dtype=torch.complex128, generator=generator)
    delay = torch.randn(2, 6, 2, dtype=torch.complex128, generator=generator)
    gain = torch.randn(2, 2, dtype=torch.complex128, generator=generator)
    range_m, direction = residual_peak(correlate(y, grid), steering, delay, gain, grid)
    for n in range(2):
        residual = y[n] - sum(gain[n, i] * torch.outer(steering[n, :, i], delay[n, :, i]) for i in range(2))
        best, where = -1.0, None
        for k in grid.direction:
            for r in grid.range_m:
                total = 0.0
                for m, p in enumerate(deployment.antenna_local / deployment.wavelength):
                    for s, f in enumerate(deployment.pilot_freq):
                        phase = 2.0 * math.pi * (float(p @ k) - float(f * r) / SPEED_OF_LIGHT)
                        total = total + complex(residual[m, s]) * complex(math.cos(phase), -math.sin(phase))
                if abs(total) > best:
                    best, where = abs(total), (r, k)
        assert torch.equal(range_m[n], where[0])
        assert torch.equal(direction[n], where[1])


@pytest.mark.parametrize("array", [UPA, arrays.ula(16)])
def test_false_alarm_rate(array):
    deployment, generator = deployment_with(array, stations=1), torch.Generator().manual_seed(8)
    y = torch.randn(600, 1, len(array), len(PILOTS), dtype=torch.complex128, generator=generator)
    found = PathDetector(false_alarm=0.1)(Observation(y, torch.ones(600, 1)), deployment)
    alarms = int(found.mask.any(-1).sum())
    assert 30 <= alarms <= 95  # 60 expected; the binomial deviation is 7


def test_nothing_detected():
    deployment = deployment_with()
    y = 1e-3 * torch.ones(3, 2, 36, 32, dtype=torch.complex128)
    found = PathDetector()(Observation(y, torch.ones(3, 2)), deployment)
    assert found.mask.shape == (3, 2, 1)
    assert not found.mask.any()
    assert not found.covariance.any()
    assert not found.gain.any()
    assert torch.allclose(found.direction, deployment.boresight[:, None].expand(3, 2, 1, 3))


def test_scale_equivariance_and_batch_invariance():
    deployment, generator = deployment_with(), torch.Generator().manual_seed(9)
    paths = random_paths(deployment, 4, generator, batch=6)
    observation = observed(paths, deployment, 0.5, generator)
    detector = pickle.loads(pickle.dumps(PathDetector()))
    found = detector(observation, deployment)
    for scale in (1e-7, 3e8):
        scaled = detector(Observation(observation.y * scale, observation.noise_var * scale**2), deployment)
        assert torch.equal(scaled.mask, found.mask)
        assert torch.allclose(scaled.range_m, found.range_m, atol=1e-8)
        assert torch.allclose(scaled.direction, found.direction, atol=1e-9)
        assert torch.allclose(scaled.gain, found.gain * scale, atol=1e-8 * scale)
        assert torch.allclose(scaled.covariance, found.covariance, rtol=1e-6)
    for i in range(6):
        single = detector(Observation(observation.y[i], observation.noise_var[i]), deployment)
        width = single.mask.shape[-1]
        assert torch.equal(single.mask, found.mask[i, :, :width])
        assert not found.mask[i, :, width:].any()
        assert torch.allclose(single.range_m, found.range_m[i, :, :width], atol=1e-8)
        assert torch.allclose(single.gain, found.gain[i, :, :width], atol=1e-8)
        assert torch.allclose(single.covariance, found.covariance[i, :, :width], rtol=1e-6)


def test_covariances_are_consistent():
    deployment, generator = deployment_with(), torch.Generator().manual_seed(10)
    paths = random_paths(deployment, 3, generator, batch=40)
    found = PathDetector()(observed(paths, deployment, 1.0, generator), deployment)
    nees = whitened_errors(found, paths, deployment)
    matched = nees[nees < 40.0]
    assert len(matched) > 0.95 * nees.numel()
    mean, count = float(matched.mean()), len(matched)
    assert abs(mean - 3.0) < 4.0 * math.sqrt(6.0 / count)  # chi-square with 3 degrees of freedom
    product = found.covariance @ found.information @ found.covariance
    assert torch.allclose(product, found.covariance, rtol=1e-6, atol=1e-12)
    along = (found.covariance[..., 1:, 1:] @ found.direction[..., None]).abs()
    assert along.max() < 1e-12


def test_bad_options():
    for options in ({"false_alarm": 0.0}, {"max_paths": 0}, {"oversampling": 0.5}, {"search_dtype": "float32"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            PathDetector(**options)
