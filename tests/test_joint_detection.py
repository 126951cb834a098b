"""Weak paths looked for where others point: energy against dense projections, decisions against built scenes."""

import math

import pytest
import torch

from sensing import LocationEstimator
from sensing.coarse import PathDetector
from sensing.coarse.joint_detection import joint_detection, unexplained_energy
from sensing.containers import Geometry, map_tensors
from sensing.errors import ConfigError
from tests.reference.oracle import C, detect, members
from tests.reference.slow import array_response, distance

FALSE_ALARM = 0.05
WEAK = 10.0  # energy over noise: the blind search wants 16 and more


def column(point, ue, offset_m, q, deployment):
    """Response of station q to a scatterer, [ant*sc], by loops."""
    bs = deployment.bs_position[q].tolist()
    r = distance(point, bs)
    direction = [(point[i] - bs[i]) / r for i in range(3)]
    antennas, rotation = deployment.antenna_local.tolist(), deployment.bs_rotation[q].tolist()
    steering = torch.tensor(array_response(direction, antennas, rotation, C / float(deployment.carrier_hz)))
    length = r + distance(point, ue) + offset_m
    delay = torch.exp(-2j * math.pi * deployment.pilot_freq * length / C)
    return torch.outer(steering.to(torch.complex128), delay).flatten()


def located(example, oracle, deployment):
    """Members and geometry of the truth with the detected paths: nodes of two views and more, the others free."""
    scene = example.scene
    path, point = members(oracle)
    rows = torch.arange(len(path))[:, None]
    used = torch.zeros_like(oracle.paths.mask)
    for i, k, q in (path >= 0).nonzero().tolist():
        used[i, q, path[i, k, q]] = True
    free = oracle.paths.mask & ~used
    order = free.int().argsort(dim=-1, descending=True, stable=True)[..., : max(int(free.sum(-1).max()), 1)]
    geometry = Geometry(
        scene.ue_position,
        C * scene.clock_offset,
        scene.scatterer_position[rows, point.clamp_min(0)],
        point >= 0,
        (path >= 0).mT,
        oracle.paths.range_m.gather(2, order),
        oracle.paths.direction.gather(2, order[..., None].expand(*order.shape, 3)),
        free.gather(2, order),
    )
    return path, geometry


def dense_channel(scene, deployment):
    """One scene, [1 bs ant sc], as a sum of columns."""
    ue, offset = scene.ue_position[0].tolist(), (C * scene.clock_offset[0]).tolist()
    out = torch.zeros(4, len(deployment.antenna_local) * len(deployment.pilot_freq), dtype=torch.complex128)
    for q, n in scene.visible[0].nonzero().tolist():
        out[q] += scene.gain[0, q, n] * column(scene.scatterer_position[0, n].tolist(), ue, offset[q], q, deployment)
    return out.unflatten(-1, (len(deployment.antenna_local), -1))[None]


def test_energy_is_that_of_a_dense_projection(tiny):
    example = tiny.simulator.examples("val", range(2), 10.0)
    deployment, scene = tiny.deployment, example.scene
    true = scene.scatterer_position
    # three nodes, seen by some; the fourth scatterer is a free path of every station
    leg = true[:, 3:4] - deployment.bs_position
    length = leg.norm(dim=-1) + (true[:, 3:4] - scene.ue_position[:, None]).norm(dim=-1) + C * scene.clock_offset
    geometry = Geometry(
        scene.ue_position,
        C * scene.clock_offset,
        true[:, :3],
        torch.tensor([[True, True, True], [True, False, True]]),
        torch.tensor([[True, True, False], [True, True, True], [False, True, True]]).expand(2, 3, 3),
        length[..., None],
        torch.nn.functional.normalize(leg, dim=-1)[..., None, :],
        torch.tensor([[True, True, False], [True, False, True]])[..., None],
    )
    places = scene.ue_position[:, None] + torch.tensor([[5.0, 3.0, 1.0], [-4.0, 6.0, 0.5], [2.0, -7.0, 2.0]]).double()
    energy, tried = unexplained_energy(example.observation, geometry, places, deployment), 0
    for i, q in [(i, q) for i in range(2) for q in range(3)]:
        ue, offset = scene.ue_position[i].tolist(), float(C * scene.clock_offset[i, q])
        points = [k for k in range(3) if geometry.node_mask[i, k] and geometry.member[i, q, k]]
        points += [3] if geometry.free_mask[i, q, 0] else []
        dense = torch.stack([column(true[i, k].tolist(), ue, offset, q, deployment) for k in points], 1)
        y, noise = example.observation.y[i, q].flatten(), float(example.observation.noise_var[i, q])
        for n, place in enumerate(places[i].tolist()):
            new = column(place, ue, offset, q, deployment)
            rest = new - dense @ torch.linalg.lstsq(dense, new[:, None]).solution[:, 0]
            wanted = float(abs(torch.vdot(rest, y)) ** 2 / (rest.norm() ** 2 * noise))
            if rest.norm() ** 2 > 0.25 * len(rest) and (places[i, n] - deployment.bs_position[q]) @ leg[i, q] > 0:
                assert float(energy[i, q, n]) == pytest.approx(wanted, rel=1e-5)
                tried += 1
    assert tried >= 10


@pytest.fixture(scope="module")
def weakly_seen(hall_hard):
    """One scatterer is strong at station 0, below detection at station 2, unseen by the others; no noise is added."""
    example = hall_hard.simulator.examples("val", [5], 10.0)
    deployment, scene = hall_hard.deployment, example.scene
    noise_var = example.observation.noise_var
    point = 5
    visible, gain = scene.visible.clone(), scene.gain.clone()
    visible[:, :, point] = torch.tensor([True, False, True, False])
    entries = len(deployment.antenna_local) * len(deployment.pilot_freq)
    gain[:, 0, point], gain[:, 2, point] = 0.5, (WEAK * noise_var[:, 2] / entries).sqrt() * 1j
    scene = scene._replace(visible=visible, gain=gain * visible)
    clean = dense_channel(scene, deployment)
    example = example._replace(observation=example.observation._replace(y=clean), scene=scene, channel=clean)
    oracle = detect(example, deployment, noise=0.3)
    assert not (oracle.point[0, 2] == point).any()
    path, geometry = located(example, oracle, deployment)
    return example, deployment, oracle.paths, path, geometry, point


def test_a_path_below_detection_is_found_where_another_station_points(weakly_seen):
    example, deployment, paths, path, geometry, point = weakly_seen
    blind = PathDetector()(example.observation, deployment)
    direction = example.scene.scatterer_position[0, point] - deployment.bs_position[2]
    off = (blind.direction[0, 2] - direction / direction.norm()).norm(dim=-1)
    assert not ((off < 0.1) & blind.mask[0, 2]).any(), "the blind search does not find it"
    more = joint_detection(example.observation, deployment, paths, path, geometry, FALSE_ALARM)
    new = more.node_mask[0, geometry.node_mask.shape[1] :].nonzero().flatten() + geometry.node_mask.shape[1]
    assert len(new) == 1
    assert more.member[0, :, new[0]].tolist() == [True, False, True, False]
    assert (more.node_position[0, new[0]] - example.scene.scatterer_position[0, point]).norm() < 0.3
    gone = geometry.free_mask & ~more.free_mask
    assert gone.sum(-1).tolist() == [[1, 0, 0, 0]]


def test_without_that_path_nothing_changes(weakly_seen):
    example, deployment, paths, path, geometry, point = weakly_seen
    visible = example.scene.visible.clone()
    visible[:, 2, point] = False
    observation = example.observation._replace(y=dense_channel(example.scene._replace(visible=visible), deployment))
    more = joint_detection(observation, deployment, paths, path, geometry, FALSE_ALARM)
    for name, old, new in zip(Geometry._fields, geometry, more, strict=True):
        torch.testing.assert_close(new, old, msg=name)


def test_noise_alone_confirms_no_more_than_it_may(hall_hard):
    example = hall_hard.simulator.examples("val", range(10), 0.0)
    oracle = detect(example, hall_hard.deployment)
    path, geometry = located(example, oracle, hall_hard.deployment)
    before, false = int(geometry.node_mask.sum()), 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        unit = torch.randn(example.observation.y.shape, dtype=torch.complex128, generator=generator)
        noise = example.observation._replace(y=unit * example.observation.noise_var.sqrt()[..., None, None])
        more = joint_detection(noise, hall_hard.deployment, oracle.paths, path, geometry, FALSE_ALARM)
        false += int(more.node_mask.sum()) - before
    assert 0 < false < 200 * FALSE_ALARM + 3 * math.sqrt(200 * FALSE_ALARM)


def test_scenes_do_not_depend_on_their_batch(hall_hard):
    example = hall_hard.simulator.examples("val", range(6), 0.0)
    oracle = detect(example, hall_hard.deployment, min_snr=150.0)

    def found(rows):
        part = map_tensors(example, lambda field: field[rows]), map_tensors(oracle, lambda field: field[rows])
        path, geometry = located(*part, hall_hard.deployment)
        given = part[0].observation, hall_hard.deployment, part[1].paths, path, geometry
        more = joint_detection(*given, FALSE_ALARM)
        return more, int(more.node_mask.sum() - geometry.node_mask.sum())

    whole, confirmed = found(slice(None))
    assert confirmed > 3
    for i in range(6):
        alone, _ = found(slice(i, i + 1))
        for field in ("node_position", "member"):
            one, several = (
                (more.node_position if field == "node_position" else more.member.mT)[row, more.node_mask[row]]
                for more, row in ((alone, 0), (whole, i))
            )
            torch.testing.assert_close(one, several)
        assert int(alone.free_mask.sum()) == int(whole.free_mask[i].sum())


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_share_outside_its_range_is_refused(value):
    with pytest.raises(ConfigError, match=r"joint_false_alarm must be in \[0, 1\)"):
        LocationEstimator(joint_false_alarm=value)
