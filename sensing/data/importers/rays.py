"""Traced rays of many users: checks of their conventions, and the way to an observation file.

Whatever tool traced them, three facts tell a wrong convention: no path is shorter than the straight line (delays that
were normalised to the first arrival are), a line of sight points at the user (elevations read as zeniths do not), and
the channel that `sensing.channel` makes of the paths is the one that the tool makes of them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensing.channel import channel_response
from sensing.checks import check_finite, check_shape
from sensing.containers import Deployment, Paths, Scene, map_tensors
from sensing.data.writer import write_observations
from sensing.errors import ConfigError, DomainError
from sensing.simulation.sampler import scene_generator, unit_noise
from sensing.simulation.uplink import observe
from sensing.units import SPEED_OF_LIGHT

SINGLE = torch.finfo(torch.float32).eps
"""Tools compute in single precision."""
AT_ONCE = 16  # users whose channels are synthesised together


class TracedRays(NamedTuple):
    """Paths from many users to the same stations, their clocks still aligned."""

    deployment: Deployment
    paths: Paths  # [user bs path], gains at the phase reference of the array and at the carrier
    ue_position: Tensor  # [user xyz] [m]
    los_path: Tensor  # [user bs path] bool: the straight path
    source: str

    @property
    def los_exists(self) -> Tensor:
        """Whether a station sees a user straight, [user bs] bool."""
        return self.los_path.any(-1)


def check_rays(rays: TracedRays) -> TracedRays:
    """Check shapes, values and conventions; returns the rays themselves.

    Raises:
        ShapeError: an axis does not fit.
        DomainError: a value is not finite, a path is shorter than the straight line, or a line of sight does not point
            at the user.
    """
    deployment, paths = rays.deployment.validate(), rays.paths
    sizes = check_shape("delay", paths.delay, "user bs path", bs=len(deployment.bs_position))
    check_shape("direction", paths.direction, "user bs path xyz", **sizes, xyz=3)
    check_shape("gain", paths.gain, "user bs path", **sizes)
    check_shape("ue_position", rays.ue_position, "user xyz", **sizes, xyz=3)
    for name, field in (("delay", paths.delay), ("direction", paths.direction), ("gain", paths.gain)):
        exists = paths.mask.reshape(*paths.mask.shape, *[1] * (field.ndim - 3))
        check_finite(f"{name} of existing paths", torch.where(exists, field, torch.zeros_like(field)))
    check_finite("ue_position", rays.ue_position)
    straight = rays.ue_position[:, None] - deployment.bs_position
    distance = straight.norm(dim=-1, keepdim=True)  # [user bs 1]
    rounding = 64.0 * SINGLE * (distance + deployment.bs_position.abs().max() + rays.ue_position.abs().max())
    length = SPEED_OF_LIGHT * paths.delay
    early = paths.mask & (length < distance - rounding)
    if bool(early.any()):
        user, station, path = early.nonzero()[0].tolist()
        raise DomainError(
            "delay must be absolute, not relative to the first arrival (Sionna RT: normalize_delays=False): a path of "
            f"user {user} and station {station} must be at least {float(distance[user, station]):.2f} m long, "
            f"got {float(length[user, station, path]):.2f} m"
        )
    off = (paths.direction - straight[:, :, None] / distance[..., None]).norm(dim=-1)
    wrong = rays.los_path & paths.mask & (off > 64.0 * SINGLE + rounding / distance)
    if bool(wrong.any()):
        user, station, path = wrong.nonzero()[0].tolist()
        raise DomainError(
            "direction of a line of sight must point from the station to the user (angles in which unit, zenith or "
            f"elevation, of arrival or departure?), got {paths.direction[user, station, path].tolist()} for "
            f"user {user} and station {station}, which are {straight[user, station].tolist()} m apart"
        )
    return rays


def check_round_trip(rays: TracedRays, channel: Tensor | np.ndarray, tolerance: float = 1e-3) -> float:
    """Compare the channel that `sensing.channel` makes of the paths with the tool's own, up to one positive factor.

    Args:
        rays: imported paths.
        channel: [user bs ant sc] frequency response at the pilots of `rays.deployment`, by the tool.
        tolerance: largest norm of a user's difference, relative to that of its channel.

    Returns:
        The largest relative difference found.

    Raises:
        ShapeError: the channel does not fit.
        DomainError: it is another channel; says by how much and what may be the cause.
    """
    deployment, wanted = rays.deployment, torch.as_tensor(channel).to(torch.complex128)
    sizes = {"user": len(rays.ue_position), "bs": len(deployment.bs_position)}
    sizes |= {"ant": len(deployment.antenna_local), "sc": len(deployment.pilot_freq)}
    check_shape("channel", wanted, "user bs ant sc", **sizes)
    check_finite("channel", wanted)
    made = synthesise(rays)
    power = made.abs().square().sum()
    factor = (made.conj() * wanted).real.sum() / torch.where(power > 0, power, torch.ones_like(power))
    norm = wanted.flatten(1).norm(dim=1)
    difference = (factor * made - wanted).flatten(1).norm(dim=1)
    relative = difference / torch.where(norm > 0, norm, torch.ones_like(norm))
    worst = int(relative.argmax())
    if not bool(factor > 0) or not bool(relative[worst] <= tolerance):
        raise DomainError(
            f"channel must be the one of the imported paths to {tolerance:g} (same users, stations, antennas and "
            "pilots; absolute delays, as with normalize_delays=False), got a relative difference of "
            f"{float(relative[worst]):.2g} for user {worst}"
        )
    return float(relative[worst])


def synthesise(rays: TracedRays) -> Tensor:
    """Noise-free channel of all users, [user bs ant sc] complex128."""
    parts = zip(*(field.split(AT_ONCE) for field in rays.paths), strict=True)
    return torch.cat([channel_response(Paths(*part), rays.deployment) for part in parts])


def write_rays(
    path: str | Path,
    rays: TracedRays,
    snr_db: float = 20.0,
    seed: int = 0,
    clock_offset_std: float | None = None,
    least_stations: int = 1,
) -> list[int]:
    """Write users as scenes of an observation file: clock offsets and noise are drawn, the truth is written too.

    Args:
        path: file to write.
        rays: imported paths.
        snr_db: mean received power per antenna and pilot of a scene over the noise power [dB].
        seed: of offsets and noise; those of a user depend on the seed and the user's number alone.
        clock_offset_std: standard deviation of the true clock offsets [s]; that of the deployment's prior when None.
        least_stations: users with paths to fewer stations are left out.

    Returns:
        Numbers of the users that became scenes.

    Raises:
        ConfigError: no user is left, or a flat prior leaves the true offsets open.
        ShapeError, DomainError: see `check_rays`.
    """
    check_rays(rays)
    std = float(rays.deployment.clock_offset_std) if clock_offset_std is None else clock_offset_std
    if not 0.0 <= std < float("inf"):
        raise ConfigError(f"clock_offset_std must be a number >= 0 [s] (the true one, for a flat prior), got {std}")
    if least_stations < 1:
        raise ConfigError(f"least_stations must be at least 1, got {least_stations}")
    power = torch.where(rays.paths.mask, rays.paths.gain.abs(), 0.0)
    heard = (power > 0).any(-1).sum(-1)
    users = (heard >= least_stations).nonzero().squeeze(-1).tolist()
    if not users:
        raise ConfigError(
            f"least_stations must leave a user, got {least_stations} where {len(heard)} users have paths to at most "
            f"{int(heard.max()) if len(heard) else 0} stations"
        )
    chosen = rays._replace(paths=map_tensors(rays.paths, lambda field: field[users]))
    stations = len(rays.deployment.bs_position)
    offset = torch.from_numpy(np.stack([_offsets(seed, user, stations) for user in users])) * std
    late = chosen.paths.delay + offset[..., None]
    channel = synthesise(chosen._replace(paths=chosen.paths._replace(delay=late), ue_position=rays.ue_position[users]))
    noise = unit_noise(channel.shape[1:], seed, "sample", users)
    nowhere = channel.real.new_zeros(len(users), 0, 3)
    visible = torch.zeros(len(users), stations, 0, dtype=torch.bool)
    example = observe(Scene(rays.ue_position[users], nowhere, visible, offset), channel, noise, snr_db)
    write_observations(
        path,
        rays.deployment,
        example.observation,
        scene=example.scene,
        channel=channel,
        los_exists=rays.los_exists[users],
        source=f"{rays.source}; SNR {snr_db:g} dB; seed {seed}",
    )
    return users


def _offsets(seed: int, user: int, stations: int) -> np.ndarray:
    return scene_generator(seed, "sample", user).standard_normal(stations)


def directions(azimuth: np.ndarray, zenith: np.ndarray) -> Tensor:
    """Unit vectors [* xyz] of azimuths (from x towards y) and zeniths (from z) [* each, rad]."""
    azimuth, zenith = np.asarray(azimuth, np.float64), np.asarray(zenith, np.float64)
    flat = np.sin(zenith)
    return torch.from_numpy(np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.cos(zenith)], -1))


def euler_rotation(angles: Sequence[Sequence[float]] | np.ndarray) -> Tensor:
    """Rotations [bs 3 3], local to global, by angles about z, then y, then x [bs 3, rad] (3GPP TR 38.901, 7.1-4)."""
    (a, b, c), eye = np.asarray(angles, np.float64).T, np.eye(3)

    def turn(angle: np.ndarray, axis: int) -> np.ndarray:
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turned = np.tile(eye, (len(angle), 1, 1))
        turned[:, i, i] = turned[:, j, j] = np.cos(angle)
        turned[:, j, i], turned[:, i, j] = np.sin(angle), -np.sin(angle)
        return turned

    return torch.from_numpy(turn(a, 2) @ turn(b, 1) @ turn(c, 0))
