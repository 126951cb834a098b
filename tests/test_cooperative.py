"""Radar bounds against automatic differentiation of the echoes, closed forms, paper 2's numbers and known limits."""

import math

import pytest
import torch

from sensing.arrays import elements, ula, upa
from sensing.bounds import Reason, point_bound, target_bound, target_information
from sensing.bounds.automatic import fisher_information, reparametrise
from sensing.bounds.fisher import eliminate
from sensing.bounds.monostatic import Waveform, fisher_matrix, parameter_bounds, position_bounds
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.radar import EchoParameters, Target, build_network, echo_parameters, echo_response, echo_snr
from sensing.units import SPEED_OF_LIGHT

DOUBLE = torch.float64
LENGTH = 72.0
CORNERS = [[0.0, 0.0], [LENGTH, 0.0], [LENGTH, LENGTH], [0.0, LENGTH]]
DIAGONAL, THREE, FOUR = [0, 2], [0, 1, 2], [0, 1, 2, 3]


def paper(active, antennas=50, subcarriers=3168, rho=0.3, symbols=1120):
    """Network of EQUATIONS 2(a)."""
    return build_network(
        CORNERS, ula(antennas), 28e9, subcarriers, 120e3, symbols, 10e-3 / 1120, 20.0, rho, 4e-20,
        target=[LENGTH / 2, LENGTH / 2], active=active,
    )  # fmt: skip


def small(links="monostatic", array=None, **changes):
    """Three stations in space with few samples, so that the slow way is quick."""
    values = {
        "bs_position": [[0.0, 0.0, 3.0], [40.0, 5.0, 8.0], [10.0, 35.0, 5.0]],
        "array": upa(3, 2) if array is None else array,
        "carrier_hz": 28e9,
        "num_subcarriers": 6,
        "spacing_hz": 2e6,
        "num_symbols": 4,
        "symbol_s": 1e-4,
        "eirp_w": [20.0, 5.0, 11.0],
        "sensing_fraction": [0.3, 0.5, 1.0],
        "noise_psd": [4e-20, 1e-20, 2e-20],
        "target": [20.0, 20.0, 1.0],
        "links": links,
    } | changes
    return build_network(**values)


POSITION = torch.tensor([17.0, 12.0, 1.5], dtype=DOUBLE)
VELOCITY = torch.tensor([3.0, -7.0, 0.4], dtype=DOUBLE)


def joint_information(network, position, velocity, size, doppler_free):
    """Effective information of (p, v) from one joint Fisher matrix over them and every link's gain (and Doppler)."""
    links = len(network.links)

    def mean(theta):
        place = torch.cat([theta[:size], position[size:]])
        speed = torch.cat([theta[size : 2 * size], velocity[size:]])
        level, phase, extra = theta[2 * size :].reshape(3, links)
        echo = echo_parameters(Target(place, speed, torch.zeros(links, dtype=DOUBLE)), network)
        gain = torch.polar(level.exp(), phase)  # not tied to the place: the amplitude is a nuisance
        return echo_response(echo._replace(gain=gain, doppler_hz=echo.doppler_hz + extra), network)

    level = echo_parameters(Target(position, velocity, torch.zeros(links, dtype=DOUBLE)), network).gain.abs().log()
    rest = [level, torch.linspace(-2, 2, links, dtype=DOUBLE), torch.zeros(links, dtype=DOUBLE)]
    theta = torch.cat([position[:size], velocity[:size], *rest])
    full = fisher_information(mean, theta, network.noise_var[:, None, None, None])
    if doppler_free:  # velocity unknown to nobody: the Doppler shift of each link is a nuisance
        kept = [*range(size), *range(2 * size, len(theta))]
        return eliminate(full[kept][:, kept], size).effective
    kept = list(range(len(theta) - links))
    return eliminate(full[kept][:, kept], 2 * size).effective


@pytest.mark.parametrize("links", ["monostatic", "multistatic", [[0, 1], [2, 0]]])
@pytest.mark.parametrize("unknown", ["xy", "xyz"])
@pytest.mark.parametrize("moving", [False, True])
def test_information_against_the_joint_automatic_one(links, unknown, moving):
    network, size = small(links), {"xy": 2, "xyz": 3}[unknown]
    expected = joint_information(network, POSITION, VELOCITY, size, doppler_free=not moving)
    got = target_information(POSITION, network, VELOCITY if moving else None, unknown)
    scale = expected.diagonal().sqrt()
    assert torch.allclose(got / scale[:, None] / scale, expected / scale[:, None] / scale, rtol=0, atol=1e-8)


def test_links_add_up_and_batches_do_not_mix():
    points = torch.rand(3, 5, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * 30
    whole = target_information(points, small())
    parts = sum(target_information(points, small(active=[station])) for station in range(3))
    assert torch.allclose(whole, parts, rtol=1e-13)
    assert torch.equal(whole[1, 2], target_information(points[1, 2], small()))


WAVEFORM = Waveform(num_symbols=5, num_subcarriers=7, num_antennas=4, symbol_s=9e-6, spacing_hz=120e3)
SNR, NOISE, THETA = torch.tensor(3.7, dtype=DOUBLE), torch.tensor(0.2, dtype=DOUBLE), torch.tensor(0.6, dtype=DOUBLE)


def brute_fisher():
    """Sum over samples of the paper's log-likelihood slopes, one sample after the other (equations 8 to 11)."""
    m, k, n, symbol_s, spacing_hz = WAVEFORM
    alpha = math.sqrt(float(SNR * NOISE))
    total = torch.zeros(5, 5, dtype=DOUBLE)
    for i in range(m):
        for j in range(k):
            for a in range(n):
                place = a - (n - 1) / 2
                phase = 0.4 + 2 * math.pi * (i * symbol_s * 55.0 - j * spacing_hz * 2e-7)
                value = alpha * torch.exp(1j * torch.tensor(phase + math.pi * place * math.sin(THETA), dtype=DOUBLE))
                slopes = [1 / alpha, 1j, 2j * math.pi * i * symbol_s, -2j * math.pi * j * spacing_hz]
                slopes.append(1j * math.pi * place * math.cos(THETA))
                slope = torch.stack([s * value for s in slopes])
                total += (2 / NOISE) * (slope[:, None].conj() * slope).real
    return total


def relative(got, expected):
    scale = expected.diagonal().sqrt()
    return float(((got - expected) / scale[:, None] / scale).abs().max())


def test_fisher_matrix_against_the_sum_over_samples():
    assert relative(fisher_matrix(SNR, NOISE, THETA, WAVEFORM), brute_fisher()) < 1e-12


def test_parameter_bounds_against_the_inverse():
    information = fisher_matrix(SNR, NOISE, THETA, WAVEFORM)
    scale = information.diagonal().sqrt()
    inverse = torch.linalg.inv(information / scale[:, None] / scale) / scale[:, None] / scale
    assert torch.allclose(torch.stack(parameter_bounds(SNR, NOISE, THETA, WAVEFORM)), inverse.diagonal(), rtol=1e-10)


def test_position_bounds_against_the_jacobian():
    range_m, cos, sin = 30.0, float(THETA.cos()), float(THETA.sin())
    effective = eliminate(fisher_matrix(SNR, NOISE, THETA, WAVEFORM)[[3, 4, 0, 1, 2]][:, [3, 4, 0, 1, 2]], 2).effective
    jacobian = torch.tensor(
        [[2 / SPEED_OF_LIGHT * cos, 2 / SPEED_OF_LIGHT * sin], [-sin / range_m, cos / range_m]], dtype=DOUBLE
    )
    covariance = torch.linalg.inv(reparametrise(effective, jacobian))
    got = position_bounds(SNR, torch.tensor(range_m), THETA, WAVEFORM)
    expected = [covariance[0, 0], covariance[1, 1], covariance[0, 1], covariance.trace().sqrt()]
    assert torch.allclose(torch.stack(got), torch.stack(expected), rtol=1e-10)


def test_one_station_is_the_papers_closed_form():
    network = paper([0])
    angle, range_m = torch.linspace(-1.2, 1.2, 9, dtype=DOUBLE), torch.linspace(5, 90, 9, dtype=DOUBLE)
    turned = angle + math.pi / 4  # the station's axis
    point = torch.stack([range_m * turned.cos(), range_m * turned.sin(), torch.zeros(9, dtype=DOUBLE)], -1)
    waveform = Waveform(1120, 3168, 50, 10e-3 / 1120, 120e3)
    expected = position_bounds(echo_snr(point, network)[:, 0], range_m, angle, waveform).peb_m
    assert torch.allclose(point_bound(point, network).peb_m, expected, rtol=1e-10)
    gamma = 0.3 * 20 / 3168 * SPEED_OF_LIGHT**2 / ((4 * math.pi) ** 3 * 28e9**2 * range_m**4 * 4e-20 * 120e3)
    assert torch.allclose(echo_snr(point, network)[:, 0], gamma, rtol=1e-12)  # equation 13


@pytest.mark.parametrize(
    ("active", "peb_mm"), [([0], 1.044), (DIAGONAL, 0.738), ([0, 1], 0.275), (THREE, 0.2365), (FOUR, 0.1948)]
)
def test_centre_of_the_papers_square(active, peb_mm):
    centre = torch.tensor([LENGTH / 2, LENGTH / 2, 0], dtype=DOUBLE)
    assert float(point_bound(centre, paper(active)).peb_m) * 1e3 == pytest.approx(peb_mm, rel=5e-3)


def test_largest_bound_of_the_square():
    count = 289
    axis = (torch.arange(count, dtype=DOUBLE) + 0.5) * LENGTH / count
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    area = torch.stack([x, y, torch.zeros_like(x)], -1)
    worst, place = {}, {}
    for active in (DIAGONAL, THREE, FOUR):
        peb = point_bound(area, paper(active)).peb_m
        worst[len(active)] = float(peb.max())
        place[len(active)] = divmod(int(peb.argmax()), count)
    assert 1 - worst[3] / worst[2] == pytest.approx(0.283, abs=0.01)
    assert 1 - worst[4] / worst[2] == pytest.approx(0.628, abs=0.01)
    middle = count // 2
    assert place[2] == (middle, middle)
    assert place[3] == (count - 1, 0)
    assert place[4] in {(0, middle), (middle, 0), (count - 1, middle), (middle, count - 1)}


@pytest.mark.parametrize("unknown", ["xy", "xyz"])
def test_reasons_of_an_infinite_bound(unknown):
    height = 0.0 if unknown == "xy" else 5.0
    at = torch.tensor([[0.0, 0.0, 3.0], [15.0, 9.0, height]], dtype=DOUBLE)
    assert point_bound(at, small(eirp_w=0.0), unknown).reason.tolist() == [Reason.AT_STATION, Reason.NO_POWER]
    one = point_bound(at, small(array=ula(1), active=[0]), unknown)
    assert one.reason.tolist() == [Reason.AT_STATION, Reason.SINGULAR]
    assert bool(torch.isinf(one.peb_m).all())
    line = small(array=ula(1), bs_position=[[0.0, 0, 3], [20.0, 0, 3], [50.0, 0, 3]], target=[20.0, 30.0, 1.0])
    on = torch.tensor([[30.0, 0.0, 3.0]], dtype=DOUBLE)
    assert point_bound(on, line, unknown).reason.tolist() == [Reason.SINGULAR]
    beside = torch.tensor([[30.0, 8.0, 3.0]], dtype=DOUBLE)
    assert (point_bound(beside, line, unknown).reason == 0).tolist() == [unknown == "xy"]
    assert not torch.isnan(point_bound(at, small(), unknown).peb_m).any()
    assert torch.isinf(target_information(at[0], small(), unknown=unknown)).all()


def test_no_gradient_is_nan_on_a_station():
    network = small()
    place = network.deployment.bs_position.clone().requires_grad_()
    moved = network._replace(deployment=network.deployment._replace(bs_position=place))
    points = torch.cat([network.deployment.bs_position.detach(), POSITION[None]])
    bound = point_bound(points, moved).peb_m
    torch.where(torch.isfinite(bound), bound, 0.0).sum().backward()
    assert torch.isfinite(place.grad).all()
    assert bool((place.grad != 0).any())


def test_prior_replaces_what_is_missing():
    flat = build_network([[0, 0, 0], [30, 0, 0]], ula(8), 28e9, 64, 1e6, 10, 1e-4, 5.0, 1.0, 4e-20, target=[15, 20, 0])
    point = torch.tensor([12.0, 18.0, 0.0], dtype=DOUBLE)
    prior = torch.tensor([torch.inf, torch.inf, 0.0], dtype=DOUBLE)
    assert int(target_bound(point, flat, unknown="xyz").reason) == Reason.SINGULAR  # all stations in the plane
    known = target_bound(point, flat, unknown="xyz", prior_std=prior)
    assert torch.allclose(known.peb_m, target_bound(point, flat, unknown="xy").peb_m, rtol=1e-10)


def test_velocity_of_one_link_is_the_doppler_bound():
    network = small(active=[0], num_symbols=16)
    prior = torch.tensor([0.0, 0, 0, torch.inf, 0, 0], dtype=DOUBLE)
    line = network.deployment.bs_position[0] + torch.tensor([25.0, 0, 0], dtype=DOUBLE)
    bound = target_bound(line, network, torch.zeros(3, dtype=DOUBLE), prior_std=prior)
    snr = echo_snr(line, network)[0]
    doppler = 6 / (snr * (2 * math.pi * 1e-4) ** 2 * 6 * 6 * 16 * (16**2 - 1))  # equation 12, N = 6, K = 6
    speed = doppler.sqrt() * SPEED_OF_LIGHT / (2 * 28e9)
    assert torch.allclose(bound.veb_m_s, speed, rtol=1e-10)


def test_communication_beam_leaks_into_the_illumination():
    point = [[20.0, 20.0, 1.0], [20.0, 18.0, 1.0], [18.0, 20.0, 1.0]]
    network = small(communication_point=point)
    antenna = network.deployment.antenna_global[1] / network.deployment.wavelength
    centre = network.deployment.bs_position[1]
    to = [(p - centre) / (p - centre).norm() for p in (POSITION, torch.tensor(point[1], dtype=DOUBLE))]
    steer = [torch.exp(2j * math.pi * (antenna @ k)) for k in to]
    precoder = (0.5**0.5 * steer[0].conj() + 0.5**0.5 * steer[1].conj()) / 6
    expected = (steer[0] @ precoder).abs().square()
    got = echo_snr(POSITION, network)[1] / echo_snr(POSITION, small(sensing_fraction=1.0))[1]
    assert torch.allclose(got, expected, rtol=1e-12)


def test_echo_against_a_loop():
    network = small([[1, 2]], array=elements([[0, 0, 0], [0, 0.5, 0], [0.1, 0, 0.7]]))
    delay, doppler = 41.0 / SPEED_OF_LIGHT, 130.0
    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, -0.5]], dtype=DOUBLE), dim=-1)
    echo = EchoParameters(
        torch.tensor([41.0], dtype=DOUBLE), torch.tensor([doppler], dtype=DOUBLE), direction,
        torch.tensor([0.3 - 0.4j], dtype=torch.complex128),
    )  # fmt: skip
    got = echo_response(echo, network)
    for n, place in enumerate(network.receivers.antenna_global[0] / network.deployment.wavelength):
        for m, t in enumerate([-1.5e-4, -0.5e-4, 0.5e-4, 1.5e-4]):
            for k, f in enumerate([-5e6, -3e6, -1e6, 1e6, 3e6, 5e6]):
                phase = 2 * math.pi * (t * doppler - f * delay + float(place @ direction[0]))
                assert abs(complex(got[0, n, m, k]) - (0.3 - 0.4j) * complex(math.cos(phase), math.sin(phase))) < 1e-12


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sensing_fraction": 1.2}, DomainError, "sensing_fraction"),
        ({"eirp_w": -1.0}, DomainError, "eirp_w"),
        ({"spacing_hz": -120e3}, ConfigError, "spacing_hz"),
        ({"num_symbols": 0}, ConfigError, "num_symbols"),
        ({"noise_psd": 0.0}, DomainError, "noise_psd"),
        ({"rcs_m2": -1.0}, DomainError, "rcs_m2"),
        ({"eirp_w": [1.0, 2.0]}, ConfigError, "eirp_w"),
        ({"active": [0, 0]}, ConfigError, "active"),
        ({"active": [3]}, ConfigError, "active"),
        ({"links": "all"}, ConfigError, "links"),
        ({"links": [[0, 1], [0, 1]]}, DomainError, "links"),
        ({"links": [[0, 2]], "active": [0, 1]}, ConfigError, "links"),
        ({"carrier_hz": 0.0}, ConfigError, "carrier_hz"),
        ({"communication_point": [[1.0, 2.0, 3.0]]}, ShapeError, "communication_point"),
    ],
)
def test_bad_networks(change, error, message):
    with pytest.raises(error, match=message):
        small(**change)


def test_bad_points():
    with pytest.raises(ShapeError, match="position"):
        point_bound(torch.zeros(2, dtype=DOUBLE), small())
    with pytest.raises(DomainError, match="position"):
        point_bound(torch.full((3,), torch.nan, dtype=DOUBLE), small())
    with pytest.raises(ConfigError, match="unknown"):
        point_bound(POSITION, small(), unknown="x")
    with pytest.raises(ShapeError, match="velocity"):
        target_bound(POSITION, small(), VELOCITY[:2])


@pytest.mark.parametrize("azimuth", [0.0, 0.3, math.pi / 4, math.pi / 2, math.pi])
def test_end_fire_is_flagged_however_the_axes_lie(azimuth: float) -> None:
    cos, sin = math.cos(azimuth), math.sin(azimuth)
    turned = [[[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]]
    one = {"bs_position": [[0.0, 0.0]], "eirp_w": 20.0, "sensing_fraction": 0.3, "noise_psd": 4e-20}
    network = small(array=ula(8), target=None, bs_rotation=turned, **one)
    along_array = torch.tensor([-10.0 * sin, 10.0 * cos, 0.0], dtype=DOUBLE)
    assert int(point_bound(along_array, network).reason) == Reason.SINGULAR
    assert int(target_bound(along_array, network, unknown="xy").reason) == Reason.SINGULAR


@pytest.mark.parametrize(
    "wrong",
    [
        {"eirp_w": "a"},
        {"receive_gain": "a"},
        {"rcs_m2": None},
        {"active": 1},
        {"links": 3},
        {"links": [0, 1]},
        {"bs_position": [0, 0]},
    ],
)
def test_values_of_a_wrong_kind_are_named(wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        small(**wrong)
