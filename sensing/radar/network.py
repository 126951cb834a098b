"""A radar network: stations, who listens to whose echoes, and the link budget.

A link is a pair (transmitting station, receiving station); a monostatic station is a link to itself. Links use
orthogonal resources, and each keeps all subcarriers and symbols (paper 2, section III-C).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sensing.checks import check_finite, check_positive, check_shape
from sensing.containers import Deployment
from sensing.errors import ConfigError, DomainError
from sensing.simulation.deployments import build_deployment


class RadarNetwork(NamedTuple):
    """What is known of a radar network beforehand."""

    deployment: Deployment  # stations, array (of transmission and reception), active subcarriers, carrier
    links: Tensor  # [link 2] int64: transmitting and receiving station
    symbol_time: Tensor  # [sym] times of the OFDM symbols, zero mean [s]
    spacing_hz: Tensor  # [] subcarrier spacing, the noise bandwidth of one entry [Hz]
    eirp_w: Tensor  # [bs] total transmitted EIRP P_T G_T, shared by the active subcarriers [W]
    sensing_fraction: Tensor  # [bs] rho: share of the power in the sensing beam
    noise_psd: Tensor  # [bs] noise power spectral density N_0, noise figure included [W/Hz]
    rcs_m2: Tensor  # [] radar cross-section of the target [m^2]
    receive_gain: Tensor  # [] gain of a receiving element
    communication_point: Tensor | None = None  # [bs xyz] where the communication beams point; None: far from the target

    @property
    def receivers(self) -> Deployment:
        """The deployment with one entry per link, its receiving station: what the forward model takes."""
        full, index = self.deployment, self.links[:, 1]
        return full._replace(bs_position=full.bs_position[index], bs_rotation=full.bs_rotation[index])

    @property
    def transmitter_position(self) -> Tensor:
        """Position of the transmitting station of each link, [link xyz] [m]."""
        return self.deployment.bs_position[self.links[:, 0]]

    @property
    def noise_var(self) -> Tensor:
        """Noise power per entry `N_0 df`, [link] [W]."""
        return self.noise_psd[self.links[:, 1]] * self.spacing_hz

    def validate(self) -> "RadarNetwork":
        """Check shapes and values of every field; returns the network itself.

        Raises:
            ShapeError, DomainError: a field does not fit; zero power is allowed, it makes a target unobservable.
        """
        self.deployment.validate()
        stations = len(self.deployment.bs_position)
        check_shape("links", self.links, "link 2")
        if not len(self.links) or int(self.links.min()) < 0 or int(self.links.max()) >= stations:
            raise DomainError(f"links must be pairs out of stations 0 to {stations - 1}, got {self.links.tolist()}")
        if len(self.links.unique(dim=0)) < len(self.links):
            raise DomainError(f"links must name every pair once, got {self.links.tolist()}")
        check_shape("symbol_time", self.symbol_time, "sym")
        check_finite("symbol_time", self.symbol_time)
        for name in ("spacing_hz", "rcs_m2", "receive_gain"):
            check_shape(name, getattr(self, name), "")
            check_positive(name, getattr(self, name))
        for name in ("eirp_w", "sensing_fraction", "noise_psd"):
            check_shape(name, getattr(self, name), "bs", bs=stations)
        check_positive("noise_psd", self.noise_psd)
        check_finite("eirp_w", self.eirp_w)
        if bool((self.eirp_w < 0).any()):
            raise DomainError(f"eirp_w must be >= 0, got {float(self.eirp_w.min()):g}")
        if not bool(((self.sensing_fraction >= 0) & (self.sensing_fraction <= 1)).all()):
            raise DomainError(f"sensing_fraction must be from 0 to 1, got {self.sensing_fraction.tolist()}")
        if self.communication_point is not None:
            check_shape("communication_point", self.communication_point, "bs xyz", bs=stations, xyz=3)
            check_finite("communication_point", self.communication_point)
        return self


def build_network(
    bs_position: Sequence[Sequence[float]],
    array: Tensor,
    carrier_hz: float,
    num_subcarriers: int,
    spacing_hz: float,
    num_symbols: int,
    symbol_s: float,
    eirp_w: float | Sequence[float],
    sensing_fraction: float | Sequence[float],
    noise_psd: float | Sequence[float],
    rcs_m2: float = 1.0,
    receive_gain: float = 1.0,
    target: Sequence[float] | None = None,
    bs_rotation: Sequence[Sequence[Sequence[float]]] | None = None,
    active: Sequence[int] | None = None,
    links: str | Sequence[Sequence[int]] = "monostatic",
    communication_point: Sequence[Sequence[float]] | None = None,
) -> RadarNetwork:
    """Network from configuration values.

    Args:
        bs_position: [bs xyz] or, in the plane z = 0, [bs xy] [m].
        array: [ant xyz] element positions in wavelengths (see `sensing.arrays`).
        carrier_hz: carrier frequency [Hz].
        num_subcarriers: K, all active.
        spacing_hz: subcarrier spacing [Hz].
        num_symbols: M, OFDM symbols per estimate.
        symbol_s: duration of a symbol with its cyclic prefix [s].
        eirp_w: total EIRP of all subcarriers, for all stations or one each [W].
        sensing_fraction: rho, share of the power in the sensing beam, for all stations or one each.
        noise_psd: N_0 with the noise figure, for all stations or one each [W/Hz].
        rcs_m2: radar cross-section [m^2].
        receive_gain: gain of a receiving element.
        target: point that the boresights face [m]; or
        bs_rotation: [bs 3 3] local to global, column 0 the boresight.
        active: the stations that take part; None: all.
        links: `monostatic`, `multistatic` (each active station hears every active one), or pairs (transmitter,
            receiver) of active stations by their number in `bs_position`.
        communication_point: [bs xyz] points that the communication beams face: the illumination is then that of the
            two beams together; None: the communication beam does not reach the target.

    Returns:
        A validated network in float64.

    Raises:
        ConfigError, ShapeError, DomainError: a value does not fit; the message names it.
    """
    for name, count in (("num_subcarriers", num_subcarriers), ("num_symbols", num_symbols)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(f"{name} must be a whole number >= 1, got {count!r}")
    for name, value in (("spacing_hz", spacing_hz), ("symbol_s", symbol_s)):
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ConfigError(f"{name} must be a positive number, got {value!r}")
    for name, value in (("rcs_m2", rcs_m2), ("receive_gain", receive_gain)):
        if not isinstance(value, (int, float)):
            raise ConfigError(f"{name} must be a positive number, got {value!r}")
    if not isinstance(bs_position, Sequence) or not all(isinstance(row, Sequence) for row in bs_position):
        raise ConfigError(f"bs_position must be a list of [x, y] or [x, y, z], got {bs_position!r}")
    if active is not None and not isinstance(active, Sequence):
        raise ConfigError(f"active must be a list of stations such as [0, 2], got {active!r}")
    space = [[*row, 0.0] if len(row) == 2 else list(row) for row in bs_position]
    face = None if target is None else ([*target, 0.0] if len(target) == 2 else list(target))
    stations = len(space)
    chosen = list(range(stations)) if active is None else list(active)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(stations)):
        raise ConfigError(f"active must name stations out of 0 to {stations - 1}, each once, got {active}")
    index = torch.arange(num_subcarriers, dtype=torch.float64)
    time = torch.arange(num_symbols, dtype=torch.float64)
    deployment = build_deployment(
        space, array, (index - index.mean()) * spacing_hz, carrier_hz, 0.0, target=face, bs_rotation=bs_rotation
    )

    def each(name: str, value: float | Sequence[float]) -> Tensor:
        try:
            tensor = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} must be a number or one for each station, got {value!r}") from error
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != stations):
            raise ConfigError(f"{name} must be a number or one for each of {stations} stations, got {value}")
        return tensor.expand(stations).clone()

    point = None if communication_point is None else torch.as_tensor(communication_point, dtype=torch.float64)
    return RadarNetwork(
        deployment=deployment,
        links=torch.tensor(_pairs(links, chosen), dtype=torch.int64),
        symbol_time=(time - time.mean()) * symbol_s,
        spacing_hz=torch.tensor(spacing_hz, dtype=torch.float64),
        eirp_w=each("eirp_w", eirp_w),
        sensing_fraction=each("sensing_fraction", sensing_fraction),
        noise_psd=each("noise_psd", noise_psd),
        rcs_m2=torch.tensor(rcs_m2, dtype=torch.float64),
        receive_gain=torch.tensor(receive_gain, dtype=torch.float64),
        communication_point=point,
    ).validate()


def _pairs(links: str | Sequence[Sequence[int]], active: list[int]) -> list[list[int]]:
    if links == "monostatic":
        return [[station, station] for station in active]
    if links == "multistatic":
        return [[sender, receiver] for sender in active for receiver in active]
    if isinstance(links, str):
        raise ConfigError(f"links must be monostatic, multistatic or a list of pairs, got {links!r}")
    items: Sequence[Any] = links if isinstance(links, Sequence) else [links]
    if not all(isinstance(pair, Sequence) for pair in items):
        raise ConfigError(f"links must be monostatic, multistatic or a list of pairs, got {links!r}")
    pairs = [list(pair) for pair in items]
    if not pairs or not all(len(pair) == 2 and set(pair) <= set(active) for pair in pairs):
        raise ConfigError(f"links must be pairs (transmitter, receiver) of active stations {active}, got {links}")
    return pairs
