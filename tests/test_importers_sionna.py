"""Sionna RT itself, where it is installed (`pip install sensing[rt]`): traced paths, both directions of the link."""

import numpy as np
import pytest

rt = pytest.importorskip("sionna.rt", reason="Sionna RT is an extra (rt)")

from sensing.channel import channel_response  # noqa: E402
from sensing.data.importers import from_sionna  # noqa: E402
from sensing.errors import ConfigError  # noqa: E402

PILOTS = (np.arange(16) - 7.5) * 2e6
STATIONS = [((-35, 5, 11), (0.3, 0.2, 0.1)), ((40, -4, 10), (2.9, 0.1, -0.2))]
USERS = [(5, 2, 1.5), (-12, -3, 1.2)]


def traced(uplink=True, synthetic=True, **station):
    """A street with two stations and two users, and its paths."""
    scene = rt.load_scene(rt.scene.simple_street_canyon)
    scene.frequency = 28e9
    panel = rt.PlanarArray(**{"num_rows": 3, "num_cols": 4, "pattern": "iso", "polarization": "V"} | station)
    single = rt.PlanarArray(num_rows=1, num_cols=1, pattern="iso", polarization="V")
    scene.rx_array, scene.tx_array = (panel, single) if uplink else (single, panel)
    near, far = (rt.Receiver, rt.Transmitter) if uplink else (rt.Transmitter, rt.Receiver)
    for number, (position, orientation) in enumerate(STATIONS):
        scene.add(near(f"station{number}", position=position, orientation=orientation))
    for number, position in enumerate(USERS):
        scene.add(far(f"user{number}", position=position))
    paths = rt.PathSolver()(scene, max_depth=2, synthetic_array=synthetic, refraction=False, seed=1)
    return scene, paths


@pytest.mark.parametrize("uplink", [True, False])
def test_round_trip(uplink):
    scene, paths = traced(uplink)
    rays = from_sionna(scene, paths, PILOTS, stations="receivers" if uplink else "transmitters")
    theirs = paths.cfr(PILOTS.astype(np.float32), normalize_delays=False, out_type="numpy")[..., 0, :]
    ours = channel_response(rays.paths, rays.deployment).numpy()
    for user in range(2):
        for station in range(2):
            one = theirs[station, :, user, 0] if uplink else theirs[user, 0, station]
            assert np.abs(ours[user, station] - one).max() < 1e-4 * np.abs(one).max()


def test_what_is_no_plane_wave_is_refused():
    with pytest.raises(ConfigError, match="synthetic_array=True"):
        from_sionna(*traced(synthetic=False, num_rows=1), PILOTS)
    with pytest.raises(ConfigError, match="one polarisation"):
        from_sionna(*traced(polarization="VH"), PILOTS)
    with pytest.raises(ConfigError, match="stations must be"):
        from_sionna(*traced(), PILOTS, stations="both")
