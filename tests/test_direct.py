"""Lines of sight among other paths: what is found and what is not, and the odds against densities written out."""

import math

import pytest
import torch

from sensing.coarse.direct import line_of_sight_evidence, lines_of_sight
from sensing.coarse.least_squares import Solution, solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.normal_equations import LocationPrior, location_prior
from sensing.coarse.pairs import ray_pairs, region_box
from sensing.coarse.rays import Rays, without
from sensing.containers import map_tensors
from sensing.geometry import tangent_basis
from tests.reference.oracle import single_path

UE = torch.tensor([[12.0, 25.0, 1.5]], dtype=torch.float64)
OFFSET = torch.tensor([[1.0, -0.5, 0.3, -2.0]], dtype=torch.float64)
STRAIGHT = 2
"""Slot of the line of sight in every station."""


def located(information=None, ue=UE, offset=OFFSET):
    """A user who is known to 5 cm, or as well as an information matrix says."""
    information = 400.0 * torch.eye(7, dtype=torch.float64)[None] if information is None else information
    nothing = torch.zeros(len(ue), 0, 3, dtype=torch.float64)
    cost = torch.zeros(len(ue), dtype=torch.float64)
    return Solution(ue, offset, nothing, cost, information, nothing[..., None].expand(-1, 0, 3, 3))


def scene(hall, std_range=0.05, std_angle=0.005, seed=0):
    """Five paths of a station, the third of which is its line of sight; the others are later, elsewhere and weaker."""
    deployment = hall.deployment
    generator = torch.Generator().manual_seed(seed)
    leg = UE[:, None] - deployment.bs_position
    ranges = (leg.norm(dim=-1) + OFFSET)[..., None] + 3.0 + 25.0 * torch.rand(1, 4, 5, generator=generator).double()
    direction = torch.randn(1, 4, 5, 3, generator=generator, dtype=torch.float64)
    ranges[..., STRAIGHT] = leg.norm(dim=-1) + OFFSET
    direction[..., STRAIGHT, :] = leg
    paths = single_path(torch.remainder(ranges, deployment.range_ambiguity), direction, std_range, std_angle)
    amplitude = torch.full((5,), 0.2).index_fill(0, torch.tensor([STRAIGHT]), 1.0)
    return paths._replace(gain=paths.gain * amplitude)


def changed(paths, name, station, slot, value):
    field = getattr(paths, name).clone()
    field[0, station, slot] = value
    return paths._replace(**{name: field})


@pytest.mark.parametrize("seed", range(3))
def test_every_station_finds_its_own(hall, seed):
    paths = scene(hall, seed=seed)
    found = lines_of_sight(located(), paths, hall.deployment)
    assert found.tolist() == [[STRAIGHT] * 4]
    rays = Rays(paths, None, ray_pairs(paths, hall.deployment, gate=1e4))
    rest = without(rays, found)
    assert torch.equal(rest.paths.mask, paths.mask & (torch.arange(5) != STRAIGHT))
    assert lines_of_sight(located(), rest.paths, hall.deployment).tolist() == [[-1] * 4]
    crossing = (rays.pairs.path == STRAIGHT).any(-1)
    assert (crossing & rays.pairs.mask).any()
    assert torch.equal(rest.pairs.mask, rays.pairs.mask & ~crossing)
    same = without(rays, torch.full((1, 4), -1))
    assert torch.equal(same.paths.mask, paths.mask)
    assert torch.equal(same.pairs.mask, rays.pairs.mask)


def test_ranges_are_circular(hall):
    """A clock so late that the straight path appears at the start of the next period, and paths behind it before."""
    deployment, paths = hall.deployment, scene(hall)
    period = deployment.range_ambiguity
    leg = (UE[:, None] - deployment.bs_position).norm(dim=-1)
    late = period - 1.0 - leg
    ranges = torch.remainder(paths.range_m + (late - OFFSET)[..., None], period)
    assert (ranges < ranges[..., STRAIGHT, None]).any()
    found = lines_of_sight(located(offset=late), paths._replace(range_m=ranges), deployment)
    assert found.tolist() == [[STRAIGHT] * 4]
    found = lines_of_sight(located(offset=late - period), paths._replace(range_m=ranges), deployment)
    assert found.tolist() == [[STRAIGHT] * 4]


def test_nothing_arrives_before_the_line_of_sight(hall):
    paths = scene(hall)
    straight = paths.range_m[0, :, STRAIGHT]
    early = changed(paths, "range_m", 1, 0, straight[1] - 5.0)
    assert lines_of_sight(located(), early, hall.deployment).tolist() == [[STRAIGHT, -1, STRAIGHT, STRAIGHT]]
    # by less than the model errs, nothing is early; and absent paths are none
    assert lines_of_sight(located(), early, hall.deployment, slack_m=2.0).tolist() == [[STRAIGHT] * 4]
    hardly = changed(paths, "range_m", 1, 0, straight[1] - 0.5)
    assert lines_of_sight(located(), hardly, hall.deployment).tolist() == [[STRAIGHT] * 4]
    absent = changed(early, "mask", 1, 0, False)
    assert lines_of_sight(located(), absent, hall.deployment).tolist() == [[STRAIGHT] * 4]


def test_range_and_direction_must_agree(hall):
    paths = scene(hall)
    later = changed(paths, "range_m", 0, STRAIGHT, paths.range_m[0, 0, STRAIGHT] + 1.0)
    assert lines_of_sight(located(), later, hall.deployment).tolist() == [[-1, STRAIGHT, STRAIGHT, STRAIGHT]]
    # ten standard deviations aside
    aside = paths.direction[0, 3, STRAIGHT] + 0.05 * tangent_basis(paths.direction[0, 3, STRAIGHT])[:, 0]
    turned = changed(paths, "direction", 3, STRAIGHT, aside / aside.norm())
    assert lines_of_sight(located(), turned, hall.deployment).tolist() == [[STRAIGHT, STRAIGHT, STRAIGHT, -1]]
    # a user that is hardly known agrees with more
    vague = located(torch.eye(7, dtype=torch.float64)[None] / 0.5**2)
    assert lines_of_sight(vague, turned, hall.deployment).tolist()[0][3] == STRAIGHT


def test_a_weak_line_of_sight_must_fit_sharply(hall):
    """Where the paths are vague, an accident is as likely; a strong path is believed, a weak one is not."""
    for std_range, std_angle, believed in ((0.05, 0.005, True), (0.2, 0.05, False)):
        strong = scene(hall, std_range, std_angle)
        weak = changed(strong, "gain", 2, STRAIGHT, 0.02)
        assert lines_of_sight(located(), strong, hall.deployment).tolist() == [[STRAIGHT] * 4]
        expected = [STRAIGHT, STRAIGHT, STRAIGHT if believed else -1, STRAIGHT]
        assert lines_of_sight(located(), weak, hall.deployment).tolist() == [expected]


def by_the_ground(hall, weak=1.0):
    """The scene whose straight path came by the ground instead: from the user's image below the floor."""
    floor = region_box(hall.deployment)[0, 2]
    image = torch.cat([UE[:, :2], 2.0 * floor - UE[:, 2:]], -1)
    leg = image[:, None] - hall.deployment.bs_position
    paths, distance = scene(hall), leg.norm(dim=-1)
    ranges, direction, gain = paths.range_m.clone(), paths.direction.clone(), paths.gain.clone()
    ranges[..., STRAIGHT] = torch.remainder(distance + OFFSET, hall.deployment.range_ambiguity)
    direction[..., STRAIGHT, :] = leg / distance[..., None]
    gain[..., STRAIGHT] *= weak
    return paths._replace(range_m=ranges, direction=direction, gain=gain)


def test_a_path_by_the_ground_is_one_too(hall):
    """However weak; its index is past those of the paths, and without a region nothing says where the floor is."""
    for weak in (1.0, 0.05):
        paths = by_the_ground(hall, weak)
        found = lines_of_sight(located(), paths, hall.deployment)
        assert found.tolist() == [[5 + STRAIGHT] * 4]
        rest = without(Rays(paths, None, ray_pairs(paths, hall.deployment)), found)
        assert torch.equal(rest.paths.mask, paths.mask & (torch.arange(5) != STRAIGHT))
        nowhere = hall.deployment._replace(region=None)
        assert (lines_of_sight(located(), paths, nowhere) < 5).all()


def test_the_user_is_located_by_the_ground(hall):
    """Least squares on paths by the ground and straight, mixed, against the geometry of the image."""
    deployment, ground = hall.deployment, by_the_ground(hall)
    direct = torch.tensor([[5 + STRAIGHT, STRAIGHT, 5 + STRAIGHT, -1]])
    mixed = map_tensors(ground, lambda field: field.clone())
    for field, other in zip(mixed, scene(hall), strict=True):
        field[:, 1] = other[:, 1]
    path, place = torch.full((1, 1, 4), -1), torch.zeros(1, 1, 3, dtype=torch.float64)
    known = LocationPrior(*(field.clone() for field in location_prior(deployment)))
    known.precision[:] = 1e-9
    data = cluster_measurements(path, mixed, direct=direct)
    found = solve_location(data, UE + 3.0, OFFSET + 2.0, place, deployment, steps=100, tolerance=1e-12, prior=known)
    assert (found.ue_position - UE).abs().max() < 1e-4
    assert (found.offset_m - OFFSET)[:, :3].abs().max() < 1e-4
    assert found.cost.max() < 1e-4
    # a path taken for straight that came by the ground does not fit
    wrong = cluster_measurements(path, mixed, direct=torch.tensor([[STRAIGHT, STRAIGHT, 5 + STRAIGHT, -1]]))
    assert solve_location(wrong, UE, OFFSET, place, deployment, prior=known).cost.min() > 100.0


def test_evidence_is_highest_at_the_user(hall):
    """And nothing for a user that no path points to."""
    generator = torch.Generator().manual_seed(3)
    away = 6.0 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    away[0] = 0.0
    away[1:] = away[1:][away[1:].norm(dim=-1) > 4.0].repeat(3, 1)[:49]
    for paths in (scene(hall), by_the_ground(hall)):
        many = map_tensors(paths, lambda field: field.expand(50, *field.shape[1:]))
        cov = 0.25 * torch.eye(7, dtype=torch.float64)
        evidence = line_of_sight_evidence(UE + away, OFFSET.expand(50, 4), cov, many, hall.deployment)
        assert evidence[0] > 4.0
        assert evidence[1:].max() < 0.5 * evidence[0]
        assert (evidence >= 0).all()


def test_decisions_against_densities_written_out(hall):
    """Paths around the straight one at random: the most likely is taken, if it is likelier than an unrelated path."""
    deployment, count = hall.deployment, 80
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(count, 7, 7, generator=generator, dtype=torch.float64)
    information = 20.0 * mix @ mix.mT + 20.0 * torch.eye(7, dtype=torch.float64)
    leg = UE[:, None] - deployment.bs_position
    shift = torch.randn(count, 4, 2, 4, generator=generator, dtype=torch.float64)
    std_range, std_angle = 0.2, 0.04
    ranges = (leg.norm(dim=-1) + OFFSET)[..., None] + 1.5 * std_range * shift[..., 0]
    direction = (leg / leg.norm(dim=-1, keepdim=True))[:, :, None] + 1.5 * std_angle * shift[..., 1:]
    paths = single_path(ranges, direction, std_range, std_angle)
    amplitude = torch.rand(count, 4, 2, generator=generator, dtype=torch.float64)
    paths = paths._replace(gain=paths.gain * amplitude)
    user, offset = UE.expand(count, 3), OFFSET.expand(count, 4)
    found = lines_of_sight(located(information, user, offset), paths, deployment)
    box = region_box(deployment)
    unrelated = -math.log(float((box[1] - box[0]).norm()) * 2.0 * math.pi)
    covariance, accepted, decided, by_ground = torch.linalg.inv(information), 0, 0, 0
    floor = float(box[0, 2])
    for b in range(count):
        for q in range(4):
            ratio = []
            for p, ground in ((0, False), (1, False), (0, True), (1, True)):
                image = UE[0].clone()
                image[2] = 2.0 * floor - image[2] if ground else image[2]
                distance = (image - deployment.bs_position[q]).norm()
                k = (image - deployment.bs_position[q]) / distance
                # the image moves down when the user moves up
                move = torch.diag(torch.tensor([1.0, 1.0, -1.0 if ground else 1.0], dtype=torch.float64))
                basis = tangent_basis(paths.direction[b, q, p])
                jac = torch.zeros(3, 7, dtype=torch.float64)
                jac[0, :3], jac[0, 3 + q] = k @ move, 1.0
                jac[1:, :3] = basis.T @ (torch.eye(3, dtype=torch.float64) - torch.outer(k, k)) @ move / distance
                noise = torch.diag(torch.tensor([std_range**2, std_angle**2, std_angle**2], dtype=torch.float64))
                miss = torch.cat(
                    [(ranges[b, q, p] - distance - OFFSET[0, q])[None], (paths.direction[b, q, p] - k) @ basis]
                )
                total = noise + jac @ covariance[b] @ jac.T
                law = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), total)
                odds = law.log_prob(miss) - unrelated
                if ground:
                    odds -= 6.0
                else:
                    odds += -8.0 + (0.0 if amplitude[b, q, p] > 0.25 * amplitude[b, q].max() else math.log(0.03))
                gated = miss @ torch.linalg.solve(total, miss) < 16.3
                first = ranges[b, q, p] - ranges[b, q, 1 - p] < 1.0
                ratio.append(float(odds) if gated and first else -math.inf)
            likely, second = sorted(ratio)[:1:-1]
            if abs(likely) < 0.1 or likely - second < 0.1:
                continue  # the two bases differ by second order
            decided += 1
            accepted += likely > 0
            by_ground += likely > 0 and ratio.index(likely) > 1
            assert int(found[b, q]) == (ratio.index(likely) if likely > 0 else -1)
    assert decided > 200
    assert 0.2 < accepted / decided < 0.9
    assert by_ground > 10
