"""Paths of Sionna RT (extra `rt`): plane waves over synthetic arrays, with absolute delays.

Sionna's channel is `h = sum_l a_l exp(-j 2 pi f tau_l)` over offsets f from the carrier, with the array's phases
`exp(+j 2 pi / lambda p.k)` inside a_l, k pointing from the array along the path: our conventions. Angles are azimuth
and zenith in global axes; an orientation is (yaw, pitch, roll), the rotation of 3GPP TR 38.901. Documented in
https://nvlabs.github.io/sionna/rt/api/paths.html; every import checks all of it by a round trip.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sensing.arrays import response
from sensing.containers import Deployment, Paths
from sensing.data.importers.rays import TracedRays, check_rays, check_round_trip, directions, euler_rotation
from sensing.errors import ConfigError, ShapeError

LINE_OF_SIGHT = 0  # sionna.rt.constants.InteractionType.NONE


class SionnaPaths(NamedTuple):
    """What is read from a scene and its paths: arrays, the stations' axis first."""

    a: np.ndarray  # [bs ant user path] complex baseband coefficients of `Paths.cir(normalize_delays=False)`
    tau: np.ndarray  # [bs user path] [s]
    zenith: np.ndarray  # [bs user path] at the station [rad]
    azimuth: np.ndarray  # [bs user path] at the station [rad]
    valid: np.ndarray  # [bs user path] bool
    line_of_sight: np.ndarray  # [bs user path] bool: no interaction
    bs_position: np.ndarray  # [bs xyz] [m]
    bs_orientation: np.ndarray  # [bs 3] yaw, pitch, roll [rad]
    antenna_local: np.ndarray  # [ant xyz] [m]
    ue_position: np.ndarray  # [user xyz] [m]
    carrier_hz: float
    cfr: np.ndarray  # [bs ant user sc] `Paths.cfr(pilot_freq, normalize_delays=False)`


def from_sionna(
    scene: Any,
    paths: Any,
    pilot_freq: Sequence[float] | np.ndarray,
    clock_offset_std: float = float("inf"),
    stations: str = "receivers",
    **priors: Any,
) -> TracedRays:
    """Import traced paths; the users are the other side's devices.

    Args:
        scene: `sionna.rt.Scene` with its devices and arrays.
        paths: `sionna.rt.Paths` that a path solver found in it with `synthetic_array=True`.
        pilot_freq: [sc] pilot frequencies, offsets from the carrier, rising [Hz].
        clock_offset_std: what is known of the stations' clocks [s]; inf: nothing.
        stations: `receivers` (uplink) or `transmitters` (downlink; the channel is reciprocal).
        **priors: `region` and `ue_height_range` of the deployment.

    Returns:
        Rays that passed `check_rays` and `check_round_trip` against `paths.cfr`.

    Raises:
        ConfigError: arrays are not synthetic, users have several antennas, or antennas two polarisations.
        ShapeError, DomainError: a convention does not hold.
    """
    return sionna_rays(read_sionna(scene, paths, pilot_freq, stations), pilot_freq, clock_offset_std, **priors)


def sionna_rays(
    traced: SionnaPaths,
    pilot_freq: Sequence[float] | np.ndarray,
    clock_offset_std: float = float("inf"),
    **priors: Any,
) -> TracedRays:
    """As `from_sionna`, from arrays: of another process, or stored."""

    def double(values: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float64)

    deployment = Deployment(
        bs_position=double(traced.bs_position),
        bs_rotation=euler_rotation(traced.bs_orientation),
        antenna_local=double(traced.antenna_local),
        pilot_freq=double(pilot_freq),
        carrier_hz=double(traced.carrier_hz),
        clock_offset_std=double(clock_offset_std),
        **{name: None if value is None else double(value) for name, value in priors.items()},
    ).validate()
    shape = traced.tau.shape
    for name in ("zenith", "azimuth", "valid", "line_of_sight"):
        if getattr(traced, name).shape != shape:
            raise ShapeError(f"{name} must be {list(shape)} as tau is, got {list(getattr(traced, name).shape)}")
    if traced.a.shape != (shape[0], len(traced.antenna_local), *shape[1:]):
        wanted = [shape[0], len(traced.antenna_local), *shape[1:]]
        raise ShapeError(f"a must be [bs ant user path], {wanted}, got {list(traced.a.shape)}")
    mask = torch.from_numpy(np.asarray(traced.valid, np.bool_)).movedim(0, 1)
    direction = directions(traced.azimuth, traced.zenith).movedim(0, 1)
    waves = response(direction, deployment.antenna_global, deployment.wavelength)  # [user bs ant path]
    coefficient = torch.from_numpy(np.asarray(traced.a, np.complex128)).permute(2, 0, 1, 3)
    gain = torch.where(mask, (waves.conj() * coefficient).mean(-2), 0.0)  # one amplitude for all antennas
    paths = Paths(double(traced.tau).movedim(0, 1), direction, gain, mask)
    los = torch.from_numpy(np.asarray(traced.line_of_sight, np.bool_)).movedim(0, 1) & mask
    rays = TracedRays(deployment, paths, double(traced.ue_position), los, "Sionna RT")
    check_rays(rays)
    check_round_trip(rays, np.asarray(traced.cfr).transpose(2, 0, 1, 3))
    return rays


def read_sionna(scene: Any, paths: Any, pilot_freq: Sequence[float] | np.ndarray, stations: str) -> SionnaPaths:
    """Arrays of a scene and its paths; see `from_sionna`."""
    if stations not in ("receivers", "transmitters"):
        raise ConfigError(f"stations must be 'receivers' or 'transmitters', got {stations!r}")
    if not paths.synthetic_array:
        raise ConfigError(
            "paths must be traced with synthetic_array=True (one set of plane waves per station), got False"
        )
    uplink = stations == "receivers"
    bs, ue = (scene.receivers, scene.transmitters) if uplink else (scene.transmitters, scene.receivers)
    array, single = (paths.rx_array, paths.tx_array) if uplink else (paths.tx_array, paths.rx_array)
    if single.num_ant != 1 or array.num_ant != array.array_size:
        raise ConfigError(
            "users must have one antenna and stations antennas of one polarisation, "
            f"got {single.num_ant} and {array.num_ant} for {array.array_size} places"
        )

    def station_first(values: np.ndarray) -> np.ndarray:
        """[rx tx path] or [rx rx_ant tx tx_ant last] to [bs user path] or [bs ant user last]."""
        if values.ndim == 3:
            return values if uplink else values.swapaxes(0, 1)
        return values[:, :, :, 0] if uplink else values[:, 0].transpose(1, 2, 0, 3)

    a, tau = paths.cir(normalize_delays=False, out_type="numpy")
    cfr = paths.cfr(np.asarray(pilot_freq, np.float32), normalize_delays=False, out_type="numpy")
    zenith, azimuth = (paths.theta_r, paths.phi_r) if uplink else (paths.theta_t, paths.phi_t)
    interactions = paths.interactions.numpy()
    return SionnaPaths(
        a=station_first(a[..., 0]),
        tau=station_first(tau),
        zenith=station_first(zenith.numpy()),
        azimuth=station_first(azimuth.numpy()),
        valid=station_first(paths.valid.numpy()),
        line_of_sight=station_first((interactions == LINE_OF_SIGHT).all(0)),
        bs_position=_points(device.position for device in bs.values()),
        bs_orientation=_points(device.orientation for device in bs.values()),
        antenna_local=array.positions(scene.wavelength).numpy().T,
        ue_position=_points(device.position for device in ue.values()),
        carrier_hz=float(np.asarray(scene.frequency).item()),
        cfr=station_first(cfr[..., 0, :]),
    )


def _points(points: Any) -> np.ndarray:
    return np.stack([np.asarray(point.numpy()).reshape(3) for point in points])
