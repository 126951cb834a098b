"""Smoothed MUSIC against slow loops, a literal noise subspace, known orders and the Cramer-Rao bound."""

import cmath
import inspect
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sensing import arrays, ofdm
from sensing.channel import channel_response
from sensing.coarse import MusicDetector
from sensing.coarse.order import effective_snapshots, model_order
from sensing.coarse.smoothing import complex_vectors, real_covariance, smoothed_covariance, smoothing_loss, uniform_grid
from sensing.coarse.spectrum import AngleSpectrum, grid_power, leading_eigenpairs, music_spectrum, signal_subspace
from sensing.containers import Deployment, Observation, PathEstimates, Paths
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.operators.khatri_rao import extended_operator, path_information
from sensing.simulation import build_deployment
from sensing.units import SPEED_OF_LIGHT

PILOTS = ofdm.pilot_frequencies(1024, 120e3, 32)
SIDES = [[0.1, 0.2], [-0.5, 0.3], [0.4, -0.6], [-0.2, -0.3]]
RANGES = [12.0, 20.5, 31.0, 47.0]


def deployment_with(array: torch.Tensor | None = None, pilots: torch.Tensor = PILOTS, stations: int = 2) -> Deployment:
    position = [[0.0, 0.0, 6.0], [40.0, 10.0, 5.0]][:stations]
    array = arrays.upa(8, 8) if array is None else array
    return build_deployment(position, array, pilots, 28e9, 1e-8, target=[20.0, 20.0, 2.0], tilt=True)


def paths_of(deployment: Deployment, num: int, batch: int = 1) -> Paths:
    """The first of four well separated paths, turned a little from scene to scene; the same at all stations."""
    shape = (batch, len(deployment.bs_position), num)
    turn = torch.arange(batch, dtype=torch.float64)[:, None, None]
    side = torch.tensor(SIDES, dtype=torch.float64)[:num] + 0.01 * turn[..., None]
    local = torch.cat([(1.0 - side.square().sum(-1, keepdim=True)).sqrt(), side], -1).expand(*shape, 3)
    range_m = torch.tensor(RANGES, dtype=torch.float64)[:num] + 0.3 * turn
    phase = torch.arange(num, dtype=torch.float64) + turn
    return Paths(
        delay=(range_m / SPEED_OF_LIGHT).expand(shape),
        direction=local @ deployment.bs_rotation.mT,
        gain=torch.polar(torch.ones_like(phase), phase).expand(shape),
        mask=torch.ones(shape, dtype=torch.bool),
    )


def observed(paths: Paths, deployment: Deployment, noise_var: float, seed: int = 0, noise: bool = True) -> Observation:
    clean = channel_response(paths, deployment)
    unit = torch.randn(clean.shape, dtype=clean.dtype, generator=torch.Generator().manual_seed(seed))
    y = clean + noise * math.sqrt(noise_var) * unit
    return Observation(y, torch.full(clean.shape[:-2], noise_var, dtype=torch.float64))


def errors(found: PathEstimates, paths: Paths) -> tuple[torch.Tensor, torch.Tensor]:
    """Range [m] and direction errors of the estimate nearest in direction to every true path."""
    gap = (found.direction[..., None, :, :] - paths.direction[..., None, :]).norm(dim=-1)
    gap, which = gap.masked_fill(~found.mask[..., None, :], math.inf).min(-1)
    return found.range_m.gather(-1, which) - paths.delay * SPEED_OF_LIGHT, gap


@pytest.mark.parametrize("window", [(3, 2, 2), (4, 1, 3), (1, 2, 1), (5, 3, 4)])
def test_smoothed_covariance_against_a_loop(window):
    cube = torch.randn(2, 6, 4, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    size = math.prod(window)
    for scene in range(2):
        forward, backward, count = torch.zeros(size, size) + 0j, torch.zeros(size, size) + 0j, 0
        for t in range(6 - window[0] + 1):
            for y in range(4 - window[1] + 1):
                for z in range(5 - window[2] + 1):
                    x = cube[scene, t : t + window[0], y : y + window[1], z : z + window[2]].reshape(size)
                    back = x.conj().flip(0)
                    forward = forward + torch.outer(x, x.conj())
                    backward = backward + torch.outer(back, back.conj())
                    count += 1
        assert torch.allclose(smoothed_covariance(cube, window)[scene], forward / count, rtol=0, atol=1e-13)
        real = real_covariance(smoothed_covariance(cube, window))[scene]
        value, vector = torch.linalg.eigh(real)
        vector = complex_vectors(vector)
        both = (forward + backward) / (2 * count)
        assert torch.allclose(both @ vector, vector * value, rtol=0, atol=1e-12)
        assert torch.allclose(vector.mH @ vector, torch.eye(size) + 0j * both, rtol=0, atol=1e-12)


def test_spectrum_against_the_noise_subspace():
    generator = torch.Generator().manual_seed(2)
    antenna = torch.rand(12, 3, dtype=torch.float64, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64, generator=generator), dim=-1)
    steering = arrays.response(direction, antenna, torch.tensor(0.7))
    data = torch.randn(3, 12, 30, dtype=torch.complex128, generator=generator)
    data = data + 4.0 * steering[:, :2] @ torch.randn(3, 2, 30, dtype=torch.complex128, generator=generator)
    covariance = data @ data.mH / 30
    spectrum = music_spectrum(covariance, steering, 2)
    for scene in range(3):
        noise = torch.linalg.eigh(covariance[scene])[1][:, :10]
        for point in range(50):
            literal = 12.0 / float((noise.mH @ steering[:, point]).abs().square().sum())
            assert float(spectrum[scene, point]) == pytest.approx(literal, rel=1e-9)


@pytest.mark.parametrize("kind", ["plane", "plane in another order", "line", "volume"])
@pytest.mark.parametrize("averaged", [False, True])
def test_angle_spectrum_against_the_noise_subspace(kind, averaged):
    generator = torch.Generator().manual_seed(8)
    antenna = {"line": arrays.ula(7), "volume": torch.rand(12, 3, dtype=torch.float64, generator=generator)}.get(
        kind, arrays.upa(4, 3, spacing=0.45)
    )
    if kind == "plane in another order":
        antenna = antenna[torch.randperm(12, generator=generator)]
    azimuth = torch.linspace(-1.4, 1.4, 9, dtype=torch.float64)
    elevation = torch.linspace(-0.9, 0.8, 6, dtype=torch.float64)
    num = len(antenna)
    data = torch.randn(2, num, 40, dtype=torch.complex128, generator=generator)
    data[..., :2] *= 20.0
    covariance = data @ data.mH / 40
    if averaged and kind == "volume":
        with pytest.raises(DomainError, match="antenna_local must"):
            AngleSpectrum(antenna, azimuth, elevation, forward_backward=True)
        return
    spectrum = AngleSpectrum(antenna, azimuth, elevation, forward_backward=averaged)(covariance, 2)
    assert spectrum.shape == (2, 9, 6)
    if averaged:  # every element changes places with the one on the other side of the centre
        other = torch.cdist(antenna, -antenna).argmin(-1)
        covariance = 0.5 * (covariance + covariance[:, other[:, None], other].conj())
    for scene in range(2):
        noise = torch.linalg.eigh(covariance[scene])[1][:, : num - 2]
        for a, az in enumerate(azimuth.tolist()):
            for e, el in enumerate(elevation.tolist()):
                k = torch.tensor([math.cos(el) * math.cos(az), math.cos(el) * math.sin(az), math.sin(el)])
                response = torch.exp(2j * math.pi * (antenna @ k.double())) / math.sqrt(num)
                literal = 1.0 / float((noise.mH @ response).abs().square().sum())
                assert float(spectrum[scene, a, e]) == pytest.approx(literal, rel=1e-6)


def test_power_on_the_grid_against_steering_vectors():
    generator = torch.Generator().manual_seed(3)
    subspace = torch.linalg.qr(torch.randn(2, 24, 3, dtype=torch.complex128, generator=generator)).Q
    power = grid_power(subspace.unflatten(1, (4, 3, 2)), (8, 5, 4))
    assert power.shape == (2, 8, 5, 4)
    for t, y, z in [(0, 0, 0), (3, 1, 2), (7, 4, 3)]:
        response = torch.zeros(4, 3, 2, dtype=torch.complex128)
        for a in range(4):
            for b in range(3):
                for c in range(2):
                    response[a, b, c] = cmath.exp(2j * math.pi * (t * a / 8 + y * b / 5 + z * c / 4)) / math.sqrt(24)
        literal = (subspace.mH @ response.flatten()).abs().square().sum(-1)
        assert torch.allclose(power[:, t, y, z], literal, rtol=1e-12)


def test_leading_eigenpairs_are_those_of_the_full_decomposition():
    """With a gap, with none (then the iteration hands over to the full decomposition), and in a batch of both."""
    generator = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(3, 80, 80, dtype=torch.complex128, generator=generator)).Q
    value = torch.linspace(0.0, 1.0, 80, dtype=torch.float64).flip(0).repeat(3, 1)
    value[0, :6] += 100.0
    value[2, :6] *= 1e3
    matrix = (basis * value[:, None]) @ basis.mH
    found, vector = leading_eigenpairs(matrix, 6)
    assert torch.allclose(found, value[:, :6], rtol=1e-9)
    assert torch.allclose(matrix @ vector, vector * found[:, None], atol=1e-5)
    projector = vector @ vector.mH
    assert torch.allclose(projector, basis[..., :6] @ basis[..., :6].mH, atol=1e-7)
    alone = leading_eigenpairs(matrix[2], 6)
    assert torch.allclose(alone[0], found[2], rtol=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_mdl_finds_the_rank_of_a_low_rank_signal_in_white_noise(rank):
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(20, 10, 400, dtype=torch.complex128, generator=generator)
    mixing = torch.linalg.qr(torch.randn(10, max(rank, 1), dtype=torch.complex128, generator=generator)).Q[:, :rank]
    data = data + 1.5 * mixing @ torch.randn(20, rank, 400, dtype=torch.complex128, generator=generator)
    value = torch.linalg.eigvalsh(data @ data.mH / 400).flip(-1)
    found = {
        kind: model_order(value[:, :8], value.sum(-1), value.log().sum(-1), 10, 400, kind) for kind in ("mdl", "aic")
    }
    assert (found["mdl"] == rank).all()
    assert (found["aic"] >= rank).all()


def test_criterion_is_the_formula_of_wax_and_kailath():
    value = torch.tensor([9.0, 4.0, 1.3, 1.1, 0.9, 0.7], dtype=torch.float64)
    for kind, weight in (("mdl", 0.5 * math.log(30)), ("aic", 1.0)):
        scores = []
        for k in range(6):
            tail = value[k:].tolist()
            ratio = math.prod(tail) ** (1 / len(tail)) / (sum(tail) / len(tail))
            scores.append(-30 * len(tail) * math.log(ratio) + weight * k * (12 - k))
        assert int(model_order(value, value.sum(), value.log().sum(), 6, 30, kind)) == scores.index(min(scores))


@pytest.mark.parametrize("window", [(5, 3, 2), (4, 4, 1), (9, 2, 4)])
def test_effective_snapshots_give_the_spread_of_the_noise_eigenvalues(window):
    noise = torch.randn(300, 12, 6, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(6))
    covariance = real_covariance(smoothed_covariance(noise, window))
    size = math.prod(window)
    spread = float(covariance.square().sum((-2, -1)).mean()) / size
    assert spread == pytest.approx(1.0 + size / effective_snapshots((12, 6, 5), window), rel=0.02)


@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("order", ["mdl", "number"])
def test_noise_free_paths_are_recovered_to_rounding(num, order):
    deployment = deployment_with()
    paths = paths_of(deployment, num, batch=3)
    detector = MusicDetector(window=(8, 4, 4), order=num if order == "number" else order, steps=20)
    found = detector(observed(paths, deployment, 1e-8, noise=False), deployment)
    assert found.mask.sum(-1).eq(num).all()
    gap, angle = errors(found, paths)
    assert gap.abs().max() < 1e-6
    assert angle.max() < 1e-7
    operator_gain = found.gain.abs()[found.mask]
    assert (operator_gain - 1.0).abs().max() < 1e-6


@pytest.mark.parametrize("window", [(8, 3, 3), (5, 4, 2)])
def test_error_of_a_single_path_is_what_smoothing_costs_over_the_bound(window):
    deployment = deployment_with(arrays.upa(6, 6), PILOTS[8:24])
    paths = paths_of(deployment, 1, batch=1)
    paths = Paths(*(field.expand(200, *field.shape[1:]) for field in paths))
    found = MusicDetector(window=window, order=1)(observed(paths, deployment, 1.0), deployment)
    local = deployment.bs_rotation.mT[:, None]
    cosine = [(local @ each.direction[..., None]).squeeze(-1)[..., 0, 1:] for each in (found, paths)]
    gap = (found.range_m - paths.delay * SPEED_OF_LIGHT) / deployment.range_ambiguity
    error = 2.0 * math.pi * torch.cat([gap, 0.5 * (cosine[0] - cosine[1])], -1)  # of the three phase steps
    shape = (16, 6, 6)
    bound = torch.tensor([6.0 / (576 * (n**2 - 1)) for n in shape], dtype=torch.float64)  # unit gain and noise
    ratio, loss = error.square().mean((0, 1)) / bound, smoothing_loss(shape, window)
    assert torch.allclose(ratio, torch.tensor(loss, dtype=torch.float64), rtol=0.25)
    gram = extended_operator(paths.delay * SPEED_OF_LIGHT, paths.direction, deployment).gram()
    crb = torch.linalg.inv(path_information(gram, paths.gain, torch.ones(200, 2, dtype=torch.float64))[..., 0, :, 0, :])
    assert torch.allclose(found.covariance[..., 0, 0, 0], loss[0] * crb[..., 0, 0], rtol=0.3)
    away = torch.cat(
        [found.range_m[..., None] - paths.delay[..., None] * SPEED_OF_LIGHT, found.direction - paths.direction], -1
    )
    nees = torch.einsum("...i,...ij,...j->...", away, found.information, away).mean()
    assert float(nees) == pytest.approx(3.0, rel=0.2)


def test_elements_in_any_order_and_a_batch_of_any_shape():
    deployment = deployment_with()
    observation = observed(paths_of(deployment, 3, batch=4), deployment, 0.1)
    found = MusicDetector(window=(8, 4, 4))(observation, deployment)
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(7))
    other = deployment._replace(antenna_local=deployment.antenna_local[shuffle])
    mixed = Observation(observation.y[..., shuffle, :].reshape(2, 2, 2, 64, 32), observation.noise_var.reshape(2, 2, 2))
    again = MusicDetector(window=(8, 4, 4))(mixed, other)
    for name in ("range_m", "direction", "gain", "mask"):
        one, two = getattr(found, name), getattr(again, name)
        assert torch.allclose(one, two.reshape(one.shape), rtol=1e-9, atol=1e-9), name


def test_linear_array_finds_range_and_cosine_and_reports_the_rest_as_unknown():
    deployment = deployment_with(arrays.ula(16))
    paths = paths_of(deployment, 3, batch=3)
    found = MusicDetector(window=(12, 8, 1))(observed(paths, deployment, 0.01), deployment)
    axis = deployment.bs_rotation[:, None, :, 1]
    for truth in range(3):
        gap = (found.range_m - SPEED_OF_LIGHT * paths.delay[..., truth, None]).abs()
        cosine = ((found.direction - paths.direction[..., truth, None, :]) * axis).sum(-1).abs()
        assert (gap + 10.0 * cosine).masked_fill(~found.mask, math.inf).amin(-1).max() < 0.1
    largest = torch.linalg.eigvalsh(found.covariance[..., 1:, 1:])[..., -1][found.mask]
    assert (largest > 0.9).all()


def test_scale_of_the_data_does_not_matter():
    deployment = deployment_with()
    one, two = (
        MusicDetector(window=(8, 4, 4))(Observation(s * o.y, s**2 * o.noise_var), deployment)
        for s in (1.0, 1e-6)
        for o in [observed(paths_of(deployment, 3), deployment, 0.1)]
    )
    assert torch.allclose(one.range_m, two.range_m, rtol=1e-9)
    assert torch.allclose(one.gain, 1e6 * two.gain, rtol=1e-6)


def test_noise_alone_has_no_paths():
    deployment = deployment_with()
    nothing = paths_of(deployment, 1, batch=50)
    observation = observed(nothing._replace(gain=0.0 * nothing.gain), deployment, 1.0)
    found = MusicDetector(window=(8, 4, 4))(observation, deployment)
    assert not found.mask.any()
    assert found.range_m.shape == (50, 2, 1)


@pytest.mark.parametrize("noise_var", [1e-28, 1.0, 1e12])
def test_degenerate_snapshots_give_finite_output(noise_var):
    """Nothing at all, one entry, one path without noise, two that coincide, more paths than the window has elements."""
    deployment = deployment_with(arrays.upa(4, 4), PILOTS[:12])
    one, two, many = paths_of(deployment, 1), paths_of(deployment, 2), paths_of(deployment, 4)
    clean = [channel_response(each, deployment) for each in (one, two._replace(delay=0 * two.delay), many)]
    single = torch.zeros_like(clean[0])
    single[..., 3, 5] = 1.0
    y = torch.cat([0.0 * single, single, *clean])
    observation = Observation(y, torch.full(y.shape[:-2], noise_var, dtype=torch.float64))
    for detector in (MusicDetector(window=(6, 2, 2)), MusicDetector(window=(3, 2, 2), order=11)):
        found = detector(observation, deployment)
        for name, value in found._asdict().items():
            assert torch.isfinite(torch.view_as_real(value) if value.is_complex() else value).all(), name
    assert not MusicDetector(window=(6, 2, 2))(observation, deployment).mask[0].any()


@pytest.mark.parametrize(
    ("array", "pilots", "message"),
    [
        (arrays.upa(8, 8)[:-1], PILOTS, r"antenna_local must fill its 8 x 8 grid .*, got 63 elements"),
        (arrays.upa(4, 4) ** 3, PILOTS, r"antenna_local must fill its 28 x 28 grid .*, got 16"),
        (arrays.upa(4, 4)[:, [1, 0, 2]], PILOTS, r"antenna_local must be a uniform grid in the local y-z plane"),
        (arrays.upa(4, 4), PILOTS + 1e-3 * PILOTS.abs(), r"pilot_freq must be uniformly spaced"),
        (arrays.upa(4, 4), PILOTS[[0, 1, 2, 4]], r"pilot_freq must be uniformly spaced"),
    ],
)
def test_arrays_and_pilots_off_a_grid_are_refused(array, pilots, message):
    with pytest.raises(DomainError, match=message):
        uniform_grid(deployment_with(array, pilots))


def test_the_grid_of_an_array_is_its_constructors():
    grid = uniform_grid(deployment_with(arrays.upa(5, 3, spacing=0.4)))
    assert grid.shape == (32, 5, 3)
    assert torch.equal(grid.antenna, torch.arange(15))
    assert torch.allclose(grid.step[1:], torch.tensor([0.4, 0.4], dtype=torch.float64))
    assert 1.0 / float(grid.step[0]) == pytest.approx(float(deployment_with().range_ambiguity))


def test_bad_shapes_and_options_are_refused():
    deployment = deployment_with()
    observation = observed(paths_of(deployment, 1), deployment, 1.0)
    with pytest.raises(ShapeError, match=r"window must be \(delay, y, z\) between 1 and the grid's \(32, 8, 8\)"):
        MusicDetector(window=(33, 4, 4))(observation, deployment)
    with pytest.raises(ShapeError, match=r"window must be at least 2 where the grid"):
        MusicDetector(window=(8, 1, 4))(observation, deployment)
    with pytest.raises(ShapeError, match="y must be"):
        MusicDetector()(observation._replace(y=observation.y[..., :-1]), deployment)
    with pytest.raises(DomainError, match="order must be between 1 and ant - 1 = 3, got 4"):
        signal_subspace(torch.eye(4), 4)
    with pytest.raises(ShapeError, match="steering must be"):
        music_spectrum(torch.eye(4), torch.ones(3, 7), 1)
    for options in ({"window": (8, 4)}, {"order": "best"}, {"order": 0}, {"max_paths": 0}, {"merge": math.nan}):
        with pytest.raises(ConfigError):
            MusicDetector(**options)


def test_yaml_and_python_have_the_same_defaults():
    written = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[1] / "conf/detector/music.yaml"))
    parameters = inspect.signature(MusicDetector).parameters.values()
    assert written.pop("_target_") == "sensing.coarse.MusicDetector"
    assert written == {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
