"""OMP and sparse Bayesian learning on the location grid, against dense dictionaries and the truth."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sensing.baselines import CloudGrid, GenieLmmse, GridOmp, GridSbl, RegionGrid
from sensing.baselines.location_grid import Candidates, grid_operator
from sensing.coarse.detection import PathDetector
from sensing.coarse.localization import CoarseLocalizer
from sensing.containers import Example, Geometry, PathEstimates, map_tensors
from sensing.errors import ConfigError, ShapeError
from sensing.metrics import nmse_db
from sensing.units import SPEED_OF_LIGHT


def true_geometry(example: Example) -> Geometry:
    """The scatterers that someone sees as located nodes, without free paths."""
    scene = example.scene
    seen = scene.visible.any(-2)
    bs = scene.visible.shape[-2]
    return Geometry(
        scene.ue_position,
        SPEED_OF_LIGHT * scene.clock_offset,
        scene.scatterer_position,
        seen,
        scene.visible,
        torch.zeros(len(seen), bs, 1, dtype=torch.float64),
        torch.ones(len(seen), bs, 1, 3, dtype=torch.float64),
        torch.zeros(len(seen), bs, 1, dtype=torch.bool),
    )


class Knowing(NamedTuple):
    """A coarse stage that returns a given geometry with what another one thinks of it."""

    geometry: Geometry

    def __call__(self, paths, deployment):
        return CoarseLocalizer()(paths, deployment)._replace(geometry=self.geometry)


@pytest.fixture(scope="module")
def detected(hall_hard) -> tuple[Example, PathEstimates]:
    example = hall_hard.simulator.examples("val", range(4), 10.0)
    return example, PathDetector()(example.observation, hall_hard.deployment)


def resolution(deployment) -> float:
    """c over the bandwidth of 64 evenly spaced pilots [m]."""
    spacing = float(deployment.pilot_freq[1] - deployment.pilot_freq[0])
    return SPEED_OF_LIGHT / (64 * spacing)


def dense_dictionary(points: Tensor, geometry: Geometry, deployment, scene: int, q: int) -> Tensor:
    """Phi of one station entry by entry from equations 1.2 to 1.4, over (antenna, subcarrier)."""
    leg = points - deployment.bs_position[q]
    length = leg.norm(dim=-1) + (points - geometry.ue_position[scene]).norm(dim=-1) + geometry.offset_m[scene, q]
    k = leg / leg.norm(dim=-1, keepdim=True)
    element = deployment.antenna_local @ deployment.bs_rotation[q].T
    steering = torch.exp(2j * torch.pi * (element @ k.T) * deployment.carrier_hz / SPEED_OF_LIGHT)
    delay = torch.exp(-2j * torch.pi * deployment.pilot_freq[:, None] * length / SPEED_OF_LIGHT)
    return torch.stack([torch.outer(steering[:, g], delay[:, g]).flatten() for g in range(len(points))], -1)


def test_grid_operator_equals_the_dense_dictionary(tiny):
    example = tiny.simulator.examples("val", range(2), 10.0)
    geometry = true_geometry(example)
    points = 5 + 30 * torch.rand(2, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:] = False
    operator = grid_operator(Candidates(points, mask), geometry, tiny.deployment)
    y = example.observation.y
    for i in range(2):
        for q in range(3):
            phi = dense_dictionary(points[i], geometry, tiny.deployment, i, q) * mask[i]
            torch.testing.assert_close(operator.rmatvec(y)[i, q], phi.mH @ y[i, q].flatten(), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(operator.gram()[i, q], phi.mH @ phi, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "steps", "count"), [("cross", 0, 1), ("cross", 2, 13), ("cube", 1, 27)])
def test_clouds_surround_the_coarse_scatterers_and_the_bounces_of_free_paths(hall_hard, shape, steps, count):
    example = hall_hard.simulator.examples("val", range(3), 10.0)
    scene, deployment = example.scene, hall_hard.deployment
    geometry = true_geometry(example)
    # the last scatterer of every scene is known by its path from one station alone, another path is no single bounce
    last = scene.scatterer_position[:, -1]
    leg = last[:, None, :] - deployment.bs_position
    length = leg.norm(dim=-1) + (last - scene.ue_position).norm(dim=-1)[:, None] + geometry.offset_m
    length[:, 1] = geometry.offset_m[:, 1] + 0.5
    direction = torch.nn.functional.normalize(leg, dim=-1)
    owner = torch.arange(4) < 2
    node_mask = geometry.node_mask.clone()
    node_mask[:, -1] = False
    geometry = geometry._replace(
        node_mask=node_mask,
        free_range_m=length[..., None],
        free_direction=direction[..., None, :],
        free_mask=owner[None, :, None].expand(3, 4, 1),
    )
    grid = CloudGrid(0.6 / resolution(deployment), steps, shape)(geometry, deployment)
    assert int(grid.mask.sum(-1).max()) == grid.mask.shape[-1], "no padding that no scene needs"
    for i in range(3):
        wanted = torch.cat([scene.scatterer_position[i, node_mask[i]], last[i : i + 1]])
        found = grid.position[i, grid.mask[i]].reshape(len(wanted), count, 3)
        torch.testing.assert_close(found.mean(1), wanted, rtol=0, atol=1e-6)
        away = (found - wanted[:, None]).abs()
        assert float(away.max()) == pytest.approx(0.6 if steps else 0.0, abs=1e-6)
        if steps:
            gaps = torch.cdist(found[0], found[0]) + 9 * torch.eye(count)
            torch.testing.assert_close(gaps.amin(-1), torch.full((count,), 0.6 / steps).double(), rtol=0, atol=1e-6)


def test_a_cloud_scales_with_the_resolution(hall_hard, detected):
    """Four times fewer hertz between the pilots: a cloud four times as wide around the same points."""
    geometry, deployment = true_geometry(detected[0]), hall_hard.deployment
    narrow = deployment._replace(pilot_freq=deployment.pilot_freq / 4)
    wide, wider = (CloudGrid()(geometry, each).position.unflatten(-2, (-1, 7)) for each in (deployment, narrow))
    torch.testing.assert_close(wider.mean(-2), wide.mean(-2))
    torch.testing.assert_close(wider - wider.mean(-2, keepdim=True), 4 * (wide - wide.mean(-2, keepdim=True)))


def test_region_grid_fills_the_region(hall_hard, detected):
    geometry = true_geometry(detected[0])
    grid = RegionGrid(2.0)(geometry, hall_hard.deployment)
    assert grid.position.shape == (4, 20 * 20 * 4, 3)
    assert grid.mask.all()
    low, high = hall_hard.deployment.region
    torch.testing.assert_close(grid.position.amin((0, 1)), low + 1.0)
    torch.testing.assert_close(grid.position.amax((0, 1)), high - 1.0)
    nearest = torch.cdist(grid.position[0, :50], grid.position[0]).topk(2, largest=False)[0][:, 1]
    torch.testing.assert_close(nearest, torch.full((50,), 2.0, dtype=nearest.dtype))


@pytest.mark.parametrize("estimator", [GridOmp, GridSbl])
def test_with_the_true_points_the_channel_is_nearly_the_genies(hall_hard, detected, estimator):
    example, paths = detected
    knowing = Knowing(true_geometry(example))
    found = estimator(localizer=knowing, grid=CloudGrid(steps=0))(example.observation, hall_hard.deployment, paths)
    genie = GenieLmmse()(example.observation, hall_hard.deployment, truth=example)
    gap = nmse_db(found.channel, example.channel) - nmse_db(genie.channel, example.channel)
    # a point that is collinear with another in one station may be taken for it there: 1 dB more in one scene
    assert float(gap.max()) < 2.0
    assert float(gap.median()) < 0.2
    # no strong path is missed, and of the points that a station does not see nearly none is taken
    visible, support = example.scene.visible, torch.zeros_like(example.scene.visible)
    for i, seen in enumerate(visible.any(-2)):
        support[i][:, seen] = found.support[i, :, : int(seen.sum())] > 0
    assert bool(support[visible & (example.scene.gain.abs() > 0.3)].all())
    assert int((support & ~visible).sum()) <= 0.03 * int((~visible).sum())


@pytest.mark.parametrize(
    "estimator", [GridOmp(), GridOmp(rule="ols", name="ols"), GridSbl()], ids=lambda each: each.name
)
def test_returns_gains_that_make_the_channel_and_no_location_of_its_own(hall_hard, detected, estimator):
    example, paths = detected
    found = estimator(example.observation, hall_hard.deployment, paths)
    coarse = CoarseLocalizer()(paths, hall_hard.deployment)
    assert found.ue_position is None
    assert found.clock_offset is None
    assert found.covariance is None
    assert torch.equal(found.flags, coarse.flags)
    for i in range(2):
        phi = dense_dictionary(found.scatterer_position[i], coarse.geometry, hall_hard.deployment, i, 3)
        channel = (phi @ found.gain[i, 3]).reshape(found.channel.shape[-2:])
        torch.testing.assert_close(found.channel[i, 3], channel, rtol=1e-8, atol=1e-8)
    assert torch.equal(found.scatterer_mask, (found.support > 0).any(-2))
    if estimator.name != "em_sbl":
        assert not found.gain[found.support == 0].any()
    alone = estimator(
        map_tensors(example.observation, lambda field: field[2:3]),
        hall_hard.deployment,
        PathEstimates(*(field[2:3] for field in paths)),
    )
    torch.testing.assert_close(alone.channel[0], found.channel[2], rtol=1e-6, atol=1e-8)


def test_omp_stops_where_it_is_told(hall_hard, detected):
    example, paths = detected
    y, noise_var, *_ = example.observation

    def run(**settings):
        found = GridOmp(**settings)(example.observation, hall_hard.deployment, paths)
        return found.support.sum(-1), (y - found.channel).abs().square().sum((-2, -1)) / noise_var

    count, _ = run(max_atoms=3, peak=0.0)
    assert count.unique().tolist() == [3.0]
    count, left = run(max_atoms=60, peak=0.0, residual=3.0)
    entries = y.shape[-2] * y.shape[-1]
    assert bool((left <= entries + 3.0 * entries**0.5).all())
    assert count.min() < count.max()


def test_runs_its_own_front_end(hall_hard, detected):
    example, paths = detected
    shared = GridOmp()(example.observation, hall_hard.deployment, paths)
    own = GridOmp()(example.observation, hall_hard.deployment)
    torch.testing.assert_close(own.channel, shared.channel, rtol=1e-9, atol=1e-9)


def test_without_any_path_the_channel_is_zero(hall_hard, detected):
    example, paths = detected
    none = paths._replace(mask=torch.zeros_like(paths.mask))
    for estimator in (GridOmp(), GridSbl()):
        found = estimator(example.observation, hall_hard.deployment, none)
        assert not found.channel.any()
        assert bool((found.flags != 0).all())


def test_bad_settings_are_refused(hall_hard, detected):
    for build, message in (
        (lambda: CloudGrid(0.0), "extent > 0"),
        (lambda: CloudGrid(1.0, -1), "steps >= 0"),
        (lambda: CloudGrid(shape="ball"), "shape must be cross or cube"),
        (lambda: RegionGrid(-1.0), "spacing_m must be positive"),
        (lambda: GridOmp(max_atoms=0), "max_atoms >= 1"),
        (lambda: GridOmp(rule="mp"), "rule must be one of"),
        (lambda: GridSbl(update="newton"), "update must be one of"),
    ):
        with pytest.raises(ConfigError, match=message):
            build()
    observation = detected[0].observation
    with pytest.raises(ShapeError, match="y must be"):
        GridOmp()(type(observation)(observation.y[0], observation.noise_var[0]), hall_hard.deployment)
