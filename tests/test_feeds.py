"""Detectors' outputs as measurements: deviations by Monte Carlo, positions against other estimators of the same."""

import math

import pytest
import torch

from sensing.arrays import ula, upa
from sensing.channel import channel_response
from sensing.coarse.detection import PathDetector
from sensing.containers import Observation, PathEstimates, Paths
from sensing.errors import DomainError, ShapeError
from sensing.fusion.domain import box
from sensing.fusion.feeds import earliest_paths, line_axis, path_measurements, station_measurements
from sensing.fusion.solve import solve_position
from sensing.fusion.uncertainty import pool_covariance
from sensing.geometry import direction_and_range, tangent_basis
from sensing.simulation.deployments import build_deployment
from sensing.targets import EchoEstimator, locate_target
from sensing.targets.feeds import echo_measurements
from sensing.units import SPEED_OF_LIGHT
from tests.test_targets import CORNERS, HIGH, PLACE, draws, network

DOUBLE = torch.float64


def fused(measured, domain, truth):
    """Maximum likelihood position from the truth on, and its covariance."""
    weight = measured.members.double()
    start = truth.expand(len(measured.range_m), 3)
    place = solve_position(start, measured, weight.unflatten(-1, (2, -1)), None, domain.unknown).position
    return place, pool_covariance(place, measured, weight, domain.unknown)


def test_deviations_against_draws_of_the_estimates():
    """Draw (range, two angles) with a random joint information: spread of the range alone, and of the angle alone."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(4, 3, dtype=DOUBLE, generator=generator), dim=-1)
    half = torch.randn(4, 3, 5, dtype=DOUBLE, generator=generator) * torch.tensor([[2.0], [30.0], [40.0]])
    inner = half @ half.mT  # [bs 3 3] over (range, tangents)
    lift = torch.zeros(4, 4, 3, dtype=DOUBLE)
    lift[:, 0, 0], lift[:, 1:, 1:] = 1.0, tangent_basis(direction)
    mask = torch.tensor([True, True, True, False])
    length = torch.full((4,), 50.0, dtype=DOUBLE)
    found = station_measurements(torch.zeros(4, 3), length, direction, lift @ inner @ lift.mT, mask)
    noise = torch.randn(200_000, 4, 3, dtype=DOUBLE, generator=generator)
    error = torch.linalg.solve_triangular(torch.linalg.cholesky(inner).mT, noise[..., None], upper=True)[..., 0]
    assert torch.allclose(found.range_std[:3], error[:, :3, 0].std(0), rtol=0.01)
    turned = direction + (lift[:, 1:, 1:] @ error[..., 1:, None])[..., 0]
    miss = (turned - direction).square().sum(-1).mean(0)  # of the two angles together
    assert torch.allclose(2 * found.angle_std[:3].square(), miss[:3], rtol=0.01)
    assert torch.allclose(found.direction[:3], direction[:3], atol=1e-12)
    assert not bool(found.members[[3, 7]].any())


@pytest.mark.parametrize(
    ("array", "bs", "height"),
    [(upa(3, 3), HIGH, None), (upa(3, 3), HIGH, 1.5), (ula(6), CORNERS, 0.0), (ula(6), HIGH, 1.5)],
)
def test_echoes_fuse_to_the_position_of_the_radar(array, bs, height):
    """The radar's own estimate uses all that the echoes tell: fused ranges and directions come within its deviation."""
    net, count = network(bs, array, eirp_w=3e4), 60
    truth = PLACE + torch.tensor([0.0, 0.0, 1.5 if bs is HIGH else 0.0], dtype=DOUBLE)
    _, y = draws(net, count, truth)
    echoes = EchoEstimator(net)(y)
    assert bool(echoes.mask.all())
    known = height is not None
    radar = locate_target(echoes, net, "xy" if known else "xyz", height_m=float(truth[2]))
    measured = echo_measurements(echoes, net, height).validate()
    assert bool(measured.members.all())
    domain = box([0, 0, truth[2] if known else -5.0], [72, 72, truth[2] if known else 10.0], 2.0)
    place, covariance = fused(measured, domain, truth)
    off = (place - radar.position).norm(dim=-1)
    assert bool((off < radar.peb_m).all())
    assert float(off.mean()) < 0.35 * float(radar.peb_m.mean())
    error = (place - truth)[:, domain.unknown]
    score = torch.einsum("ni,nij,nj->n", error, torch.linalg.inv(covariance), error) / len(domain.unknown)
    assert abs(float(score.mean()) - 1) < 4.5 * math.sqrt(2 / len(domain.unknown) / count) + 0.1  # it claims its errors


def test_ways_between_stations_are_no_ranges():
    net = network(HIGH, upa(3, 3), links=[[0, 0], [0, 1], [2, 2]], eirp_w=3e3)
    truth, y = draws(net, 2)
    echoes = EchoEstimator(net)(y)
    measured = echo_measurements(echoes, net)
    assert torch.isfinite(measured.range_std).all(0).tolist() == [True, False, True]
    assert bool(torch.isfinite(measured.angle_std).all())
    assert torch.equal(measured.bs_position, torch.tensor(HIGH, dtype=DOUBLE)[[0, 1, 2]])
    assert torch.allclose(measured.range_m[:, [0, 2]], truth.range_m[:, [0, 2]] / 2, atol=0.2)
    # half the way has half its deviation
    assert torch.allclose(measured.range_std[:, 0], 0.5 * echoes.information[:, 0, 0, 0].rsqrt())
    deaf = echoes._replace(mask=torch.zeros_like(echoes.mask))
    assert not bool(echo_measurements(deaf, net).members.any())
    with pytest.raises(ShapeError, match="link=3"):
        echo_measurements(type(echoes)(*(field[:, :2] for field in echoes)), net)
    with pytest.raises(DomainError, match="height_m"):
        echo_measurements(echoes, net, math.inf)


def test_lines_of_antennas_in_space_give_ranges_alone():
    net = network(HIGH, ula(6), eirp_w=3e3)
    _, y = draws(net, 2)
    measured = echo_measurements(EchoEstimator(net)(y), net)
    assert bool(torch.isfinite(measured.range_std).all())
    assert bool(torch.isinf(measured.angle_std).all())
    assert line_axis(network(HIGH, upa(3, 3)).deployment) is None


def test_cone_at_a_known_height():
    """A line that need not be level, at a height that is not the target's: exact without noise, spread by draws."""
    generator = torch.Generator().manual_seed(1)
    station = torch.tensor([[3.0, -2.0, 12.0]], dtype=DOUBLE)
    axis = torch.nn.functional.normalize(torch.tensor([[0.3, 1.0, 0.2]], dtype=DOUBLE), dim=-1)
    face = torch.linalg.cross(axis, torch.tensor([[-0.1, 0.1, 1.0]], dtype=DOUBLE))
    face = torch.nn.functional.normalize(face, dim=-1)  # normal of the array, on the targets' side
    target = torch.cat(
        [torch.rand(30, 2, dtype=DOUBLE, generator=generator) * 30 + 15, torch.ones(30, 1, dtype=DOUBLE)], -1
    )
    true, distance = direction_and_range(target[:, None], station)
    std = 1e-4

    def convert(cosine):
        in_plane = cosine * axis + (1 - cosine.square()).sqrt() * torch.sign((true * face).sum(-1, keepdim=True)) * face
        information = torch.zeros(*in_plane.shape[:-1], 4, 4, dtype=DOUBLE)
        information[..., 0, 0] = 1e4
        information[..., 1:, 1:] = axis[..., :, None] * axis[..., None, :] / std**2
        mask = torch.ones(in_plane.shape[:-1], dtype=torch.bool)
        return station_measurements(station, distance.expand(mask.shape), in_plane, information, mask, 0.0, 1.0, axis)

    cosine = (true * axis).sum(-1, keepdim=True)
    exact = convert(cosine)
    assert torch.allclose(exact.direction, true, atol=1e-9)
    noisy = convert(cosine + std * torch.randn(4000, *cosine.shape, dtype=DOUBLE, generator=generator))
    turn = (noisy.azimuth - exact.azimuth) * exact.elevation.cos()
    assert ((turn.std(0) / exact.angle_std - 1).abs() < 4.5 / math.sqrt(2 * 4000)).all()


def uplink(offset_std=0.0, count=40, spacing=1.5e6):
    """Lines of sight of a user at three stations with 4x4 antennas: detected paths, stations, user, true ranges."""
    place = [[0.0, 0.0, 8.0], [60.0, 0.0, 9.0], [30.0, 55.0, 7.0]]
    plan = build_deployment(
        place, upa(4, 4), torch.arange(48, dtype=DOUBLE) * spacing, 28e9, offset_std, target=[30.0, 20.0, 1.5]
    )
    user = torch.tensor([34.0, 17.0, 1.5], dtype=DOUBLE)
    generator = torch.Generator().manual_seed(3)
    direction, distance = direction_and_range(user, plan.bs_position)
    scale = 0.0 if math.isinf(offset_std) else offset_std
    offset = SPEED_OF_LIGHT * scale * torch.randn(count, 3, dtype=DOUBLE, generator=generator)
    echo = torch.nn.functional.normalize(direction + torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE), dim=-1)
    delay = torch.stack([distance + offset, distance + offset + 25.0], -1) / SPEED_OF_LIGHT
    gain = torch.tensor([1.0, 0.4], dtype=torch.complex128).expand(count, 3, 2)
    directions = torch.stack([direction, echo], -2).expand(count, 3, 2, 3)
    clean = channel_response(Paths(delay, directions, gain, torch.ones(count, 3, 2, dtype=torch.bool)), plan)
    noise = torch.randn(clean.shape, dtype=torch.complex128, generator=generator)
    y = clean + math.sqrt(0.1) * noise
    paths = PathDetector()(Observation(y, torch.full((count, 3), 0.1, dtype=DOUBLE)), plan)
    return paths, plan, user, distance + offset


def test_synchronised_paths_fuse_to_the_user():
    paths, plan, user, true = uplink()
    measured = path_measurements(paths, plan, earliest_paths(paths)).validate()
    assert ((measured.range_m - true).std(0) / measured.range_std.mean(0) - 1).abs().max() < 0.5
    domain = box([0, 0, -5], [60, 60, 10], 2.0)
    place, covariance = fused(measured, domain, user)
    error = place - user
    score = torch.einsum("ni,nij,nj->n", error, torch.linalg.inv(covariance), error) / 3
    assert abs(float(score.mean()) - 1) < 4.5 * math.sqrt(2 / 3 / len(error)) + 0.15
    assert float(error.norm(dim=-1).max()) < 1.0


def test_offsets_widen_ranges_or_take_them_away():
    std = 5e-9
    paths, plan, _, true = uplink(std)
    index = earliest_paths(paths)
    measured = path_measurements(paths, plan, index)
    sync = path_measurements(paths, plan, index, offset_std_m=0.0)
    assert torch.allclose(
        measured.range_std.square() - sync.range_std.square(), torch.tensor((std * SPEED_OF_LIGHT) ** 2).double()
    )
    known = torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE)
    moved = path_measurements(paths, plan, index, known.expand(true.shape), 0.0)
    assert torch.allclose(sync.range_m - moved.range_m, known.expand(true.shape))
    for offset_std in (math.inf, 60.0):  # unknown, or too large for ranges known modulo 200 m
        blind = path_measurements(paths, plan, index, offset_std_m=offset_std)
        assert bool(torch.isinf(blind.range_std).all())
        assert torch.equal(blind.angle_std, measured.angle_std)
    unknown = plan._replace(clock_offset_std=torch.tensor(math.inf, dtype=DOUBLE))
    assert bool(torch.isinf(path_measurements(paths, unknown, index).range_std).all())
    far = paths._replace(range_m=(paths.range_m - 45.0).remainder(float(plan.range_ambiguity)))
    wrapped = path_measurements(far, plan, index)  # a little below zero is no long way
    assert torch.allclose(wrapped.range_m, measured.range_m - 45.0, atol=1e-9)


def test_stations_without_a_line_of_sight_take_no_part():
    paths, plan, _, _ = uplink(count=4)
    index = earliest_paths(paths)
    index[0, 1], index[1, 2] = -1, paths.mask.shape[-1]  # none; by the ground
    measured = path_measurements(paths, plan, index)
    assert torch.isfinite(measured.range_std).tolist()[:2] == [[True, False, True], [True, True, False]]
    assert torch.equal(torch.isfinite(measured.range_std), torch.isfinite(measured.angle_std))
    nothing = PathEstimates(*(field[:1] for field in paths))._replace(mask=torch.zeros_like(paths.mask[:1]))
    assert earliest_paths(nothing).tolist() == [[-1, -1, -1]]
    with pytest.raises(DomainError, match="line_of_sight"):
        path_measurements(paths, plan, index.double())
    with pytest.raises(DomainError, match="offset_std_m"):
        path_measurements(paths, plan, index, offset_std_m=-1.0)
