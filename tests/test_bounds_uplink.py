"""Maps of the uplink's bound against a loop over single scenes whose user is drawn at the point."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sensing import runs
from sensing.bounds import Reason, uplink_bound
from sensing.bounds.uplink import Uplink
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.simulation import SceneSampler, Simulator
from tests.conftest import build_tiny
from tests.test_config import composed, defaults

DRAWS = 5
FIELDS = ("num_shared", "num_specific", "visibility", "min_views", "min_spacing_m", "clock_offset_std")


@pytest.fixture(scope="module")
def points(tiny):
    """Users in the room; the last two lie too near to a scatterer of draw 2, and of draw 4."""
    drawn = tiny.simulator.scenes("test", range(DRAWS)).scatterer_position
    near = drawn[[2, 4], [1, 5]] + torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
    return torch.cat([torch.tensor([[9.0, 11.0, 1.5], [20, 20, 1.2], [30, 12, 1.8]], dtype=torch.float64), near])


def single(tiny, point, draw):
    """Scene `draw` by a sampler whose region of users is one point."""
    law = tiny.simulator.sampler
    box = SceneSampler([point.tolist()] * 2, law.scatterer_region, **{name: getattr(law, name) for name in FIELDS})
    return Simulator(tiny.deployment, box, seed=3).scenes("test", [draw])


def test_draws_follow_the_law_of_the_scenes_around_each_user(tiny, points):
    together = tiny.simulator.sampler.sample_at(tiny.deployment, 3, "test", range(DRAWS), points)
    base = tiny.simulator.scenes("test", range(DRAWS))
    moved = 0
    for i, point in enumerate(points):
        for d in range(DRAWS):
            alone = single(tiny, point, d)
            assert torch.equal(together.ue_position[i, d], point)
            assert torch.equal(together.scatterer_position[i, d], alone.scatterer_position[0])
            assert torch.equal(together.visible[i, d], alone.visible[0])
            assert torch.equal(together.gain[i, d], together.gain[0, d])
            assert torch.equal(together.clock_offset[i, d], together.clock_offset[0, d])
            moved += not torch.equal(together.scatterer_position[i, d], base.scatterer_position[d])
    assert torch.equal(together.gain[0], base.gain), "no base scene of this seed has a scatterer near its own user"
    assert 2 <= moved < len(points) * DRAWS / 2
    apart = torch.linalg.vector_norm(together.scatterer_position - points[:, None, None], dim=-1)
    assert apart.min() >= tiny.simulator.sampler.min_ue_distance_m


@pytest.mark.parametrize("average", ["rms", "median"])
def test_equals_a_loop_over_scenes(tiny, points, average):
    base = tiny.simulator.scenes("test", range(DRAWS))
    pairs = sum(bool(seen) for scene in base.visible for station in scene for seen in station)
    noise_var = torch.full((1, 3), pairs / (DRAWS * 3) / 10**1.5, dtype=torch.float64)
    model = Uplink(tiny.simulator, snr_db=15.0, num_draws=DRAWS, average=average)
    found, asked = model.averages(points), model.point_bound(points)
    for i, point in enumerate(points):
        pebs = []
        for d in range(DRAWS):
            scene = single(tiny, point, d)._replace(gain=base.gain[d : d + 1])
            pebs.append(float(uplink_bound(scene, noise_var, tiny.deployment).ue_position_m))
        rms = math.sqrt(sum(value**2 for value in pebs) / DRAWS)
        assert float(found.rms_m[i]) == pytest.approx(rms, rel=1e-7)
        assert float(found.median_m[i]) == pytest.approx(sorted(pebs)[DRAWS // 2], rel=1e-7)
        assert asked.peb_m[i] == (found.rms_m if average == "rms" else found.median_m)[i]
    assert (asked.reason == 0).all()
    assert (found.unobservable == 0).all()


def test_no_point_depends_on_the_others_and_the_map_is_smooth(tiny, points):
    model = Uplink(tiny.simulator, num_draws=DRAWS)
    done = []
    together = model.point_bound(points[None].expand(2, -1, -1), progress=done.append)
    assert sum(done) == 2 * len(points)
    assert together.peb_m.shape == together.reason.shape == (2, len(points))
    for i, point in enumerate(points):
        assert torch.isclose(together.peb_m[1, i], model.point_bound(point).peb_m, rtol=1e-7)
    step = torch.tensor([1e-4, -1e-4, 1e-4], dtype=torch.float64)
    nearby = model.point_bound(points[:3] + step).peb_m
    assert torch.allclose(nearby, together.peb_m[0, :3], rtol=1e-3)
    assert not torch.equal(nearby, together.peb_m[0, :3])


def test_large_maps_are_computed_in_blocks(tiny, points, monkeypatch):
    whole = Uplink(tiny.simulator, num_draws=DRAWS).averages(points)
    monkeypatch.setattr("sensing.bounds.uplink.BLOCK", 11)
    monkeypatch.setattr("sensing.bounds.uplink.SCENES", 3)
    blocks = []
    parts = Uplink(tiny.simulator, num_draws=DRAWS).averages(points, progress=blocks.append)
    assert blocks == [2, 2, 1]
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-7)


def test_gradient_in_the_stations_places_equals_differences(tiny, points):
    def mean_square(place):
        simulator = Simulator(tiny.deployment._replace(bs_position=place), tiny.simulator.sampler, seed=3)
        return Uplink(simulator, num_draws=DRAWS).point_bound(points).peb_m.square().mean()

    place = tiny.deployment.bs_position.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean_square(place), place)
    for station, axis in ((0, 0), (1, 2), (2, 1)):
        step = torch.zeros_like(place)
        step[station, axis] = 1e-5
        with torch.no_grad():
            difference = (mean_square(place + step) - mean_square(place - step)) / 2e-5
        assert torch.isclose(gradient[station, axis], difference, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def flat(num_shared, **law):
    """A network whose offsets have no prior."""
    setup = build_tiny(num_shared, **law)
    setup.simulator.sampler.clock_offset_std = 3e-9
    prior = torch.tensor(math.inf, dtype=torch.float64)
    return Simulator(setup.deployment._replace(clock_offset_std=prior), setup.simulator.sampler, seed=3)


def test_snr_scales_the_bound_where_no_prior_speaks(points):
    low, high = (Uplink(flat(8), snr_db=snr, num_draws=DRAWS).point_bound(points) for snr in (0.0, 20.0))
    assert torch.allclose(low.peb_m, 10.0 * high.peb_m, rtol=1e-6)


def test_unobservable_points_are_infinite_with_their_reason(points):
    model = Uplink(flat(3), num_draws=DRAWS)  # three shared scatterers, four unknowns
    found, asked = model.averages(points), model.point_bound(points)
    assert torch.isinf(asked.peb_m).all()
    assert torch.isinf(found.median_m).all()
    assert (found.unobservable == 1).all()
    assert (asked.reason == Reason.SINGULAR).all()


def test_draws_that_leave_the_user_open_make_the_mean_square_infinite_and_the_median_not(points):
    simulator = flat(6, visibility=0.6, min_views=1)
    rms, median = (Uplink(simulator, 20.0, 9, average) for average in ("rms", "median"))
    share = rms.averages(points).unobservable
    assert ((share > 0) & (share < 0.5)).all()
    mean_square, middle = rms.point_bound(points), median.point_bound(points)
    assert torch.isinf(mean_square.peb_m).all()
    assert (mean_square.reason == Reason.SINGULAR | Reason.SOME_DRAWS).all()
    assert torch.isfinite(middle.peb_m).all()
    assert (middle.reason == 0).all()


def test_bad_input(tiny):
    for bad in ({"num_draws": 0}, {"num_draws": 1.5}, {"average": "mean"}, {"snr_db": math.inf}, {"snr_db": "high"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Uplink(tiny.simulator, **bad)
    model = Uplink(tiny.simulator, num_draws=1)
    with pytest.raises(ShapeError, match="position"):
        model.point_bound(torch.zeros(4, 2))
    with pytest.raises(DomainError, match="position"):
        model.point_bound(torch.full((4, 3), math.nan))


def test_configuration_builds_the_model_of_its_scene():
    config = composed("evaluate", "network=uplink", "scene=hall_hard", "network.num_draws=3", "network.snr_db=20")
    model = runs.Builder(config).network()
    assert isinstance(model, Uplink)
    assert torch.equal(model.bs_position, model.simulator.deployment.bs_position)
    assert model.simulator.sampler.num_shared == 6
    centre = torch.tensor([[20.0, 20.0, 1.5]], dtype=torch.float64)
    assert 0.001 < float(model.point_bound(centre).peb_m) < 1.0


def test_experiment_writes_the_map_of_the_model(tmp_path):
    small = ("network.num_draws=2", "task.num_points=[2,3]", "task.progress=false")
    config = composed("evaluate", "experiment=uplink_map", *small, output_dir=str(tmp_path))
    runs.evaluate(config)
    written = np.load(tmp_path / "coverage.npz")
    y, x = torch.meshgrid(torch.from_numpy(written["y_m"]), torch.from_numpy(written["x_m"]), indexing="ij")
    found = runs.Builder(config).network().point_bound(torch.stack([x, y, torch.full_like(x, 1.5)], -1))
    np.testing.assert_allclose(written["peb_m"], found.peb_m.numpy(), rtol=1e-7)
    np.testing.assert_allclose(written["x_m"], [10.5, 29.5])


def test_yaml_and_python_have_the_same_defaults():
    node = OmegaConf.to_container(composed("evaluate", "network=uplink").network)
    assert {key: value for key, value in node.items() if key not in ("_target_", "simulator")} == defaults(Uplink)
