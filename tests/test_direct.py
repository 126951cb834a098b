"""Lines of sight among other paths: what is found and what is not, and the odds against densities written out."""

import math

import pytest
import torch

from sensing.coarse.direct import lines_of_sight
from sensing.coarse.least_squares import Solution
from sensing.coarse.pairs import ray_pairs, region_box
from sensing.coarse.rays import Rays, without
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
    covariance, accepted, decided = torch.linalg.inv(information), 0, 0
    for b in range(count):
        for q in range(4):
            ratio = []
            for p in range(2):
                basis = tangent_basis(paths.direction[b, q, p])
                distance = leg[0, q].norm()
                k = leg[0, q] / distance
                jac = torch.zeros(3, 7, dtype=torch.float64)
                jac[0, :3], jac[0, 3 + q] = k, 1.0
                jac[1:, :3] = basis.T @ (torch.eye(3, dtype=torch.float64) - torch.outer(k, k)) / distance
                noise = torch.diag(torch.tensor([std_range**2, std_angle**2, std_angle**2], dtype=torch.float64))
                miss = torch.cat(
                    [(ranges[b, q, p] - distance - OFFSET[0, q])[None], (paths.direction[b, q, p] - k) @ basis]
                )
                total = noise + jac @ covariance[b] @ jac.T
                law = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), total)
                odds = law.log_prob(miss) - unrelated - 8.0
                odds += 0.0 if amplitude[b, q, p] > 0.25 * amplitude[b, q].max() else math.log(0.03)
                gated = miss @ torch.linalg.solve(total, miss) < 16.3
                first = ranges[b, q, p] - ranges[b, q, 1 - p] < 1.0
                ratio.append(float(odds) if gated and first else -math.inf)
            likely = max(ratio)
            if abs(likely) < 0.1 or abs(ratio[0] - ratio[1]) < 0.1:
                continue  # the two bases differ by second order
            decided += 1
            accepted += likely > 0
            assert int(found[b, q]) == (ratio.index(likely) if likely > 0 else -1)
    assert decided > 200
    assert 0.2 < accepted / decided < 0.9
