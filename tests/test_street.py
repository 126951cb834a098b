"""The coarse stage in a street-like scene: most clusters are no points, but the work of further bounces."""

import pytest
import torch

from sensing.coarse.localization import CoarseLocalizer
from sensing.containers import PathEstimates
from tests.reference.oracle import single_path

SCENES, POINTS, STD_RANGE, STD_ANGLE = 6, 7, 0.05, 0.004
WALL_X, WALL_Y = -3.0, 43.0
LOCALIZER = {"multi_bounce": 0.8, "model_error": 0.05}


def mirrored(point, axis, at):
    """Mirror image in the plane where a coordinate has a value."""
    point = point.clone()
    point[..., axis] = 2.0 * at - point[..., axis]
    return point


@pytest.fixture(scope="module")
def street(hall):
    """Deployment, users [b xyz], offsets [b bs], and virtual scatterers [b k xyz] with their user legs [b k].

    Seven points (the first), of which four come again later (the user's leg reflected at a wall) and four mirrored (the
    station's leg reflected at the other wall), and two images of the user: 10 of 17 clusters are no points.
    """
    deployment = hall.deployment._replace(
        region=torch.tensor([[-50.0, -10, -1], [50, 90, 9]], dtype=torch.float64),
        ue_height_range=torch.tensor([1.0, 2.0], dtype=torch.float64),
    )
    generator = torch.Generator().manual_seed(0)

    def uniform(low, high, *shape):
        low, high = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    ue = uniform([8, 8, 1.3], [32, 32, 1.7], SCENES, 3)
    offset = 2.4 * torch.randn(SCENES, 4, generator=generator, dtype=torch.float64)
    points = uniform([2, 2, 0.5], [38, 38, 7.5], SCENES, POINTS, 3)
    left, back = mirrored(ue, 0, WALL_X), mirrored(ue, 1, WALL_Y)
    leg, detour = ((points - each[:, None]).norm(dim=-1) for each in (ue, left))
    nothing = torch.zeros(SCENES, 2, dtype=torch.float64)
    place = [points, points[:, :4], mirrored(points[:, 3:], 1, WALL_Y), torch.stack([left, back], 1)]
    return deployment, ue, offset, torch.cat(place, 1), torch.cat([leg, detour[:, :4], leg[:, 3:], nothing], 1)


def measured(place, legs, offset, deployment, amplitude=0.1, noise=1.0, seed=1):
    """Paths of virtual scatterers at all stations; slot k is scatterer k."""
    generator = torch.Generator().manual_seed(seed)
    leg = place[:, None] - deployment.bs_position[:, None]  # [b bs k xyz]
    distance = leg.norm(dim=-1)
    shift = noise * torch.randn(*distance.shape, 4, generator=generator, dtype=torch.float64)
    ranges = distance + legs[:, None] + offset[..., None] + STD_RANGE * shift[..., 0]
    direction = leg / distance[..., None] + STD_ANGLE * shift[..., 1:]
    paths = single_path(torch.remainder(ranges, deployment.range_ambiguity), direction, STD_RANGE, STD_ANGLE)
    return paths._replace(gain=amplitude * paths.gain)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_finds_the_user_though_most_clusters_are_no_points(street, noise):
    deployment, ue, offset, place, legs = street
    found = CoarseLocalizer(**LOCALIZER)(measured(place, legs, offset, deployment, noise=noise), deployment)
    assert (found.geometry.ue_position - ue).norm(dim=-1).max() < 0.5
    assert (found.geometry.offset_m - offset).abs().max() < 0.5
    assert (found.direct == -1).all()
    # what takes part are points: the slots that the points have, in all stations
    for b in range(SCENES):
        slots = found.path[b][found.path[b] >= 0]
        assert set(range(POINTS)) <= set(slots.tolist())
        assert (slots < POINTS).double().mean() > 0.8


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_finds_the_lines_of_sight(street, noise):
    """Two of the stations see the user."""
    deployment, ue, offset, place, legs = street
    reflected = measured(place, legs, offset, deployment, noise=noise)
    nothing = torch.zeros(SCENES, 1, dtype=torch.float64)
    straight = measured(ue[:, None], nothing, offset, deployment, 1.0, noise, seed=2)
    sees = torch.tensor([True, False, False, True])[:, None]
    keep = sees.expand(SCENES, 4, 1)
    straight = PathEstimates(
        *(field * keep.reshape(*keep.shape, *[1] * (field.ndim - 3)) for field in straight[:-1]), keep
    )
    paths = PathEstimates(*(torch.cat(pair, 2) for pair in zip(reflected, straight, strict=True)))
    found = CoarseLocalizer(**LOCALIZER, line_of_sight=True)(paths, deployment)
    last = place.shape[1]
    assert (found.direct[:, sees[:, 0]] == last).all()
    # elsewhere none, but for a point so close to the straight line, or to that by the ground, that it looks the same
    length = (place[:, None] - deployment.bs_position[:, None]).norm(dim=-1) + legs[:, None]
    below = mirrored(ue, 2, deployment.region[0, 2])
    lines = [(each[:, None] - deployment.bs_position).norm(dim=-1)[..., None] for each in (ue, below)]
    detour = torch.cat([each for line in lines for each in (length - line, torch.zeros_like(line))], -1)
    scene, station = ((found.direct >= 0) & ~sees[:, 0]).nonzero().unbind(-1)
    assert len(scene) < SCENES / 2
    assert (detour[scene, station, found.direct[scene, station]].abs() < 1.0).all()
    assert (found.path != last).all()  # a line of sight is no scatterer's path
    # a look-alike pulls a little
    fooled = torch.zeros(SCENES, dtype=torch.bool).index_fill(0, scene, True)
    error = (found.geometry.ue_position - ue).norm(dim=-1)
    assert error[~fooled].max() < 0.3
    assert error.max() < 0.5
    assert (found.geometry.offset_m - offset)[:, sees[:, 0]].abs().max() < 0.3
