"""Echo estimates against a likelihood on a fine grid; positions at the bound; what cannot be located says so."""

import itertools
import math

import pytest
import torch

from sensing.arrays import elements, ula, upa
from sensing.bounds import target_bound
from sensing.containers import Flag
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.radar import Target, build_network, echo_parameters, echo_response
from sensing.targets import EchoEstimates, EchoEstimator, locate_target
from sensing.units import SPEED_OF_LIGHT

DOUBLE = torch.float64
CORNERS = [[0.0, 0.0], [72.0, 0.0], [72.0, 72.0], [0.0, 72.0]]
HIGH = [[0.0, 0.0, 6.0], [72.0, 0.0, 8.0], [72.0, 72.0, 5.0]]
PLACE = torch.tensor([30.0, 22.0, 0.0], dtype=DOUBLE)
VELOCITY = torch.tensor([3.0, -4.0, 0.0], dtype=DOUBLE)


def network(bs=CORNERS, array=None, links="monostatic", eirp_w=300.0, **changes):
    values = {
        "carrier_hz": 28e9, "num_subcarriers": 32, "spacing_hz": 1.5e6, "num_symbols": 6, "symbol_s": 1.5e-4,
        "sensing_fraction": 1.0, "noise_psd": 4e-20, "target": [36.0, 36.0],
    }  # fmt: skip
    return build_network(bs, ula(6) if array is None else array, eirp_w=eirp_w, links=links, **values | changes)


def draws(net, count, position=PLACE, velocity=VELOCITY, seed=0, noise=1.0):
    """True parameters [count link] and noisy samples."""
    generator = torch.Generator().manual_seed(seed)
    phase = 2 * math.pi * torch.rand(count, len(net.links), dtype=DOUBLE, generator=generator)
    echo = echo_parameters(Target(position.expand(count, 3), velocity.expand(count, 3), phase), net)
    y = echo_response(echo, net)
    unit = torch.randn(y.shape, dtype=torch.complex128, generator=generator)
    return echo, y + noise * net.noise_var.sqrt()[:, None, None, None] * unit


def test_likelihood_on_a_fine_grid():
    """Every sample summed in plain loops over a grid around the truth: no finer point is more likely, links unlike."""
    net = network(array=ula(3), num_subcarriers=5, num_symbols=3, eirp_w=2e3, links=[[0, 0], [1, 2]])
    truth, y = draws(net, 1)
    found = EchoEstimator(net, steps=50)(y)
    steps = torch.linspace(-1, 1, 21, dtype=DOUBLE)
    freq, time = net.deployment.pilot_freq, net.symbol_time
    for link in range(2):
        antenna = net.receivers.antenna_global[link] / net.deployment.wavelength
        sideways = net.receivers.bs_rotation[link] @ torch.tensor([0.0, 1.0, 0.0], dtype=DOUBLE)

        def likelihood(r, f, cosine, link=link, antenna=antenna, sideways=sideways):
            total = 0.0
            for a, place in enumerate(antenna @ sideways):
                for m, t in enumerate(time):
                    for k, offset in enumerate(freq):
                        phase = (
                            2 * math.pi * (float(place) * cosine + float(t) * f - float(offset) * r / SPEED_OF_LIGHT)
                        )
                        total = total + y[0, link, a, m, k] * torch.exp(-1j * phase)
            return total.abs().square()

        shift = torch.tensor([SPEED_OF_LIGHT / 7.5e6, 1 / 4.5e-4, 2 / 3], dtype=DOUBLE)  # resolution of each axis
        centre = [truth.range_m[0, link], truth.doppler_hz[0, link], truth.direction[0, link] @ sideways]
        estimate = [found.range_m[0, link], found.doppler_hz[0, link], found.direction[0, link] @ sideways]
        # one grid over the main lobe, then ever finer ones around the best point
        for fine in (0.5, 0.05, 5e-3, 5e-4):
            axes = [c + fine * s * steps for c, s in zip(centre, shift, strict=True)]
            value = likelihood(*torch.meshgrid(*axes, indexing="ij"))
            best = torch.unravel_index(value.argmax(), value.shape)
            centre = [axis[i] for axis, i in zip(axes, best, strict=True)]
        for got, wanted, s in zip(estimate, centre, shift, strict=True):
            assert abs(float(got - wanted)) < 2 * 5e-4 / 10 * float(s) + 1e-3 * float(s)
        assert float(likelihood(*estimate)) >= float(value.max()) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("array", "bs", "links", "unknown"),
    [
        (ula(6), CORNERS, "monostatic", "xy"),
        (ula(6), CORNERS, [[0, 1], [2, 0], [1, 2]], "xy"),
        (ula(6), HIGH, "monostatic", "xy"),  # a line does not resolve the elevation of the target below it
        (upa(3, 3), HIGH, "multistatic", "xyz"),
        (elements([[0, 0, 0], [0, 0.5, 0], [0.5, 0, 0], [0, 0, 0.5], [0.3, 0.4, 0.9]]), HIGH, "monostatic", "xyz"),
    ],
)
def test_efficient_at_high_snr(array, bs, links, unknown):
    net, count = network(bs, array, links, eirp_w=3e3), 200
    rise = torch.tensor([0, 0, 1.5 if bs is HIGH else 0.0], dtype=DOUBLE)
    _, y = draws(net, count, PLACE + rise)
    echoes = EchoEstimator(net)(y)
    assert bool(echoes.mask.all())
    found = locate_target(echoes, net, unknown, height_m=float(rise[2]))
    bound = target_bound(PLACE + rise, net, VELOCITY, unknown)
    assert (found.flags == 0).float().mean() > 0.98
    size = {"xy": 2, "xyz": 3}[unknown]
    error = torch.cat([(found.position - PLACE - rise)[:, :size], (found.velocity - VELOCITY)[:, :size]], -1)
    sigma = bound.covariance.diagonal().sqrt()
    assert (error.mean(0).abs() < 4.5 * sigma / math.sqrt(count)).all()  # unbiased
    score = torch.einsum("ni,ij,nj->n", error, torch.linalg.inv(bound.covariance), error) / (2 * size)
    assert abs(float(score.mean()) - 1) < 4.5 * math.sqrt(2 / (2 * size) / count)  # efficient: chi-square
    assert torch.allclose(found.peb_m.mean(), bound.peb_m, rtol=0.02)
    assert abs(float((found.cost / found.dof).mean()) - 1) < 4.5 * math.sqrt(2 / float(found.dof[0]) / count)


@pytest.mark.parametrize("array", [ula(6), upa(3, 3)])
def test_echoes_have_the_errors_they_claim(array):
    net, count = network(HIGH, array, eirp_w=3e3), 200
    truth, y = draws(net, count, PLACE + torch.tensor([0, 0, 1.0], dtype=DOUBLE))
    found = EchoEstimator(net)(y)
    information = found.information
    error = torch.stack([found.range_m - truth.range_m, found.doppler_hz - truth.doppler_hz], -1)
    score = error.square() * information.diagonal(dim1=-2, dim2=-1)[..., :2]
    assert ((score.mean(0) - 1).abs() < 4.5 * math.sqrt(2 / count)).all()
    turn = found.direction - truth.direction
    rank = 1 if array.shape[0] == 6 else 2
    score = torch.einsum("nli,nlij,nlj->nl", turn, information[..., 2:, 2:], turn) / rank
    assert ((score.mean(0) - 1).abs() < 4.5 * math.sqrt(2 / rank / count)).all()
    assert torch.allclose(found.gain.abs(), truth.gain.abs(), rtol=0.2)
    assert torch.allclose(found.direction.norm(dim=-1), torch.ones(count, 3, dtype=DOUBLE))


def test_information_at_the_truth_is_that_of_the_bound():
    """Noise-free samples: the covariance is the bound's, through the estimated gain alone."""
    net = network(HIGH, upa(2, 3), "multistatic", eirp_w=3e3)
    _, y = draws(net, 1, noise=0.0)
    found = locate_target(EchoEstimator(net, steps=60)(y), net, "xyz")
    assert torch.allclose(found.position[0], PLACE, atol=1e-4)
    bound = target_bound(PLACE, net, VELOCITY, "xyz")
    scale = bound.covariance.diagonal().rsqrt()
    assert torch.allclose(
        found.covariance[0] * scale * scale[:, None], bound.covariance * scale * scale[:, None], atol=1e-4
    )
    assert float(found.cost[0]) < 1e-4


def test_batch_mates_do_not_matter():
    net = network()
    _, y = draws(net, 5)
    whole, single = EchoEstimator(net)(y), EchoEstimator(net)(y[3])
    for mine, alone in zip(whole, single, strict=True):
        assert torch.allclose(mine[3], alone, rtol=1e-9)
    together, alone = locate_target(whole, net, "xy"), locate_target(single, net, "xy")
    assert torch.allclose(together.position[3], alone.position, atol=1e-7)
    assert together.flags[3] == alone.flags


def test_one_station_measures_one_component_of_the_velocity():
    net = network(active=[0], eirp_w=3e3)
    _, y = draws(net, 1)
    found = locate_target(EchoEstimator(net)(y), net, "xy")
    assert found.flags.tolist() == [0]
    assert torch.isinf(found.veb_m_s).all()
    assert torch.isfinite(found.peb_m).all()
    bound = target_bound(PLACE, net, VELOCITY, "xy")
    assert torch.isinf(bound.veb_m_s)
    assert torch.allclose(bound.peb_m, target_bound(PLACE, net, unknown="xy").peb_m)
    toward = PLACE[:2] / PLACE[:2].norm()
    radial = float(found.velocity[0, :2] @ toward - VELOCITY[:2] @ toward)
    assert abs(radial) < 0.5


def test_ranges_alone_leave_mirror_images():
    """Two stations with one antenna each: circles that meet twice in front of them; a third one decides."""
    stations = [[0.0, 0.0], [40.0, 0.0], [10.0, 60.0]]
    rotation = [[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]] * 3
    place = torch.tensor([30.0, 8.0, 0.0], dtype=DOUBLE)
    for active, ambiguous in (([0, 1], True), ([0, 1, 2], False)):
        net = network(stations, ula(1), eirp_w=1e5, active=active, target=None, bs_rotation=rotation)
        _, y = draws(net, 20, place)
        found = locate_target(EchoEstimator(net)(y), net, "xy")
        assert ((found.flags & Flag.SECOND_MODE) > 0).tolist() == [ambiguous] * 20
        if not ambiguous:
            assert (found.position - place).norm(dim=-1).max() < 0.5


def test_noise_alone_is_no_echo():
    net = network(eirp_w=0.0)
    _, y = draws(net, 150)
    echoes = EchoEstimator(net, false_alarm=0.02)(y)
    rate = float(echoes.mask.double().mean())
    assert rate < 0.02 + 4 * math.sqrt(0.02 * 0.98 / echoes.mask.numel())
    assert rate > 0.002  # the threshold is no wall
    assert not echoes.information[~echoes.mask].any()
    found = locate_target(echoes, net, "xy")
    none = ~echoes.mask.any(-1)
    assert bool(none.any())
    assert ((found.flags[none] & Flag.NO_PATHS) > 0).all()
    assert ((found.flags[none] & Flag.UNOBSERVABLE) > 0).all()
    assert torch.isinf(found.peb_m[none]).all()
    for field in found:
        assert not torch.isnan(field.double()).any()


def test_silence():
    net = network()
    y = torch.zeros(2, 4, 6, 6, 32, dtype=torch.complex128)
    found = locate_target(EchoEstimator(net)(y), net, "xyz")
    assert ((found.flags & Flag.NO_PATHS) > 0).all()
    for field in found:
        assert not torch.isnan(field.double()).any()


@pytest.mark.parametrize("distance", [0.0, 1e-3])
def test_target_on_a_station(distance):
    """Its echo has no finite power; one that claims range zero is located there and flagged."""
    net = network(eirp_w=3e3)
    at = net.deployment.bs_position[0] + torch.tensor([distance, 0, 0], dtype=DOUBLE)
    if distance == 0:
        echo = echo_parameters(Target(at, VELOCITY, torch.zeros(4, dtype=DOUBLE)), net)
        with pytest.raises(DomainError, match="y must be finite"):
            EchoEstimator(net)(echo_response(echo, net))
    _, y = draws(net, 1)
    echoes = EchoEstimator(net)(y)
    echo = echo_parameters(Target(at[None], VELOCITY[None], torch.zeros(1, 4, dtype=DOUBLE)), net)
    found = locate_target(echoes._replace(range_m=echo.range_m, direction=echo.direction), net, "xy")
    assert (found.position - at).norm() < 0.1
    assert bool((found.flags & Flag.UNOBSERVABLE) > 0)
    for field in found:
        assert not torch.isnan(field.double()).any()


def test_an_outlying_echo_is_a_poor_fit():
    net = network(eirp_w=3e3)
    _, y = draws(net, 1)
    echoes = EchoEstimator(net)(y)
    spoiled = echoes.range_m.clone()
    spoiled[0, 1] += 20.0
    found = locate_target(echoes._replace(range_m=spoiled), net, "xy")
    assert bool((found.flags & Flag.POOR_FIT) > 0)


@pytest.mark.parametrize(("sc", "sym", "ant"), itertools.product((1, 8), (1, 3), (1, 4)))
def test_axes_of_one_point(sc, sym, ant):
    """What a single subcarrier, symbol or antenna cannot tell has no information and no NaN."""
    net = network(array=ula(ant), num_subcarriers=sc, num_symbols=sym, eirp_w=1e5)
    _, y = draws(net, 1)
    found = EchoEstimator(net)(y)
    for field in found:
        assert bool(torch.isfinite(torch.view_as_real(field) if field.is_complex() else field.double()).all())
    known = found.information[0, 0].diagonal() > 0
    assert bool(known[0]) == (sc > 1)
    assert bool(known[1]) == (sym > 1)
    assert bool(known[2:].any()) == (ant > 1)
    position = locate_target(found, net, "xy").position
    assert bool(torch.isfinite(position).all())


def test_bad_input():
    net = network()
    _, y = draws(net, 1)
    estimator = EchoEstimator(net)
    for bad, error, message in (
        (y[:, :3], ShapeError, "y must be"),
        (y.real, DomainError, "complex"),
        (y * torch.nan, DomainError, "finite"),
    ):
        with pytest.raises(error, match=message):
            estimator(bad)
    for options in ({"false_alarm": 0.0}, {"oversampling": 0.5}, {"steps": -1}):
        with pytest.raises(ConfigError, match="echo estimator needs"):
            EchoEstimator(net, **options)
    with pytest.raises(DomainError, match="symbol_time must be uniformly spaced"):
        EchoEstimator(net._replace(symbol_time=net.symbol_time**3))
    echoes = estimator(y)
    with pytest.raises(ConfigError, match="unknown"):
        locate_target(echoes, net, "z")
    with pytest.raises(ShapeError, match=r"echoes\.range_m"):
        locate_target(EchoEstimates(*(field[:, :2] for field in echoes)), net)
    with pytest.raises(DomainError, match=r"echoes\.range_m"):
        locate_target(echoes._replace(range_m=echoes.range_m * torch.nan), net)
