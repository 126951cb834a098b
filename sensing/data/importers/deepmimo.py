"""Paths of DeepMIMO data sets, version 3 (dictionaries) or 4 (data set objects), one for every station.

DeepMIMO's stations transmit, so a station's directions are those of departure, and by reciprocity those of arrival in
the uplink. Its channel (generator, function `generate_MIMO_channel`) is

    H[m, k] = sum_l sqrt(P_l / N) exp(j phase_l) exp(j 2 pi d (idx_m . e_l)) exp(-j 2 pi k tau_l B / N)

with e the direction in the panel's axes, subcarrier k = 0 at the carrier, azimuths from x and zeniths ("theta", "el")
from z in degrees, phases in degrees, P in watts (version 3) or 10 log10 of it (version 4), absolute delays. A panel
lies in its y-z plane and is turned by `rotation` = (x, y, z) in degrees, z first (3GPP TR 38.901). The common factor is
free.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensing.containers import Deployment, Paths
from sensing.data.importers.rays import TracedRays, check_rays, check_round_trip, directions, euler_rotation
from sensing.errors import ConfigError, FileFormatError, ShapeError
from sensing.units import SPEED_OF_LIGHT

_VERSION_3 = {"power": "power", "phase": "phase", "delay": "ToA", "azimuth": "DoD_phi", "zenith": "DoD_theta"}
_VERSION_4 = {"power": "power", "phase": "phase", "delay": "delay", "azimuth": "aod_az", "zenith": "aod_el"}


class _Station(NamedTuple):
    """One station's data set in version-independent units."""

    power: np.ndarray  # [user path] linear, NaN for absent paths
    phase: np.ndarray  # [rad]
    delay: np.ndarray  # [s]
    azimuth: np.ndarray  # [rad]
    zenith: np.ndarray  # [rad]
    bs_position: np.ndarray  # [xyz] [m]
    ue_position: np.ndarray  # [user xyz] [m]
    sees: np.ndarray  # [user] bool: a line of sight exists


def from_deepmimo(
    datasets: Sequence[Any],
    carrier_hz: float,
    array: Tensor | np.ndarray,
    pilot_freq: Sequence[float] | np.ndarray,
    rotation_deg: Sequence[Sequence[float]] | np.ndarray | None = None,
    clock_offset_std: float = float("inf"),
    channel: np.ndarray | None = None,
    **priors: Any,
) -> TracedRays:
    """Import the same users' paths from several stations.

    Args:
        datasets: one per station, `DeepMIMO.generate_data(...)[b]` (version 3) or `deepmimo.load(...)` of one
            transmitter (version 4; any mapping or object with its arrays will do).
        carrier_hz: carrier frequency [Hz].
        array: [ant xyz] element positions in the panel's axes [wavelengths], as of `sensing.upa`.
        pilot_freq: [sc] pilot frequencies, offsets from the carrier, rising [Hz].
        rotation_deg: [bs 3] DeepMIMO's `rotation` of every panel about x, y, z [degrees]; none when None.
        clock_offset_std: what is known of the stations' clocks [s]; inf: nothing.
        channel: [user bs ant sc] DeepMIMO's own channel for these antennas and pilots, to compare with; any scale.
        **priors: `region` and `ue_height_range` of the deployment.

    Returns:
        Rays that passed `check_rays` and, where there is a channel, `check_round_trip`.

    Raises:
        ConfigError: no data set is given.
        FileFormatError: a data set misses a field.
        ShapeError, DomainError: users differ between the stations, or a convention does not hold.
    """
    stations = [_station(each, number) for number, each in enumerate(datasets)]
    if not stations:
        raise ConfigError("datasets must hold one data set per station, got none")
    users = stations[0].ue_position
    for number, station in enumerate(stations):
        if station.ue_position.shape != users.shape or not np.allclose(station.ue_position, users):
            raise ShapeError(f"datasets must be of the same users, got others for station {number}")
    turned = np.zeros((len(stations), 3)) if rotation_deg is None else np.asarray(rotation_deg, np.float64)
    if turned.shape != (len(stations), 3):
        raise ShapeError(f"rotation_deg must be [bs 3] with bs={len(stations)}, got {list(turned.shape)}")

    def double(values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float64)

    deployment = Deployment(
        bs_position=double([station.bs_position for station in stations]),
        bs_rotation=euler_rotation(np.deg2rad(turned[:, ::-1])),
        antenna_local=double(array) * (SPEED_OF_LIGHT / carrier_hz),
        pilot_freq=double(pilot_freq),
        carrier_hz=double(carrier_hz),
        clock_offset_std=double(clock_offset_std),
        **{name: None if value is None else double(value) for name, value in priors.items()},
    ).validate()
    width = max(station.power.shape[1] for station in stations)

    def together(name: str) -> np.ndarray:
        """[user bs path] of a field, absent paths NaN."""
        parts = [getattr(station, name) for station in stations]
        return np.stack([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=np.nan) for p in parts], 1)

    power, delay = together("power"), together("delay")
    exists = np.isfinite(power) & (power > 0)
    amplitude = np.sqrt(np.where(exists, power, 0.0)) * np.exp(1j * np.where(exists, together("phase"), 0.0))
    direction = directions(*(np.where(exists, together(name), 0.0) for name in ("azimuth", "zenith")))
    paths = Paths(
        double(np.where(exists, delay, 0.0)), direction, torch.from_numpy(amplitude), torch.from_numpy(exists)
    )
    sees = torch.from_numpy(np.stack([station.sees for station in stations], 1))
    first = paths.delay.masked_fill(~paths.mask, torch.inf)
    los = paths.mask & sees[..., None] & (first == first.amin(-1, keepdim=True))
    rays = check_rays(TracedRays(deployment, paths, double(users), los, "DeepMIMO"))
    if channel is not None:
        check_round_trip(rays, channel)
    return rays


def _station(dataset: Any, number: int) -> _Station:
    return _version_4(dataset, number) if _found(dataset, "user") is None else _version_3(dataset, number)


def _found(dataset: Any, name: str) -> Any:
    """A field by key or by attribute; None where there is neither."""
    try:
        return dataset[name] if isinstance(dataset, Mapping) else getattr(dataset, name)
    except (KeyError, AttributeError):  # DeepMIMO's attributes raise the former
        return None


def _field(dataset: Any, name: str, number: int) -> Any:
    value = _found(dataset, name)
    if value is None:
        raise FileFormatError(f"datasets[{number}] must hold {name}, as DeepMIMO's do, got {type(dataset).__name__}")
    return value


def _version_3(dataset: Mapping[str, Any], number: int) -> _Station:
    user = dataset["user"]
    paths, place = _field(user, "paths", number), np.asarray(_field(user, "location", number), np.float64)
    counts = [int(_field(each, "num_paths", number)) for each in paths]

    def column(name: str) -> np.ndarray:
        table = np.full((len(paths), max(counts, default=0)), np.nan)
        for row, (each, count) in enumerate(zip(paths, counts, strict=True)):
            table[row, :count] = np.asarray(_field(each, name, number), np.float64)[:count] if count else 0.0
        return table

    fields = {ours: column(theirs) for ours, theirs in _VERSION_3.items()}
    sees = np.asarray(_field(user, "LoS", number)) == 1
    position = np.asarray(_field(dataset, "location", number), np.float64).reshape(3)
    return _radians(**fields, bs_position=position, ue_position=place, sees=sees)


def _version_4(dataset: Any, number: int) -> _Station:
    fields = {ours: np.asarray(_field(dataset, theirs, number), np.float64) for ours, theirs in _VERSION_4.items()}
    fields["power"] = 10.0 ** (fields["power"] / 10.0)
    place = np.asarray(_field(dataset, "rx_pos", number), np.float64)
    position = np.asarray(_field(dataset, "tx_pos", number), np.float64).reshape(-1)
    if position.shape != (3,):
        raise ShapeError(f"datasets[{number}] must be of one transmitter, got tx_pos of {position.size // 3}")
    sees = np.asarray(_field(dataset, "los", number)) == 1
    shapes = {name: field.shape for name, field in fields.items()}
    if any(shape != fields["power"].shape or len(shape) != 2 for shape in shapes.values()):
        raise ShapeError(f"datasets[{number}] must hold arrays [user path], got {shapes}")
    return _radians(**fields, bs_position=position, ue_position=place, sees=sees)


def _radians(**fields: np.ndarray) -> _Station:
    return _Station(**fields | {name: np.deg2rad(fields[name]) for name in ("phase", "azimuth", "zenith")})
