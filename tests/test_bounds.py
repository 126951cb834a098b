"""The bound against a dense Fisher information by automatic differentiation, limits, and counting of unknowns."""

import pytest
import torch

from sensing import arrays
from sensing.bounds import uplink_bound, uplink_information
from sensing.bounds.asynchronous import shared_scatterers
from sensing.containers import Scene
from sensing.errors import DomainError, ShapeError
from tests.conftest import BANDWIDTH, build, build_tiny
from tests.reference import slow

INF = float("inf")


def one(scene: Scene, index: int) -> Scene:
    return Scene(*(field[index] for field in scene))


def with_std(deployment, std):
    return deployment._replace(clock_offset_std=torch.tensor(std, dtype=torch.float64))


def noise(scene, value=0.1):
    return torch.full(scene.clock_offset.shape, value, dtype=torch.float64)


@pytest.mark.parametrize("std", [3e-11, 3e-9, 3e-7, INF])
@pytest.mark.parametrize("height", [None, [0.5, 3.0]])
def test_equals_the_dense_autograd_information(tiny, std, height):
    deployment = with_std(tiny.deployment, std)
    if height:
        deployment = deployment._replace(ue_height_range=torch.tensor(height, dtype=torch.float64))
    example = tiny.simulator.examples("test", range(2), snr_db=torch.tensor([0.0, 20.0]))
    bound = uplink_bound(example.scene, example.observation.noise_var, deployment)
    prior = torch.tensor([INF, INF, 2.5 / 12**0.5 if height else INF] + 3 * [slow.C * std], dtype=torch.float64)
    for i in range(2):
        full = slow.covariance(one(example.scene, i), example.observation.noise_var[i], deployment, prior)
        n = bound.covariance.shape[-1]
        scale = full.diagonal()[:n].sqrt()
        difference = (bound.covariance[i] - full[:n, :n]) / scale / scale[:, None]
        assert difference.abs().max() < 1e-8
        peb = full[:3, :3].trace().sqrt()
        assert torch.isclose(bound.ue_position_m[i], peb, rtol=1e-8)
        assert torch.allclose(bound.clock_offset_s[i], scale[3:6] / slow.C, rtol=1e-8)
        assert torch.allclose(bound.scatterer_m[i], scale[6:].reshape(-1, 3).norm(dim=-1), rtol=1e-8)


def test_equals_the_dense_information_in_the_hall(hall_hard):
    example = hall_hard.simulator.examples("test", [5])
    bound = uplink_bound(example.scene, example.observation.noise_var, hall_hard.deployment)
    prior = torch.tensor(3 * [INF] + 4 * [slow.C / BANDWIDTH], dtype=torch.float64)
    full = slow.covariance(one(example.scene, 0), example.observation.noise_var[0], hall_hard.deployment, prior)
    assert torch.isclose(bound.ue_position_m[0], full[:3, :3].trace().sqrt(), rtol=1e-8)


def test_small_prior_is_the_synchronous_bound(hall_hard):
    scene = hall_hard.simulator.scenes("test", range(4))
    known = uplink_bound(scene, noise(scene), with_std(hall_hard.deployment, 0.0))
    information = uplink_information(scene, noise(scene), hall_hard.deployment)
    keep = [0, 1, 2, *range(7, information.shape[-1])]  # offsets known: their rows are struck out
    struck = information[:, keep][:, :, keep]
    scale = struck.diagonal(dim1=-2, dim2=-1).rsqrt()
    inverse = torch.linalg.inv(struck * scale[:, :, None] * scale[:, None, :]) * scale[:, :, None] * scale[:, None, :]
    peb = inverse.diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1).sqrt()
    assert torch.allclose(known.ue_position_m, peb, rtol=1e-8)
    assert (known.clock_offset_s == 0).all()
    tight = uplink_bound(scene, noise(scene), with_std(hall_hard.deployment, 1e-15))
    assert torch.allclose(tight.ue_position_m, peb, rtol=1e-6)


def test_grows_with_the_prior_width_and_saturates(hall):
    scene = hall.simulator.scenes("test", range(8))
    widths = [0.0, 0.01, 0.1, 1.0, 10.0, 100.0, INF]
    peb = torch.stack(
        [uplink_bound(scene, noise(scene), with_std(hall.deployment, w / BANDWIDTH)).ue_position_m for w in widths]
    )
    assert (peb.diff(dim=0) >= -1e-9 * peb[:-1]).all()
    assert (peb[1] > peb[0]).all()
    assert torch.allclose(peb[3], peb[6], rtol=2e-2), (
        "eight shared scatterers measure the offsets better than the prior knows"
    )


def test_scales_with_the_noise_and_the_gains(hall):
    scene = hall.simulator.scenes("test", range(3))
    deployment = with_std(hall.deployment, INF)
    base = uplink_bound(scene, noise(scene), deployment).ue_position_m
    assert torch.allclose(uplink_bound(scene, noise(scene, 0.4), deployment).ue_position_m, 2 * base, rtol=1e-6)
    louder = scene._replace(gain=1e-5 * scene.gain)
    assert torch.allclose(uplink_bound(louder, noise(scene, 1e-11), deployment).ue_position_m, base, rtol=1e-6)


def test_batch_equals_singles(hall):
    scene = hall.simulator.scenes("test", range(5))
    batch = uplink_bound(scene, noise(scene), hall.deployment)
    for i in range(5):
        single = uplink_bound(one(scene, i), noise(scene)[i], hall.deployment)
        for together, alone in zip(batch, single, strict=True):
            assert torch.allclose(together[i].double(), alone.double(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("num_shared", range(1, 7))
def test_nullity_of_scatterers_seen_by_all(num_shared):
    setup = build_tiny(num_shared, visibility=1.0, min_boresight_cos=-1.0)
    scene = setup.simulator.scenes("test", range(6))
    bound = uplink_bound(scene, noise(scene), with_std(setup.deployment, INF))
    assert (bound.num_shared == num_shared).all()
    assert (bound.rank_deficiency == max(0, 4 - num_shared)).all()
    assert (bound.observable == (num_shared >= 4)).all()
    assert not torch.isnan(bound.covariance).any()


def test_nullity_follows_the_sharing_graph():
    """Equation 1.13: 3 + groups unknowns, one equation per shared point; lone stations stay open."""
    setup = build(6)
    scene = setup.simulator.scenes("test", range(40))
    keep = torch.rand(scene.visible.shape, generator=torch.Generator().manual_seed(0)) < 0.65
    scene = scene._replace(visible=scene.visible & keep)
    bound = uplink_bound(scene, noise(scene), with_std(setup.deployment, INF))
    for i in range(40):
        groups, shared = brute_force_groups(scene.visible[i])
        redundancy = sum(len(group[1]) - 1 for group in groups if group[1])
        lone = sum(1 for group in groups if not group[1])
        assert bound.num_shared[i] == shared
        assert bound.redundancy[i] == redundancy
        assert bound.rank_deficiency[i] == max(0, 3 - redundancy) + lone
        assert bound.observable[i] == (redundancy >= 3)
        for stations, points in groups:
            if not points:  # only private scatterers: the clock and they are open, whatever the user
                assert torch.isinf(bound.clock_offset_s[i, list(stations)]).all()
                seen = scene.visible[i, list(stations)].any(0)
                assert torch.isinf(bound.scatterer_m[i, seen]).all()
    assert not torch.isnan(bound.covariance).any()
    assert not torch.isnan(bound.scatterer_m).any()


def brute_force_groups(visible):
    """Connected groups as (stations, shared points), by merging sets."""
    shared = [n for n in range(visible.shape[1]) if int(visible[:, n].sum()) >= 2]
    groups = [({q}, set()) for q in range(visible.shape[0])]
    for n in shared:
        stations = set(visible[:, n].nonzero().flatten().tolist())
        hit = [group for group in groups if group[0] & stations]
        merged = (set().union(*(g[0] for g in hit)), set().union(*(g[1] for g in hit)) | {n})
        groups = [group for group in groups if group not in hit] + [merged]
    return groups, len(shared)


def test_two_unconnected_pairs_of_stations():
    """Two parts with 2 + 2 shared scatterers: one direction is open; with 3 + 3: none (stated in EQUATIONS 1.13)."""
    for per_pair, nullity in ((2, 1), (3, 0)):
        visible = torch.zeros(4, 2 * per_pair, dtype=torch.bool)
        visible[:2, :per_pair] = visible[2:, per_pair:] = True
        setup = build(2 * per_pair, visibility=1.0, num_specific=0, min_boresight_cos=-1.0)
        scene = setup.simulator.scenes("test", range(3))
        scene = scene._replace(visible=visible.expand(3, -1, -1))
        bound = uplink_bound(scene, noise(scene), with_std(setup.deployment, INF))
        assert (bound.rank_deficiency == nullity).all()
        assert (bound.redundancy == 2 * (per_pair - 1)).all()


def test_bad_scenes_do_not_hurt_their_neighbours(hall):
    scene = hall.simulator.scenes("test", range(4))
    visible = scene.visible.clone()
    visible[1] = False  # nothing is seen
    visible[2, 3] = False  # a blind station
    bound = uplink_bound(scene._replace(visible=visible), noise(scene), hall.deployment)
    whole = uplink_bound(scene, noise(scene), hall.deployment)
    assert torch.allclose(bound.ue_position_m[[0, 3]], whole.ue_position_m[[0, 3]], rtol=1e-8)
    assert bound.observable.tolist() == [True, False, True, True]
    assert torch.isinf(bound.ue_position_m[1])
    assert torch.isinf(bound.scatterer_m[1]).all()
    std = hall.deployment.clock_offset_std
    assert torch.allclose(bound.clock_offset_s[1], std.expand(4)), "only the prior speaks"
    assert torch.isclose(bound.clock_offset_s[2, 3], std)
    assert torch.isfinite(bound.ue_position_m[2])
    assert not any(torch.isnan(field).any() for field in bound if field.is_floating_point())


def test_coincident_scatterers_are_reported_not_raised(hall):
    scene = hall.simulator.scenes("test", range(2))
    position = scene.scatterer_position.clone()
    position[0, 1] = position[0, 0]
    visible = scene.visible.clone()
    visible[0, :, 1] = visible[0, :, 0]
    bound = uplink_bound(scene._replace(scatterer_position=position, visible=visible), noise(scene), hall.deployment)
    assert torch.isfinite(bound.ue_position_m[1])
    assert not torch.isnan(bound.ue_position_m).any()
    assert not torch.isnan(bound.scatterer_m).any()


def test_linear_arrays_leave_private_scatterers_open_but_not_the_user():
    """A horizontal line measures one angle: shared scatterers are still located, those of one station are not."""
    setup = build_tiny(8, visibility=1.0, min_boresight_cos=-1.0)
    deployment = setup.deployment._replace(
        antenna_local=arrays.ula(6) * setup.deployment.wavelength, bs_rotation=facing_turned(setup.deployment)
    )
    scene = setup.simulator.scenes("test", range(3))
    bound = uplink_bound(scene, noise(scene), deployment)
    assert torch.isinf(bound.scatterer_m[:, 8:]).all()
    assert torch.isfinite(bound.scatterer_m[:, :8]).all()
    assert torch.isfinite(bound.clock_offset_s).all()
    wide = torch.full((39,), 1e5, dtype=torch.float64)  # a prior of 100 km stands for none
    wide[3:6] = slow.C * deployment.clock_offset_std
    for i in range(3):
        full = slow.covariance(one(scene, i), noise(scene)[i], deployment, wide)
        assert torch.isclose(bound.ue_position_m[i], full[:3, :3].trace().sqrt(), rtol=1e-5)


def facing_turned(deployment):
    """The stations' poses rolled about their boresights by different angles, so that their lines differ."""
    angle = torch.tensor([0.0, 0.6, 1.2], dtype=torch.float64)
    roll = torch.zeros(3, 3, 3, dtype=torch.float64)
    roll[:, 0, 0] = 1
    roll[:, 1, 1] = roll[:, 2, 2] = angle.cos()
    roll[:, 2, 1], roll[:, 1, 2] = angle.sin(), -angle.sin()
    return deployment.bs_rotation @ roll


def test_known_height_helps_and_can_be_switched_off(hall_hard):
    scene = hall_hard.simulator.scenes("test", range(4))
    flat = with_std(hall_hard.deployment, INF)
    free = uplink_bound(scene, noise(scene), flat).ue_position_m
    fixed = flat._replace(ue_height_range=torch.tensor([1.5, 1.5], dtype=torch.float64))
    bound = uplink_bound(scene, noise(scene), fixed)
    assert (bound.ue_position_m < free).all()
    assert (bound.covariance[:, 2, 2] == 0).all()
    assert torch.equal(uplink_bound(scene, noise(scene), fixed, height_prior=False).ue_position_m, free)


def test_shared_scatterers_without_batch():
    visible = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert [int(x) for x in shared_scatterers(visible)] == [1, 0]


def test_bad_input(hall):
    scene = hall.simulator.scenes("test", range(2))
    with pytest.raises(DomainError, match=r"scene\.gain"):
        uplink_bound(scene._replace(gain=None), noise(scene), hall.deployment)
    with pytest.raises(ShapeError, match="noise_var"):
        uplink_bound(scene, noise(scene)[:, :3], hall.deployment)
    with pytest.raises(DomainError, match="noise_var"):
        uplink_bound(scene, 0 * noise(scene), hall.deployment)
