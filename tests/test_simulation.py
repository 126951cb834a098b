"""Scenes: determinism, the laws they are drawn from, SNR and refused configurations."""

import math

import pytest
import torch

from sensing import arrays, ofdm
from sensing.containers import map_tensors
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.simulation import SceneSampler, Simulator, build_deployment
from sensing.simulation.sampler import scene_generator, unit_noise
from sensing.simulation.uplink import noise_variance
from tests.conftest import BANDWIDTH, build

BOX = [[3, 3, 1], [37, 37, 2]], [[1, 1, 0.5], [39, 39, 7.5]]


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_scene_does_not_depend_on_its_batch(hall):
    batch = hall.simulator.examples("test", [3, 7, 5], snr_db=10.0)
    for place, index in enumerate([3, 7, 5]):
        single = hall.simulator.examples("test", [index], snr_db=10.0)
        assert equal(map_tensors(batch.scene, lambda t, k=place: t[k : k + 1]), single.scene)
        # the product of a batch may be summed in another order than that of a single scene
        assert torch.allclose(batch.observation.y[place], single.observation.y[0], rtol=1e-12, atol=1e-12)


def test_scenes_differ_by_index_split_and_seed(hall):
    sampler, deployment = hall.simulator.sampler, hall.deployment
    draws = [
        Simulator(deployment, sampler, seed).examples(split, [index])
        for seed in (0, 1)
        for split in ("train", "val", "test", "sample")
        for index in (0, 1)
    ]
    positions = torch.cat([draw.scene.ue_position for draw in draws])
    assert len(positions.unique(dim=0)) == 16
    noise = torch.cat([draw.observation.y - draw.channel for draw in draws])
    assert len(torch.view_as_real(noise).flatten(1).unique(dim=0)) == 16


def test_geometry_and_noise_streams_are_separate():
    noise = torch.view_as_real(unit_noise((5,), 0, "test", [0])).flatten() * 2**0.5
    geometry = torch.from_numpy(scene_generator(0, "test", 0).standard_normal(10))
    assert not torch.isclose(noise, geometry).any()


def test_distances_hold(hall):
    scene, bs = hall.simulator.scenes("train", range(60)), hall.deployment.bs_position
    points = scene.scatterer_position
    apart = torch.cdist(points, points) + 1e9 * torch.eye(points.shape[1])
    assert apart.min() >= 2.0
    assert torch.cdist(points, bs.expand(60, -1, -1)).min() >= 3.0
    assert torch.cdist(points, scene.ue_position[:, None]).min() >= 1.5
    lower, upper = torch.tensor(BOX[1], dtype=torch.float64)
    assert ((points >= lower) & (points <= upper)).all()
    lower, upper = torch.tensor(BOX[0], dtype=torch.float64)
    assert ((scene.ue_position >= lower) & (scene.ue_position <= upper)).all()


def test_visibility_law(hall):
    scene, deployment = hall.simulator.scenes("train", range(60)), hall.deployment
    assert scene.visible.shape == (60, 4, 8 + 4 * 2)
    assert (scene.visible[..., :8].sum(-2) >= 2).all(), "min_views"
    owner = torch.arange(4).repeat_interleave(2)
    assert torch.equal(scene.visible[..., 8:], (owner == torch.arange(4)[:, None]).expand(60, -1, -1))
    leg = scene.scatterer_position[:, None] - deployment.bs_position[:, None]
    cosine = (leg * deployment.boresight[:, None]).sum(-1) / leg.norm(dim=-1)
    assert (cosine[scene.visible] >= 0.05).all(), "behind the array"
    assert 0.65 < scene.visible[..., :8].double().mean() < 0.85


def test_gains():
    rayleigh = build(8).simulator.scenes("train", range(60)).gain
    assert rayleigh.abs().square().mean() == pytest.approx(1.0, abs=0.06)
    assert rayleigh.mean().abs() < 0.05
    assert (rayleigh**2).mean().abs() < 0.06, "circular"
    constant = build(8, gains="constant_modulus").simulator.scenes("train", range(2)).gain
    assert torch.allclose(constant.abs(), torch.ones_like(constant.abs()))


@pytest.mark.parametrize("law", ["gaussian", "uniform"])
def test_clock_offset_deviation(law):
    offset = build(2, num_specific=0, clock_offsets=law).simulator.scenes("train", range(500)).clock_offset
    assert float(offset.std()) == pytest.approx(1 / BANDWIDTH, rel=0.05)
    assert abs(float(offset.mean())) < 0.1 / BANDWIDTH
    if law == "uniform":
        assert float(offset.abs().max()) <= math.sqrt(3) / BANDWIDTH


def test_clock_offset_choices():
    assert (build(2, clock_offsets="zero").simulator.scenes("train", range(3)).clock_offset == 0).all()
    other = build(2, clock_offset_std=5e-9).simulator
    narrow, wide = build(2).simulator.scenes("train", range(3)), other.scenes("train", range(3))
    assert torch.equal(narrow.ue_position, wide.ue_position), "only the offsets change with their deviation"
    assert torch.allclose(wide.clock_offset, narrow.clock_offset * 5e-9 * BANDWIDTH)
    flat = other.deployment._replace(clock_offset_std=torch.tensor(math.inf))
    with pytest.raises(ConfigError, match="clock_offset_std"):
        Simulator(flat, other.sampler).scenes("train", [0])
    given = SceneSampler(*BOX, clock_offset_std=1e-8)
    assert torch.isfinite(Simulator(flat, given).scenes("train", [0]).clock_offset).all()


def test_snr_definition_and_same_noise_at_all_snr(hall):
    low, high = (hall.simulator.examples("test", range(3), snr_db=x) for x in (-10.0, 30.0))
    assert torch.equal(low.channel, high.channel)
    for example, snr in ((low, -10.0), (high, 30.0)):
        variance = example.observation.noise_var
        power = torch.stack([h.abs().pow(2).sum() / h.numel() for h in example.channel])
        assert torch.allclose(power[:, None] / variance, torch.tensor(10 ** (snr / 10)).double().expand(3, 4))
        unit = (example.observation.y - example.channel) / variance.sqrt()[..., None, None]
        assert torch.allclose(unit, unit_noise(example.channel.shape[1:], 0, "test", range(3)), atol=1e-9)
        assert unit.abs().square().mean() == pytest.approx(1.0, abs=0.02)


def test_one_snr_per_scene(hall):
    snr = torch.tensor([0.0, 10.0, 20.0])
    variance = hall.simulator.examples("test", range(3), snr_db=snr).observation.noise_var
    for i in range(3):
        single = hall.simulator.examples("test", [i], snr_db=float(snr[i])).observation.noise_var
        assert torch.allclose(variance[i], single[0])


def test_a_silent_scene_has_no_snr():
    with pytest.raises(ConfigError, match="no scatterer is visible"):
        noise_variance(torch.zeros(1, 2, 3, 4, dtype=torch.complex128), 10.0)


def test_deployment_builder():
    kwargs = {
        "array": arrays.ula(4),
        "pilot_freq": ofdm.pilot_frequencies(16, 1e6, 1),
        "carrier_hz": 3e9,
        "clock_offset_std": 0.0,
    }
    deployment = build_deployment([[0, 0, 5], [10, 0, 5]], target=[5, 5, 0], region=[[0, 0, 0], [9, 9, 9]], **kwargs)
    assert float((deployment.antenna_local[1] - deployment.antenna_local[0]).norm()) == pytest.approx(
        299792458.0 / 3e9 / 2
    )
    assert float(deployment.bandwidth) == pytest.approx(16e6)
    assert float(deployment.pilot_spacing) == 1e6
    assert float(deployment.range_ambiguity) == pytest.approx(299.792458)
    with pytest.raises(ConfigError, match="target"):
        build_deployment([[0, 0, 5]], **kwargs)
    with pytest.raises(ConfigError, match="carrier_hz"):
        build_deployment([[0, 0, 5]], target=[1, 1, 1], **(kwargs | {"carrier_hz": -1.0}))
    with pytest.raises(DomainError, match="region"):
        build_deployment([[0, 0, 5]], target=[1, 1, 1], region=[[0, 0, 0], [0, 9, 9]], **kwargs)
    with pytest.raises(ShapeError, match="bs_rotation"):
        build_deployment([[0, 0, 5]], bs_rotation=torch.eye(3).expand(2, 3, 3), **kwargs)
    with pytest.raises(DomainError, match="target must not lie straight above"):
        build_deployment([[0, 0, 5]], target=[0, 0, 0], **kwargs)  # straight down: no horizontal boresight
    with pytest.raises(ShapeError, match="bs_position"):
        build_deployment([0, 0, 5], target=[1, 1, 1], **kwargs)
    for position, target, message in (
        ([[0, 0], [1, 1]], [1, 1, 1], "bs_position must be .*xyz"),
        ([[0, 0, 5], [1, 1]], [1, 1, 1], "bs_position must be a regular array"),
        ([[0, 0, 5]], [1, 1], "target must be .*xyz"),
        ([[0, 0, 5]], [[1, 1, 1], [2, 2, 2]], "target must be .*bs=1"),
    ):
        with pytest.raises(ShapeError, match=message):
            build_deployment(position, target=target, **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_shared": -1}, "num_shared must be"),
        ({"num_shared": 2.5}, "num_shared must be a whole number"),
        ({"num_specific": True}, "num_specific must be"),
        ({"min_views": -1}, "min_views must be"),
        ({"min_spacing_m": -1.0}, "min_spacing_m must be"),
        ({"min_ue_distance_m": float("nan")}, "min_ue_distance_m must be"),
        ({"visibility": "often"}, "visibility must be"),
        ({"num_shared": 0, "num_specific": 0}, "scatterer"),
        ({"visibility": 0.0}, "visibility must be"),
        ({"gains": "loud"}, "gains must be"),
        ({"clock_offsets": "late"}, "clock_offsets must be"),
        ({"clock_offset_std": -1.0}, "clock_offset_std"),
    ],
)
def test_bad_samplers(change, message):
    with pytest.raises(ConfigError, match=message):
        SceneSampler(*BOX, **change)


def test_bad_boxes_splits_and_indices(hall):
    with pytest.raises(ConfigError, match="ue_region"):
        SceneSampler([[3, 3, 3], [1, 1, 1]], BOX[1])
    with pytest.raises(ConfigError, match="split must be"):
        hall.simulator.scenes("exam", [0])
    with pytest.raises(ConfigError, match="index"):
        hall.simulator.scenes("test", [-1])


def test_infeasible_box_is_a_clear_error(hall):
    crowded = SceneSampler(BOX[0], [[10, 10, 1], [11, 11, 2]], num_shared=8)
    with pytest.raises(ConfigError, match="no room for a scatterer"):
        Simulator(hall.deployment, crowded).scenes("test", [0])
