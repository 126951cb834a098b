"""Doubtful fused positions, method by method: second modes, contradictions, lone members, the edge of the domain."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import chi2

from sensing.errors import DomainError, SensingError
from sensing.fusion.domain import Domain, box, hexagon
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.methods import METHODS, Pooling, fuse
from sensing.fusion.modes import P_VALUE, FusionFlag, judged
from sensing.simulation.drops import DropSampler

DOUBLE = torch.float64
POOLED = [name for name in METHODS if name != "bayes"]
JOINT = [name for name in POOLED if name != "best_station"]  # of ranges alone, one station leaves a circle
NETWORKS = {"learned": LearnedFusion(), "learned_weights": LearnedFusion(correct_bias=False)}
TRIANGLE = [[60.0, 0.0, 10.0], [-30.0, 52.0, 10.0], [-30.0, -52.0, 12.0]]
HEXAGON = hexagon(55.0, 1.5, 2.0)


def fused(measured, domain, names=POOLED, samples=4000, refine=True):
    pooling = Pooling(domain, samples, refine=refine, networks=NETWORKS)
    return fuse(names, measured, pooling, torch.Generator().manual_seed(0))


def has(result, flag):
    return (result.flags & flag) > 0


def reflected(position, stations):
    """Mirror image in the plane of three stations."""
    a, b, c = (torch.tensor(each, dtype=DOUBLE) for each in stations[:3])
    normal = torch.linalg.cross(b - a, c - a)
    normal = normal / normal.norm()
    return position - 2.0 * ((position - a) @ normal)[:, None] * normal


PAIR = [[60.0, 0.0, 10.0], [-50.0, 30.0, 12.0], [60.0, 0.0, 0.0]]  # two stations and a point below one


@pytest.fixture(scope="module")
def pair():
    """Two stations with ranges alone, and the mirror images in the vertical plane through them."""
    task = DropSampler(PAIR[:2], HEXAGON, range_std_m=0.1).sample(0, "test", range(40))
    return task, reflected(task.position, PAIR)


@pytest.mark.parametrize("name", JOINT)
def test_two_stations_with_ranges_report_both_modes(pair, name):
    task, image = pair
    got = fused(task.measured.only("toa"), HEXAGON, [name])[name]
    expected = HEXAGON.contains(image) & ((task.position - image).norm(dim=-1) > 8.0)
    assert 5 < expected.sum() < 40
    assert torch.equal(has(got, FusionFlag.MIRROR)[expected], expected[expected])
    error, other = ((each - task.position).norm(dim=-1) for each in (got.position, got.mirror))
    assert (torch.minimum(error, other)[expected] < 3.0).all()
    assert torch.allclose(reflected(got.position, PAIR)[expected], got.mirror[expected], atol=1e-3)
    outside = ~HEXAGON.contains(image)  # known from the domain: the image cannot be
    assert outside.any()
    assert not has(got, FusionFlag.MIRROR)[outside].any()
    assert (error[outside] < 1.0).all()
    assert torch.equal(got.position[outside], got.mirror[outside])


PLANE = [[0.0, 0.0, 5.0], [50.0, 0.0, 8.0], [0.0, 40.0, 6.0]]
FOURTH = [50.0, 40.0, 9.0]  # in the plane of the other three


@pytest.mark.parametrize("name", JOINT)
def test_ranges_to_stations_in_a_plane_leave_two_modes_in_space(name):
    stations, domain = [*PLANE, FOURTH], box([5, 5, -20], [45, 35, 30], 2.0)
    task = DropSampler(stations, domain, range_std_m=0.05).sample(0, "test", range(12))
    image = reflected(task.position, stations)
    got = fused(task.measured.only("toa"), domain, [name])[name]
    expected = domain.contains(image) & ((task.position - image).norm(dim=-1) > 6.0)
    assert expected.sum() >= 6
    assert has(got, FusionFlag.MIRROR)[expected].all()
    error, other = ((each - task.position).norm(dim=-1) for each in (got.position, got.mirror))
    missed, found = ((each - image).norm(dim=-1) for each in (got.position, got.mirror))
    assert (torch.minimum(error + found, other + missed)[expected] < 2.0).all()
    assert not has(fused(task.measured, domain, [name])[name], FusionFlag.MIRROR).any()


def test_in_space_the_domain_or_a_station_beside_the_plane_decides():
    below = box([5, 5, 0], [45, 35, 4], 2.0)
    task = DropSampler([*PLANE, FOURTH], below, range_std_m=0.01).sample(0, "test", range(10))
    both = box([5, 5, -20], [45, 35, 30], 2.0)
    high = DropSampler([*PLANE, [50.0, 40.0, 30.0]], both, range_std_m=0.01).sample(0, "test", range(10))
    for each, domain in ((task, below), (high, both)):
        got = LearnedFusion()(each.measured.only("toa"), domain)
        kept = (got.flags & (FusionFlag.OUTSIDE | FusionFlag.OPEN)) == 0
        assert kept.sum() >= 8
        assert not has(got, FusionFlag.MIRROR).any()
        assert ((got.position - each.position).norm(dim=-1)[kept] < 0.5).all()


def two(first, second, std=1.0):
    """Ranges of two stations 60 m apart, at the height of the target."""
    ranges = torch.tensor([[first, second]], dtype=DOUBLE)
    stations = torch.tensor([[-30.0, 0.0, 1.5], [30.0, 0.0, 1.5]], dtype=DOUBLE)
    zero, none = torch.zeros_like(ranges), torch.full_like(ranges, torch.inf)
    return StationMeasurements(stations, ranges, zero, zero, torch.full_like(ranges, std), none)


@pytest.mark.parametrize("name", JOINT)
def test_circles_that_do_not_meet_contradict_each_other(name):
    """On the line between them the misfit is the gap over the root of the summed variances: one degree of freedom."""
    edge = math.sqrt(2.0 * chi2.isf(P_VALUE, 1))
    for gap, expected in ((1.1 * edge, True), (0.9 * edge, False), (-20.0, False), (30.0, True)):
        got = fused(two(30.0 - 0.5 * gap, 30.0 - 0.5 * gap), HEXAGON, [name])[name]
        assert bool(has(got, FusionFlag.CONTRADICTORY)) == expected, gap
    inner = fused(two(12.0, 95.0), hexagon(120.0, 1.5, 3.0), [name])[name]  # one circle inside the other
    assert bool(has(inner, FusionFlag.CONTRADICTORY))


@pytest.mark.parametrize("modality", ["toa", "aoa", "hybrid"])
def test_right_deviations_contradict_each_other_as_rarely_as_announced(modality):
    task = DropSampler(TRIANGLE, HEXAGON).sample(0, "test", range(1500))
    got = LearnedFusion()(task.measured.only(modality), HEXAGON)
    assert has(got, FusionFlag.CONTRADICTORY).sum() <= 8  # 1.5 expected
    assert (got.flags & (FusionFlag.OPEN | FusionFlag.LONE_MEMBER | FusionFlag.MIRROR) == 0).all()
    biased = task.measured._replace(range_m=task.measured.range_m + torch.tensor([0.0, 0.0, 15.0], dtype=DOUBLE))
    if modality != "aoa":
        assert has(LearnedFusion()(biased.only(modality), HEXAGON), FusionFlag.CONTRADICTORY).double().mean() > 0.8


@pytest.mark.parametrize("name", POOLED)
def test_one_station(name):
    task = DropSampler(TRIANGLE[:1], HEXAGON).sample(0, "test", range(8))
    ranges = fused(task.measured.only("toa"), HEXAGON, [name])[name]
    assert has(ranges, FusionFlag.OPEN).all()
    assert has(ranges, FusionFlag.LONE_MEMBER).all()
    assert HEXAGON.contains(ranges.position).all()
    off = (ranges.position - task.measured.bs_position).norm(dim=-1) - task.measured.range_m[:, 0]
    assert (off.abs() < 3.0).all()
    angles = fused(task.measured.only("aoa"), HEXAGON, [name])[name]
    assert has(angles, FusionFlag.LONE_MEMBER).all()
    assert not has(angles, FusionFlag.OPEN).any()
    for each in (ranges, angles, fused(task.measured, HEXAGON, [name])[name]):
        assert has(each, FusionFlag.ONE_STATION).all()


@pytest.mark.parametrize("name", POOLED)
@pytest.mark.parametrize("where", [[50.0, 0.0, 10.0], [0.0, 0.0, 10.0], [0.0, 0.0, 1.5]])
def test_stations_all_at_one_place_with_ranges_alone(name, where):
    """No circles cross; below the station, where a search may begin, ranges tell nothing of x and y."""
    task = DropSampler([where] * 3, HEXAGON).sample(0, "test", range(4))
    got = fused(task.measured.only("toa"), HEXAGON, [name])[name]
    assert torch.isfinite(got.weight).all()
    assert has(got, FusionFlag.OPEN).all()
    distance = (got.position - task.measured.bs_position[0]).norm(dim=-1)
    assert ((distance - task.measured.range_m.mean(-1)).abs() < 5.0).all()


def test_members_that_are_flat_on_the_domain_share_the_weight():
    task = DropSampler(TRIANGLE, HEXAGON, range_std_m=1e9, angle_std_deg=5e10).sample(0, "test", range(2))
    got = fused(task.measured._replace(range_m=0 * task.measured.range_m), HEXAGON, ["optimal"])["optimal"]
    assert torch.isfinite(got.weight).all()
    assert torch.allclose(got.weight.sum(-1), torch.ones(2, dtype=torch.float64))


def test_weights_driven_to_one_member_are_flagged():
    """The optimal pool gives all weight to a member that contradicts all others; so does the best of stations."""
    task = DropSampler(TRIANGLE, HEXAGON).sample(0, "test", range(4))
    got = fused(task.measured.only("toa"), HEXAGON, ["best_station", "equal"])
    assert has(got["best_station"], FusionFlag.LONE_MEMBER).all()
    assert not has(got["equal"], FusionFlag.LONE_MEMBER).any()
    lone = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=DOUBLE).expand(4, 2, 3)
    verdict = judged(task.position, task.measured, lone, None, HEXAGON)
    assert has(verdict, FusionFlag.LONE_MEMBER).all()
    assert has(verdict, FusionFlag.OPEN).all()


def test_best_point_inside_against_scipy():
    """Biased ranges push positions over the edge of a box; inside, the constrained minimum is what counts."""
    domain = box([-20, -20, 1.5], [20, 20, 1.5], 1.0)
    task = DropSampler(TRIANGLE, domain, bias="delta", bias_scale_m=9.0, biased=[0]).sample(0, "test", range(60))
    got = fused(task.measured.only("toa"), domain, ["fixed_range_weight", "learned", "equal"])
    plain = fused(task.measured.only("toa"), box([-90, -90, 1.5], [90, 90, 1.5], 4.0), ["learned"])["learned"]
    left = ~domain.contains(plain.position)
    assert 3 < left.sum() < 40
    bs, ranges = task.measured.bs_position.numpy(), task.measured.range_m.numpy()

    def cost(xy, i):
        return 0.5 * ((ranges[i] - np.linalg.norm(np.append(xy, 1.5) - bs, axis=-1)) ** 2).sum()

    for name, result in got.items():
        assert domain.contains(result.position).all(), name
        if name != "equal":
            assert torch.equal(has(result, FusionFlag.OUTSIDE), left), name
        assert torch.allclose(result.position[~left], plain.position[~left], atol=1e-6)
        for i in left.nonzero()[:, 0].tolist():
            here = result.position[i, :2].numpy()
            found = minimize(cost, here.clip(-20, 20), args=(i,), bounds=[(-20, 20)] * 2)
            assert cost(here, i) < found.fun + 0.05, name


def test_best_point_at_a_staircase_against_all_cells():
    """The slanted edge of a hexagon has a local minimum in every corner of its cells."""
    task = DropSampler(TRIANGLE, HEXAGON, bias="uniform", bias_scale_m=20.0).sample(0, "test", range(150))
    measured = task.measured.only("toa")
    got = LearnedFusion()(measured, HEXAGON)
    left = has(got, FusionFlag.OUTSIDE).nonzero()[:, 0].tolist()
    assert len(left) > 20
    share = torch.linspace(-0.499, 0.499, 7, dtype=DOUBLE)
    offset = torch.cartesian_prod(share, share, torch.zeros(1, dtype=DOUBLE)) * HEXAGON.cell
    points = (HEXAGON.points[:, None] + offset).flatten(0, 1)
    far = (points[:, None] - measured.bs_position).norm(dim=-1)
    for i in left:
        cost = 0.5 * (measured.range_m[i] - far).square().sum(-1)
        here = 0.5 * (measured.range_m[i] - (got.position[i] - measured.bs_position).norm(dim=-1)).square().sum()
        assert here < cost.min() + 0.1


def test_a_domain_with_a_hole_and_cells_off_the_grid():
    ring = box([-10, -10, 1.5], [10, 10, 1.5], 1.0)
    ring = ring._replace(points=ring.points[ring.points[:, :2].norm(dim=-1) > 5.0])
    places = torch.tensor([[0.0, 0.0, 1.5], [8.0, 0.0, 0.0], [-9.99, 9.99, 1.5], [10.01, 0.0, 1.5], [0, -400.0, 0]])
    assert ring.contains(places.double()).tolist() == [False, True, True, False, False]
    with pytest.raises(DomainError, match="part of one grid"):
        Domain(torch.cat([ring.points, ring.points[:1] + 0.3]), ring.cell).contains(places.double())


def test_what_does_not_settle_is_flagged_or_repaired():
    """Ranges of 1 cm that are 30 m too long: far from any solution, Gauss-Newton steps may go round in circles."""
    law = DropSampler(TRIANGLE, HEXAGON, range_std_m=0.01, bias="uniform", bias_scale_m=30.0)
    measured = law.sample(0, "test", range(400)).measured.only("toa")
    got = LearnedFusion(steps=2, layers=1)(measured, HEXAGON)
    doubtful = has(got, FusionFlag.NOT_CONVERGED)
    assert 0 < doubtful.sum() < 20
    settled = ~doubtful & ~has(got, FusionFlag.OUTSIDE)
    assert settled.sum() > 100
    slope = got.position.detach()[settled].clone().requires_grad_()
    distance = (slope[:, None] - measured.bs_position).norm(dim=-1)
    cost = 0.5 * ((measured.range_m[settled] - distance) / 0.01).square().sum()
    left = torch.autograd.grad(cost, slope)[0][:, :2]
    length = (left * (got.covariance[settled] @ left[..., None])[..., 0]).sum(-1)
    assert length.max() < 0.02  # squared deviations
    assert has(got, FusionFlag.CONTRADICTORY).double().mean() > 0.9


def test_no_drop_depends_on_its_batch_mates_and_all_axes_are_batch_axes():
    task = DropSampler(TRIANGLE, HEXAGON, bias="uniform", bias_scale_m=20.0).sample(0, "test", range(24))
    measured, net = task.measured.only("toa"), LearnedFusion()
    whole = net(measured, HEXAGON)
    assert has(whole, FusionFlag.OUTSIDE).any()
    grid = StationMeasurements(measured.bs_position, *(field.reshape(4, 6, 3) for field in measured[1:]))
    for one, other in zip(net(grid, HEXAGON), whole, strict=True):
        assert torch.allclose(one.flatten(0, 1), other)
    for i in (0, int(has(whole, FusionFlag.OUTSIDE).nonzero()[0])):
        alone = net(StationMeasurements(measured.bs_position, *(field[i : i + 1] for field in measured[1:])), HEXAGON)
        assert torch.allclose(alone.position[0], whole.position[i], rtol=0, atol=1e-9)
        assert alone.flags[0] == whole.flags[i]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"range_std": 0.0}, "range_std must be positive"),
        ({"angle_std": -1.0}, "angle_std must be positive"),
        ({"azimuth": 90.0}, r"azimuth must be within .*\(degrees\?\)"),
        ({"elevation": 1.7}, "elevation must be within"),
        ({"range_m": torch.nan}, "range_m"),
        ({"range_std": torch.inf, "angle_std": torch.inf}, "must have a range or an angle"),
    ],
)
@pytest.mark.parametrize("name", ["equal", "optimal", "inverse_variance", "learned"])
def test_bad_measurements_are_refused_by_all_methods(name, change, message):
    measured = DropSampler(TRIANGLE, HEXAGON).sample(0, "test", range(2)).measured
    bad = measured._replace(**{key: torch.full_like(measured.range_m, value) for key, value in change.items()})
    with pytest.raises(SensingError, match=message):
        fused(bad, HEXAGON, [name], samples=50)


def test_optimal_weights_report_their_information_and_passes():
    measured = DropSampler(TRIANGLE, HEXAGON).sample(0, "test", range(4)).measured
    got = fused(measured, HEXAGON, ["equal", "optimal"])
    assert (got["optimal"].log_z < 0).all()
    assert (got["optimal"].iterations >= 1).all()
    assert got["equal"].log_z is None
