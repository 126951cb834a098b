"""Sites with known or learned walls: mirrored stations against reflections point by point, and what they locate."""

from itertools import pairwise

import pytest
import torch

from sensing.coarse.localization import CoarseLocalizer
from sensing.coarse.mirrors import explain, mirrors, possible
from sensing.coarse.site_map import Bounces, learn_planes, possible_bounces
from sensing.containers import PathEstimates
from sensing.errors import ConfigError
from tests.reference.oracle import single_path

WALLS = torch.tensor([[0.0, 1.0, 0.0, -9.0], [0.6, -0.8, 0.0, -16.0]], dtype=torch.float64)
STD_RANGE, STD_ANGLE = 0.05, 0.004


@pytest.fixture(scope="module")
def deployment(hall):
    return hall.deployment._replace(
        bs_position=torch.tensor([[-30.0, -6, 10], [32, 5, 10], [0, 7, 12]], dtype=torch.float64),
        bs_rotation=hall.deployment.bs_rotation[:3],
        region=torch.tensor([[-45.0, -30, 0], [45, 30, 17]], dtype=torch.float64),
        ue_height_range=torch.tensor([1.0, 2.0], dtype=torch.float64),
    )


def reflected(point, plane):
    """Mirror image of a point in a plane (n, d)."""
    n, d = plane[:3], plane[3]
    return point - 2.0 * (n @ point - d) * n


def bounced(station, user, planes):
    """Points where the path station - planes in turn - user bounces, by images of the user, last plane first.

    None where that path does not exist: a plane would be met beyond the user's image, or behind.
    """
    if len(planes) == 0:
        return []
    image = user
    for plane in reversed(planes):
        image = reflected(image, plane)
    n, d = planes[0][:3], planes[0][3]
    along = image - station
    share = (d - n @ station) / (n @ along)
    if not 0 < share < 1:
        return None
    hit = station + share * along
    further = bounced(hit, user, planes[1:])
    return None if further is None else [hit, *further]


@pytest.mark.parametrize("number", range(3))
def test_mirrors_are_reflections(deployment, number):
    """Length and direction of every mirror's path, against the polygon of its bounces."""
    images = mirrors(WALLS, deployment)
    floor = torch.tensor([0.0, 0, 1, 0], dtype=torch.float64)
    planes = [*WALLS, floor]
    chains = [[], [0], [1], [2], [0, 1], [0, 2], [1, 0], [1, 2]]  # by the floor first is the same as by it last
    assert len(images.station) == len(chains)
    station, user = deployment.bs_position[number], torch.tensor([3.0, -2.0, 1.5], dtype=torch.float64)
    compared = 0
    for mirror, chain in enumerate(chains):
        way = user - images.station[mirror, number]
        between = bounced(station, user, [planes[plane] for plane in chain])
        if between is None:
            continue
        compared += 1
        points = [station, *between, user]
        length = sum((b - a).norm() for a, b in pairwise(points))
        assert torch.isclose(way.norm(), length)
        first = (points[1] - station) / (points[1] - station).norm()
        assert torch.allclose(images.linear[mirror].mT @ (way / way.norm()), first)
    assert compared >= 5


def test_nothing_is_seen_through_a_wall(deployment):
    images = mirrors(WALLS, deployment)
    user = torch.tensor([[0.0, 0, 1.5], [0.0, -12, 1.5]], dtype=torch.float64)  # in front of and behind the first wall
    ok = possible(user, images, deployment)
    assert ok[0].all()
    assert torch.equal(ok[1].all(-1), ~images.meets[:, 0])


def traced(ue, offset, deployment, planes, clutter, seed, noise=1.0):
    """Paths by the planes one at a time and by the floor, and clutter; [b bs path]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ranges, directions = [], []
    for plane in [*planes, torch.tensor([0.0, 0, 1, 0], dtype=torch.float64)]:
        image = torch.stack([reflected(b, plane) for b in deployment.bs_position])
        way = ue[:, None] - image
        n = plane[:3]
        ranges.append(way.norm(dim=-1))
        k = way / way.norm(dim=-1, keepdim=True)
        directions.append(k - 2.0 * (k @ n)[..., None] * n)
    for _ in range(clutter):
        k = torch.nn.functional.normalize(normal(len(ue), 3, 3), dim=-1)
        directions.append(k)
        ranges.append((ue[:, None] - deployment.bs_position).norm(dim=-1) + 30.0 * normal(len(ue), 3).abs() + 1.0)
    range_m, direction = torch.stack(ranges, -1) + offset[..., None], torch.stack(directions, -2)
    range_m = range_m + noise * STD_RANGE * normal(*range_m.shape)
    direction = torch.nn.functional.normalize(direction + noise * STD_ANGLE * normal(*direction.shape), dim=-1)
    return single_path(torch.remainder(range_m, deployment.range_ambiguity), direction, STD_RANGE, STD_ANGLE)


def drawn(scenes, seed):
    generator = torch.Generator().manual_seed(seed)
    low, high = (torch.tensor(each, dtype=torch.float64) for each in ([-20.0, -7, 1], [20, 0, 2]))
    ue = low + (high - low) * torch.rand(scenes, 3, generator=generator, dtype=torch.float64)
    return ue, 3.0 * torch.randn(scenes, 3, generator=generator, dtype=torch.float64)


def same_plane(found, wanted):
    """Normals may point either way."""
    unit = found / found[:3].norm()
    sign = torch.sign(unit[:3] @ wanted[:3])
    return (sign * unit[:3] - wanted[:3]).norm() < 0.02 and abs(float(sign * found[3] - wanted[3])) < 0.15


def test_walls_are_learned_from_known_users(deployment):
    ue, offset = drawn(20, 0)
    localizer = CoarseLocalizer(multi_bounce=0.8, model_error=0.05, walls=4)
    assert localizer.learn_site(traced(ue, offset, deployment, WALLS, 5, 1), ue, offset, deployment) == 2
    for wall in WALLS:
        assert any(same_plane(plane, wall) for plane in localizer.planes[:2])
    unknown = torch.full_like(ue, torch.nan)
    half = torch.where(torch.arange(20)[:, None] < 10, ue, unknown)
    assert localizer.learn_site(traced(ue, offset, deployment, WALLS, 5, 1), half, offset, deployment) == 2
    with pytest.raises(ConfigError, match="two scenes"):
        localizer.learn_site(traced(ue, offset, deployment, WALLS, 5, 1), unknown, offset, deployment)


def test_scatterers_are_no_walls(deployment):
    ue, offset = drawn(20, 0)
    found = possible_bounces(traced(ue, offset, deployment, [], 12, 1), ue, offset, deployment)
    assert (learn_planes(found, 20, 3) == 0).all()
    nothing = Bounces(found.point[:0], found.normal[:0], found.scene[:0])
    assert (learn_planes(nothing, 20, 3) == 0).all()


def test_mirrors_locate_where_nothing_is_shared(deployment):
    """Every path is a reflection or clutter: no two stations share a scatterer, one user is where the walls say."""
    ue, offset = drawn(4, 7)
    paths = traced(ue, offset, deployment, WALLS, 5, 3)
    known = CoarseLocalizer(multi_bounce=0.8, model_error=0.05, line_of_sight=True, walls=2)
    known.planes.copy_(WALLS)
    found = known(paths, deployment)
    assert ((found.geometry.ue_position - ue).norm(dim=-1) < 0.6).all()
    assert ((found.geometry.offset_m - offset).abs() < 0.5).all()
    alone = known(PathEstimates(*(field[1:2] for field in paths)), deployment)
    assert torch.allclose(alone.geometry.ue_position[0], found.geometry.ue_position[1], atol=1e-6)
    # the truth itself: most of the evidence is that of its nine reflections
    images = mirrors(WALLS, deployment)
    told = explain(ue, offset, paths, images, deployment, 0.1)
    assert (told.share.sum((1, 2, 3)) > 7).all()


def test_no_walls_is_the_classical_localizer(deployment):
    ue, offset = drawn(3, 5)
    paths = traced(ue, offset, deployment, WALLS, 5, 4)
    settings = {"multi_bounce": 0.8, "model_error": 0.05, "line_of_sight": True}
    with_room, without = (CoarseLocalizer(**settings, walls=walls)(paths, deployment) for walls in (3, 0))
    assert torch.equal(with_room.geometry.ue_position, without.geometry.ue_position)
    assert torch.equal(with_room.flags, without.flags)
    assert not CoarseLocalizer().state_dict()
    with pytest.raises(ConfigError, match="walls must be"):
        CoarseLocalizer(walls=2)
