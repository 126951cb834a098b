"""Importers of ray-traced paths: their conventions against the tools' own channels, what they refuse, the files."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sensing.data import read_observations
from sensing.data.importers import (
    SionnaPaths,
    check_round_trip,
    from_deepmimo,
    sionna_rays,
    write_rays,
)
from sensing.data.importers.rays import euler_rotation
from sensing.errors import ConfigError, DomainError, FileFormatError, ShapeError
from sensing.units import SPEED_OF_LIGHT
from tests.reference import deepmimo as slow

STORED = Path(__file__).parent / "reference" / "sionna_street.npz"
"""Two receivers of 3 x 4 antennas and two transmitters in a street, traced and put through `Paths.cfr` by Sionna RT
2.2.0: the arrays of `read_sionna`, as tests/test_importers_sionna.py makes them."""
PILOTS = (np.arange(16) - 7.5) * 2e6


@pytest.fixture(scope="module")
def traced():
    with np.load(STORED) as stored:
        return SionnaPaths(*(stored[name] for name in SionnaPaths._fields))


@pytest.fixture(scope="module")
def rays(traced):
    return sionna_rays(traced, PILOTS, clock_offset_std=2e-8)


def test_sionnas_channel_is_ours(traced, rays):
    """The stored response is Sionna's own: delays, signs, angles, orientations and the order of antennas in one."""
    from sensing.channel import channel_response

    ours = channel_response(rays.paths, rays.deployment).numpy()
    for user in range(2):
        for station in range(2):
            theirs = traced.cfr[station, :, user]
            assert np.abs(ours[user, station] - theirs).max() < 1e-5 * np.abs(theirs).max()
    assert rays.los_exists.any()
    assert (rays.paths.mask.sum(-1) > 1).any()


def test_normalised_delays_are_refused(traced):
    first = np.where(traced.valid, traced.tau, np.inf).min(-1, keepdims=True)
    with pytest.raises(DomainError, match=r"delay must be absolute.*normalize_delays=False"):
        sionna_rays(traced._replace(tau=np.where(traced.valid, traced.tau - first, -1.0)), PILOTS)


def test_a_channel_with_normalised_delays_is_refused(traced, rays):
    """`Paths.cfr` normalises by default: nothing but the comparison can tell."""
    first = np.where(traced.valid, traced.tau, np.inf).min(-1)[:, None, :, None]
    normalised = traced.cfr * np.exp(2j * np.pi * PILOTS * first)
    with pytest.raises(DomainError, match="normalize_delays=False"):
        check_round_trip(rays, normalised.transpose(2, 0, 1, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"a": t.a.conj()}, "channel must be the one"),
        (lambda t: {"a": t.a[:, ::-1]}, "channel must be the one"),
        (lambda t: {"bs_orientation": -t.bs_orientation}, "channel must be the one"),
        (lambda t: {"zenith": np.pi / 2 - t.zenith}, "zenith or elevation"),
        (lambda t: {"azimuth": -t.azimuth}, "direction of a line of sight"),
        (lambda t: {"azimuth": np.rad2deg(t.azimuth)}, "direction of a line of sight"),
        (lambda t: {"tau": np.where(t.valid, np.nan, 0.0)}, "delay of existing paths must be finite"),
        (lambda t: {"ue_position": t.ue_position + 1.0}, "must"),
        (lambda t: {"carrier_hz": 1.1 * t.carrier_hz}, "channel must be the one"),
    ],
)
def test_other_conventions_are_refused(traced, change, message):
    with pytest.raises(DomainError, match=message):
        sionna_rays(traced._replace(**change(traced)), PILOTS)


def test_misfitting_arrays_are_refused(traced):
    with pytest.raises(ShapeError, match="a must be"):
        sionna_rays(traced._replace(a=traced.a[:, :5]), PILOTS)
    with pytest.raises(ShapeError, match="zenith must be"):
        sionna_rays(traced._replace(zenith=traced.zenith[:1]), PILOTS)
    with pytest.raises(ShapeError, match="channel must be"):
        sionna_rays(traced, PILOTS[:8])


def test_the_file_holds_sionnas_channel_late_by_the_offsets(traced, rays, tmp_path):
    users = write_rays(tmp_path / "street.h5", rays, snr_db=13.0, seed=4)
    assert users == [0, 1]
    data = read_observations(tmp_path / "street.h5")
    assert torch.equal(data.truth.scene.ue_position, torch.from_numpy(traced.ue_position))
    assert torch.equal(data.los_exists, rays.los_exists)
    offset = data.truth.scene.clock_offset.numpy()
    assert (np.abs(offset) > 1e-12).all()
    for user in range(2):
        for station in range(2):
            late = traced.cfr[station, :, user] * np.exp(-2j * np.pi * PILOTS * offset[user, station])
            assert np.abs(data.channel[user, station].numpy() - late).max() < 1e-5 * np.abs(late).max()
    noise = (data.observation.y - data.channel).abs().square().mean((-2, -1))
    assert ((noise / data.observation.noise_var - 1).abs() < 0.3).all()  # 192 entries
    power = data.channel.abs().square().mean((1, 2, 3))
    assert torch.allclose(power / data.observation.noise_var[:, 0], torch.tensor(10**1.3, dtype=torch.float64))


def test_a_users_draws_do_not_depend_on_the_others(rays, tmp_path):
    """Station 0 hears user 0 alone once its paths to user 1 are gone: user 0 is left, with its old numbers."""
    mask = rays.paths.mask.clone()
    mask[1, 0] = False
    alone = rays._replace(paths=rays.paths._replace(mask=mask))
    write_rays(tmp_path / "both.h5", rays)
    assert write_rays(tmp_path / "one.h5", alone, least_stations=2) == [0]
    both, one = (read_observations(tmp_path / f"{name}.h5").observation for name in ("both", "one"))
    assert torch.equal(both.y[:1], one.y)


def test_what_cannot_be_written_is_refused(rays, tmp_path):
    flat = rays._replace(deployment=rays.deployment._replace(clock_offset_std=torch.tensor(math.inf)))
    with pytest.raises(ConfigError, match="clock_offset_std"):
        write_rays(tmp_path / "x.h5", flat)
    write_rays(tmp_path / "flat.h5", flat, clock_offset_std=0.0)
    assert read_observations(tmp_path / "flat.h5").deployment.clock_offset_std == math.inf
    with pytest.raises(ConfigError, match="least_stations must leave a user"):
        write_rays(tmp_path / "x.h5", rays, least_stations=3)
    assert not (tmp_path / "x.h5").exists()


def test_rotation_by_three_matrices():
    yaw, pitch, roll = 0.7, -0.4, 0.2
    c, s = math.cos, math.sin
    z = np.array([[c(yaw), -s(yaw), 0], [s(yaw), c(yaw), 0], [0, 0, 1]])
    y = np.array([[c(pitch), 0, s(pitch)], [0, 1, 0], [-s(pitch), 0, c(pitch)]])
    x = np.array([[1, 0, 0], [0, c(roll), -s(roll)], [0, s(roll), c(roll)]])
    assert np.allclose(euler_rotation([[yaw, pitch, roll]])[0].numpy(), z @ y @ x)


# DeepMIMO: random paths in the layouts of both versions

ROTATION = np.array([[10.0, 20.0, 30.0], [-5.0, 15.0, 160.0]])
BANDWIDTH, TOTAL, CHOSEN, SHAPE = 20e6, 64, np.arange(0, 64, 8), (4, 3)
CARRIER = 3.5e9
ARRAY = 0.5 * np.array(slow.panel(*SHAPE), float)
BS = np.array([[-10.0, 5.0, 12.0], [60.0, 40.0, 9.0]])
COUNTS = [[3, 5, 1], [4, 0, 2]]


def degrees(k):
    return math.degrees(math.atan2(k[1], k[0])), math.degrees(math.acos(k[2]))


@pytest.fixture(scope="module")
def users():
    """Positions [user xyz], and per station and user a list of (power, phase, delay, azimuth, zenith)."""
    rng = np.random.default_rng(0)
    ue = rng.uniform([0, 0, 1], [50, 50, 2], (3, 3))
    paths = []
    for b, counts in enumerate(COUNTS):
        paths.append([])
        for u, count in enumerate(counts):
            straight = ue[u] - BS[b]
            distance = np.linalg.norm(straight)
            mine = []
            for number in range(count):
                k = straight / distance if number == 0 else rng.normal(size=3)
                length = distance + (0.0 if number == 0 else rng.uniform(1, 60))
                power, phase = 10 ** rng.uniform(-11, -8), rng.uniform(-180, 180)
                mine.append((power, phase, length / SPEED_OF_LIGHT, *degrees(k / np.linalg.norm(k))))
            paths[-1].append(mine)
    return ue, paths


def version_3(users):
    ue, paths = users
    names = ("power", "phase", "ToA", "DoD_phi", "DoD_theta")

    def one(mine):
        columns = np.array(mine).T if mine else np.zeros((5, 0))
        return {"num_paths": len(mine), **dict(zip(names, columns, strict=True))} if mine else {"num_paths": 0}

    return [
        {
            "location": BS[b],
            "user": {
                "paths": [one(mine) for mine in each],
                "location": ue,
                "LoS": [1 if mine else -1 for mine in each],
            },
        }
        for b, each in enumerate(paths)
    ]


def version_4(users):
    ue, paths = users
    sets = []
    for b, each in enumerate(paths):
        table = np.full((5, len(ue), 5), np.nan)
        for u, mine in enumerate(each):
            if mine:
                table[:, u, : len(mine)] = np.array(mine).T
        table[0] = 10 * np.log10(table[0])
        fields = dict(zip(("power", "phase", "delay", "aod_az", "aod_el"), table, strict=True))
        sets.append(fields | {"rx_pos": ue, "tx_pos": BS[b], "los": np.array([1 if mine else -1 for mine in each])})
    return sets


@pytest.fixture(scope="module")
def channel(users):
    """[user bs ant sc] by loops."""
    _, paths = users
    args = SHAPE, 0.5, CHOSEN, TOTAL, BANDWIDTH
    return np.stack([np.stack([slow.channel(paths[b][u], ROTATION[b], *args) for b in range(2)]) for u in range(3)])


def imported(datasets, **changes):
    settings = {"rotation_deg": ROTATION, "clock_offset_std": 1e-8} | changes
    return from_deepmimo(datasets, CARRIER, ARRAY, CHOSEN * BANDWIDTH / TOTAL, **settings)


@pytest.mark.parametrize("layout", [version_3, version_4])
def test_deepmimos_channel_is_ours(users, channel, layout):
    from sensing.channel import channel_response

    rays = imported(layout(users), channel=channel)
    ours = channel_response(rays.paths, rays.deployment).numpy() / math.sqrt(TOTAL)
    assert np.abs(ours - channel).max() < 1e-9 * np.abs(channel).max()
    assert rays.paths.mask.sum(-1).T.tolist() == COUNTS
    assert rays.los_path.sum(-1).T.tolist() == [[1, 1, 1], [1, 0, 1]]


def test_deepmimo_to_file(users, tmp_path):
    assert write_rays(tmp_path / "city.h5", imported(version_4(users)), least_stations=2) == [0, 2]
    data = read_observations(tmp_path / "city.h5")
    assert data.observation.y.shape == (2, 2, 12, 8)
    assert data.source.startswith("DeepMIMO")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: {"delay": d["delay"] - np.nanmin(d["delay"], 1, keepdims=True)}, DomainError, "must be absolute"),
        (lambda d: {"aod_el": 90 - d["aod_el"]}, DomainError, "zenith or elevation"),
        (lambda d: {"aod_az": np.deg2rad(d["aod_az"])}, DomainError, "direction of a line of sight"),
        (lambda d: {"phase": -d["phase"]}, DomainError, "channel must be the one"),
        (lambda d: {"phase": np.deg2rad(d["phase"])}, DomainError, "channel must be the one"),
        (lambda d: {"rx_pos": d["rx_pos"][::-1]}, ShapeError, "same users"),
        (lambda d: {"tx_pos": BS}, ShapeError, "one transmitter"),
        (lambda d: {"delay": d["delay"][:, :3]}, ShapeError, r"arrays \[user path\]"),
    ],
)
def test_other_conventions_of_deepmimo_are_refused(users, channel, change, error, message):
    sets = version_4(users)
    sets[0] = sets[0] | change(sets[0])
    with pytest.raises(error, match=message):
        imported(sets, channel=channel)


def test_deepmimo_misses(users):
    with pytest.raises(ConfigError, match="one data set per station"):
        imported([])
    with pytest.raises(ShapeError, match="rotation_deg"):
        imported(version_3(users), rotation_deg=ROTATION[:1])
    sets = version_4(users)
    del sets[1]["aod_el"]
    with pytest.raises(FileFormatError, match=r"datasets\[1\] must hold aod_el"):
        imported(sets)
