"""Observation files: round trip, files of other programs, bad input, and the signs of the ray-traced samples."""

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sensing import arrays, ofdm
from sensing.containers import Deployment, Observation, Scene
from sensing.data import export_scenes, read_observations, write_observations
from sensing.errors import ConfigError, DomainError, FileFormatError, SensingError, ShapeError
from sensing.simulation import SceneSampler, Simulator, build_deployment
from sensing.units import SPEED_OF_LIGHT

ROOT = Path(__file__).parents[1]
SAMPLES = [ROOT / "examples" / name for name in ("street_canyon_sample.h5", "street_canyon_los_sample.h5")]
FULL = sorted((Path(__file__).parents[2] / "shared" / "data").glob("*.h5"))


@pytest.fixture(scope="module")
def simulator():
    deployment = build_deployment(
        [[0, 0, 6], [40, 0, 6], [40, 40, 6]],
        arrays.upa(2, 2),
        ofdm.pilot_frequencies(64, 120e3, 8),
        28e9,
        1e-8,
        target=[20, 20, 4],
        region=[[0, 0, 0], [40, 40, 8]],
        ue_height_range=[1, 2],
    )
    return Simulator(deployment, SceneSampler([[3, 3, 1], [37, 37, 2]], [[1, 1, 0.5], [39, 39, 7.5]], 4, 1), seed=3)


@pytest.fixture(scope="module")
def exported(simulator, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "scenes.h5"
    export_scenes(simulator, path, "test", range(2, 7), snr_db=10.0)
    return path


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copy(exported, tmp_path / "copy.h5"))


def replace(path, name, values, **options):
    """Overwrite one data set of a file."""
    with h5py.File(path, "a") as file:
        del file[name]
        file.create_dataset(name, data=values, **options)


def values_of(path, name):
    with h5py.File(path) as file:
        return file[name][()]


# round trip


def test_export_and_read_back(simulator, exported):
    data, example = read_observations(exported), simulator.examples("test", range(2, 7), 10.0)
    for ours, theirs in zip(data.deployment, simulator.deployment, strict=True):
        assert ours.dtype == torch.float64
        assert torch.equal(ours, theirs)
    assert data.observation.y.dtype == torch.complex128
    torch.testing.assert_close(data.observation.y, example.observation.y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(data.channel, example.channel, rtol=1e-6, atol=1e-6)
    assert torch.equal(data.observation.noise_var, example.observation.noise_var)
    for field in ("ue_position", "scatterer_position", "visible", "clock_offset"):
        assert torch.equal(getattr(data.truth.scene, field), getattr(example.scene, field)), field
    assert data.truth.scene.gain is None
    assert data.los_exists is None
    assert "seed 3" in data.source


def test_what_was_read_is_written_alike(exported, tmp_path):
    first = read_observations(exported)
    again = tmp_path / "deep" / "folder" / "again.h5"
    write_observations(again, first.deployment, first.observation, scene=first.truth.scene, source=first.source)
    second = read_observations(again)
    assert torch.equal(first.observation.y, second.observation.y)
    assert torch.equal(first.truth.scene.scatterer_position, second.truth.scene.scatterer_position)
    assert second.channel is None
    assert second.source == first.source


@pytest.mark.parametrize("scenes", [slice(2), slice(1, 4, 2), slice(-1, None), slice(0, 100)])
def test_a_slice_equals_the_slice_of_all(exported, scenes):
    part, whole = read_observations(exported, scenes), read_observations(exported)
    assert torch.equal(part.observation.y, whole.observation.y[scenes])
    assert torch.equal(part.observation.noise_var, whole.observation.noise_var[scenes])
    assert torch.equal(part.truth.scene.visible, whole.truth.scene.visible[scenes])


@pytest.mark.parametrize("scenes", [slice(5, None), slice(3, 1), slice(None, None, -1)])
def test_a_slice_of_nothing_is_refused(exported, scenes):
    with pytest.raises(ConfigError, match="5 scenes"):
        read_observations(exported, scenes)


def test_only_the_asked_scenes_are_looked_at(copy):
    y = values_of(copy, "y")
    y[4] = np.nan
    replace(copy, "y", y)
    read_observations(copy, slice(4))
    with pytest.raises(FileFormatError, match="y must be finite"):
        read_observations(copy)


def measured(scenes=2, stations=2, ant=3, sc=4):
    """A user's measurement, in plain numpy arrays and lists."""
    rng = np.random.default_rng(0)
    deployment = Deployment(
        bs_position=np.array([[0.0, 0, 5], [30, 0, 5]])[:stations],
        bs_rotation=np.stack([np.eye(3)] * stations),
        antenna_local=[[0, 0.005 * m, 0] for m in range(ant)],
        pilot_freq=np.arange(sc) * 1_000_000,
        carrier_hz=28e9,
        clock_offset_std=np.inf,
    )
    y = rng.standard_normal((scenes, stations, ant, sc, 2)) @ [1, 1j]
    return deployment, Observation(y, np.full((scenes, stations), 0.1))


def test_numpy_measurement_without_truth(tmp_path):
    deployment, observation = measured()
    write_observations(tmp_path / "mine.h5", deployment, observation, source="lab")
    data = read_observations(tmp_path / "mine.h5")
    np.testing.assert_allclose(data.observation.y.numpy(), observation.y, rtol=1e-6)
    assert (data.truth, data.los_exists, data.channel) == (None, None, None)
    assert torch.isinf(data.deployment.clock_offset_std)
    assert data.deployment.region is None


def test_partial_truth(tmp_path):
    deployment, observation = measured()
    los = [[True, False], [False, True]]
    scene = Scene([[1.0, 2, 3]] * 2, None, None, None)
    write_observations(tmp_path / "mine.h5", deployment, observation, scene=scene, los_exists=los)
    data = read_observations(tmp_path / "mine.h5")
    assert data.truth.scene.ue_position.tolist() == [[1.0, 2, 3]] * 2
    assert data.truth.scene.clock_offset.isnan().all()
    assert data.truth.scene.scatterer_position.shape == (2, 0, 3)
    assert data.truth.scene.visible.shape == (2, 2, 0)
    assert data.truth.channel is None
    assert data.los_exists.tolist() == los
    write_observations(tmp_path / "again.h5", deployment, observation, scene=data.truth.scene)
    with h5py.File(tmp_path / "again.h5") as file:
        assert list(file["truth"]) == ["ue_position_m"]


def test_padding_becomes_a_mask_and_back(tmp_path):
    deployment, observation = measured()
    points = np.arange(18.0).reshape(2, 3, 3)
    visible = np.ones((2, 2, 3), bool)
    visible[1, :, 2] = False  # the second scene has two points only
    scene = Scene([[1.0, 2, 3]] * 2, points, visible, [[0.0, 1e-9]] * 2)
    write_observations(tmp_path / "mine.h5", deployment, observation, scene=scene)
    assert np.isnan(values_of(tmp_path / "mine.h5", "truth/scatterer_position_m")[1, 2]).all()
    read = read_observations(tmp_path / "mine.h5").truth.scene
    assert read.scatterer_position.isfinite().all()
    assert torch.equal(read.visible, torch.from_numpy(visible))
    np.testing.assert_array_equal(read.scatterer_position.numpy()[visible.any(1)], points[visible.any(1)])


# files of other programs


def test_plain_h5py_reads_what_we_write(simulator, exported):
    """Another program needs the schema alone: names, texts, types."""
    with h5py.File(exported) as file:
        assert file.attrs["format"] == "sensing-observations"
        assert file.attrs["version"] == 1
        assert file.attrs["carrier_hz"] == 28e9
        assert file["y"].dtype == np.complex64
        assert file["truth/scatterer_visible"].dtype == bool
        assert file["prior/clock_offset_std_s"].shape == ()
        np.testing.assert_array_equal(file["ofdm/pilot_freq_hz"], simulator.deployment.pilot_freq)


@pytest.mark.parametrize("real", [np.float32, np.float64, ">f8"])
def test_matlab_style_file(copy, exported, real):
    """MATLAB: compounds real/imag, 1x1 scalars, logicals as uint8, version as a double, texts of fixed length."""
    y = values_of(copy, "y")
    compound = np.empty(y.shape, [("real", real), ("imag", real)])
    compound["real"], compound["imag"] = y.real, y.imag
    replace(copy, "y", compound)
    replace(copy, "prior/clock_offset_std_s", values_of(copy, "prior/clock_offset_std_s").reshape(1, 1))
    replace(copy, "truth/scatterer_visible", values_of(copy, "truth/scatterer_visible").astype(np.uint8))
    with h5py.File(copy, "a") as file:
        file.attrs["version"] = np.array([[1.0]])
        file.attrs["format"] = np.bytes_("sensing-observations")
    ours, theirs = read_observations(copy), read_observations(exported)
    assert torch.equal(ours.observation.y, theirs.observation.y)
    assert torch.equal(ours.truth.scene.visible, theirs.truth.scene.visible)
    assert torch.equal(ours.deployment.clock_offset_std, theirs.deployment.clock_offset_std)


# bad input


def with_nan(values):
    values[(0,) * values.ndim] = np.nan
    return values


BAD_VALUES = {
    "y has NaN": ("y", with_nan, "y must be finite"),
    "y is real": ("y", lambda v: v.real, "y must be complex, got type float32"),
    "y has too few pilots": (
        "y",
        lambda v: v[..., :-1],
        r"y must be \[scene bs ant sc\] with .*sc=8, got \[5, 3, 4, 7\]",
    ),
    "y of one scene": ("y", lambda v: v[0], r"y must be \[scene bs ant sc\].*got \[3, 4, 8\]"),
    "y has no scene": ("y", lambda v: v[:0], "y must be .*without an empty axis"),
    "noise of fewer scenes": (
        "noise_var",
        lambda v: v[:-1],
        r"noise_var must be \[scene bs\] with .*scene=5.*got \[4, 3\]",
    ),
    "zero noise": ("noise_var", lambda v: 0 * v, "noise_var must be positive, got 0"),
    "negative noise": ("noise_var", lambda v: -v, "noise_var must be positive, got -"),
    "noise is complex": ("noise_var", lambda v: v + 0j, "noise_var must be real, got type complex128"),
    "position is a text": ("bs/position_m", lambda v: "here", "bs/position_m must be real, got type"),
    "pilots fall": ("ofdm/pilot_freq_hz", lambda v: v[::-1], "ofdm/pilot_freq_hz must be strictly increasing"),
    "pilot twice": ("ofdm/pilot_freq_hz", lambda v: v[[0, 0, 2, 3, 4, 5, 6, 7]], "ofdm/pilot_freq_hz .* duplicates"),
    "pilot is NaN": ("ofdm/pilot_freq_hz", with_nan, "ofdm/pilot_freq_hz must be finite"),
    "scaled rotation": ("bs/rotation", lambda v: 1.01 * v, "bs/rotation must hold rotations"),
    "mirror": ("bs/rotation", lambda v: -v, "bs/rotation must hold rotations"),
    "too few rotations": (
        "bs/rotation",
        lambda v: v[:2],
        r"bs/rotation must be \[bs 3 3\] with .*bs=3, got \[2, 3, 3\]",
    ),
    "antenna is NaN": ("bs/antenna_local_m", with_nan, "bs/antenna_local_m must be finite"),
    "flat antennas": ("bs/antenna_local_m", lambda v: v[:, :2], r"bs/antenna_local_m must be \[ant xyz\]"),
    "negative prior": ("prior/clock_offset_std_s", lambda v: -v, "prior/clock_offset_std_s must be >= 0"),
    "prior per station": (
        "prior/clock_offset_std_s",
        lambda v: [v] * 3,
        r"prior/clock_offset_std_s must be .*got \[3\]",
    ),
    "region upside down": ("prior/region_m", lambda v: v[::-1], "prior/region_m must be"),
    "heights upside down": ("prior/ue_height_range_m", lambda v: v[::-1], "prior/ue_height_range_m must be"),
    "user is NaN": ("truth/ue_position_m", with_nan, "truth/ue_position_m must be finite"),
    "channel is infinite": ("truth/channel", lambda v: v * np.inf, "truth/channel must be finite"),
    "half a NaN point": ("truth/scatterer_position_m", with_nan, "truth/scatterer_position_m"),
    "absent but seen": ("truth/scatterer_position_m", lambda v: v * np.nan, "truth/scatterer_visible must be false"),
    "more points than seen": ("truth/scatterer_visible", lambda v: v[..., :-1], "truth/scatterer_visible must be"),
    "visibility is no bool": (
        "truth/scatterer_visible",
        lambda v: 2 * v.astype(int),
        "truth/scatterer_visible must be true",
    ),
    "visibility is a float": ("truth/scatterer_visible", lambda v: 0.5 * v, "truth/scatterer_visible must be bool"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_values_name_file_and_field(copy, case):
    name, change, message = BAD_VALUES[case]
    replace(copy, name, change(values_of(copy, name)))
    with pytest.raises(FileFormatError, match=message) as caught:
        read_observations(copy)
    assert str(caught.value).startswith(str(copy))


@pytest.mark.parametrize(
    "name",
    [
        "y",
        "bs/position_m",
        "bs/rotation",
        "bs/antenna_local_m",
        "ofdm/pilot_freq_hz",
        "prior/clock_offset_std_s",
        "truth/scatterer_visible",
    ],
)
def test_missing_field(copy, name):
    with h5py.File(copy, "a") as file:
        del file[name]
    with pytest.raises(FileFormatError, match=f"missing field {name};"):
        read_observations(copy)


@pytest.mark.parametrize("name", ["truth/user", "gain", "bs/rotation_deg", "extra/thing"])
def test_unknown_field(copy, name):
    with h5py.File(copy, "a") as file:
        file[name] = 1.0
    with pytest.raises(FileFormatError, match=f"unknown (field {name}|group extra)"):
        read_observations(copy)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "other", "format must be 'sensing-observations', got 'other'"),
        ("format", None, "format must be .* got 'nothing'"),
        ("version", 2, "version must be 1, got 2"),
        ("carrier_hz", None, r"missing: \['carrier_hz'\]"),
        ("carrier_hz", -1.0, "carrier_hz must be positive"),
        ("carrier_hz", "28 GHz", "carrier_hz must be a number"),
        ("carrier_hz", [1.0, 2.0], "carrier_hz must be a number"),
        ("source", 3, "source must be a text"),
        ("author", "me", r"unknown: \['author'\]"),
    ],
)
def test_bad_attributes(copy, name, value, message):
    with h5py.File(copy, "a") as file:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value
    with pytest.raises(FileFormatError, match=message):
        read_observations(copy)


def test_group_in_place_of_a_field(copy):
    with h5py.File(copy, "a") as file:
        del file["y"]
        file.create_group("y")
    with pytest.raises(FileFormatError, match="unknown group y"):
        read_observations(copy)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_truncated_file(copy, kept):
    os.truncate(copy, int(kept * copy.stat().st_size))
    with pytest.raises(FileFormatError, match=r"copy\.h5: must be a complete, readable HDF5 file"):
        read_observations(copy)


def test_damaged_bytes(copy):
    """A damaged compressed block is noticed when it is read."""
    with h5py.File(copy) as file:
        block = file["y"].id.get_chunk_info(3)
    with open(copy, "r+b") as file:
        file.seek(block.byte_offset)
        file.write(b"\x00" * block.size)
    with pytest.raises(FileFormatError, match="readable HDF5"):
        read_observations(copy)


def test_not_a_file(tmp_path):
    (tmp_path / "text.h5").write_text("scene,x,y\n")
    for path in (tmp_path / "text.h5", tmp_path / "absent.h5", tmp_path):
        with pytest.raises(FileFormatError, match="readable HDF5"):
            read_observations(path)


# failed writes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": np.ones((2, 2, 3, 4))}, FileFormatError, "y must be complex"),
        ({"y": np.full((2, 2, 3, 4), np.nan + 0j)}, DomainError, "y must be finite"),
        ({"y": np.ones((2, 3, 4), complex)}, ShapeError, "y must be"),
        ({"noise_var": np.zeros((2, 2))}, DomainError, "noise_var must be positive"),
        ({"noise_var": [[1.0, 1.0], [1.0]]}, ShapeError, "noise_var must be a regular array"),
        ({"noise_var": [[1.0, np.nan], [1.0, 1.0]]}, DomainError, "noise_var must be finite, got 1 non-finite"),
        ({"bs_rotation": 2 * np.stack([np.eye(3)] * 2)}, DomainError, "bs/rotation must hold rotations"),
        ({"pilot_freq": [0.0, 1.0, 1.0, 2.0]}, DomainError, "ofdm/pilot_freq_hz must be strictly increasing"),
        ({"carrier_hz": 0.0}, DomainError, "carrier_hz must be positive"),
    ],
)
def test_a_bad_measurement_leaves_no_file(tmp_path, change, error, message):
    deployment, observation = measured()
    deployment = deployment._replace(**{k: v for k, v in change.items() if k in Deployment._fields})
    observation = observation._replace(**{k: v for k, v in change.items() if k in Observation._fields})
    with pytest.raises(error, match=message):
        write_observations(tmp_path / "mine.h5", deployment, observation)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_breaks_off_keeps_the_old_file(tmp_path, monkeypatch):
    deployment, observation = measured()
    path = tmp_path / "mine.h5"
    write_observations(path, deployment, observation, source="old")

    def disk_full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(h5py.File, "create_dataset", disk_full)
    with pytest.raises(OSError, match="no space left"):
        write_observations(path, deployment, observation, source="new")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    assert read_observations(path).source == "old"


def test_export_of_no_scene(simulator, tmp_path):
    with pytest.raises(SensingError, match="at least one"):
        export_scenes(simulator, tmp_path / "none.h5", "test", [], 10.0)


# ray-traced files


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_sample_noise_is_what_noise_var_says(path):
    data = read_observations(path)
    power = (data.observation.y - data.channel).abs().square().mean((-2, -1)) / data.observation.noise_var
    assert ((power - 1).abs() < 0.08).all()  # 4096 entries per station: 5 deviations
    assert abs(float(power.mean()) - 1) < 0.02
    assert float(data.channel.abs().square().mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("signs", [(-1, 1), (1, 1), (-1, -1)])
def test_sample_signs(signs):
    """The line of sight predicted from the truth explains much of the channel, and only with the documented signs."""
    data = read_observations(SAMPLES[1])
    station, scene = data.deployment, data.truth.scene
    explained = []
    for n, q in data.los_exists.nonzero().tolist():
        leg = scene.ue_position[n] - station.bs_position[q]
        delay = leg.norm() / SPEED_OF_LIGHT + scene.clock_offset[n, q]
        antennas = (station.bs_rotation[q] @ station.antenna_local.T).T
        wave = torch.exp(signs[1] * 2j * torch.pi / station.wavelength * (antennas @ (leg / leg.norm())))
        column = torch.outer(wave, torch.exp(signs[0] * 2j * torch.pi * station.pilot_freq * delay))
        h = data.channel[n, q]
        explained.append(
            float((column.conj() * h).sum().abs() ** 2 / (column.abs().square().sum() * h.abs().square().sum()))
        )
    assert len(explained) == 6
    assert np.median(explained) > 0.5 if signs == (-1, 1) else np.median(explained) < 0.05


@pytest.mark.skipif(not FULL, reason="the full ray-traced files are not beside this checkout")
@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_full_files(path):
    data = read_observations(path)
    scenes = len(data.observation.y)
    assert scenes == (100 if "nlos" in path.stem else 40)
    assert data.observation.y.shape == data.channel.shape == (scenes, 3, 64, 64)
    assert data.truth.scene.scatterer_position.isfinite().all()
    assert data.los_exists.dtype == data.truth.scene.visible.dtype == torch.bool
    sample = read_observations(SAMPLES["nlos" not in path.stem])
    count = len(sample.observation.y)
    assert torch.equal(data.observation.y[:count], sample.observation.y)
    assert torch.equal(data.truth.scene.visible[:count], sample.truth.scene.visible)
