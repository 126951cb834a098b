"""What reality does and the model does not know: sizes of the impairments of simulated observations.

All sizes are neutral by default, and at severity 0. The laws of errors that stay with a station are in
`simulation.hardware`, of those that are drawn anew for each scene in `simulation.propagation`.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from sensing.errors import ConfigError

_SHAPES = ("diffuse_decay_m",)  # say what an impairment looks like, not how large it is
_SIGNED = ("noise_db",)


@dataclass(frozen=True, kw_only=True)
class Impairments:
    """Sizes of all impairments.

    Args:
        severity: factor on every size below; the power, for `clock_factor`.
        gain_db: standard deviation of the elements' gains [dB].
        phase_deg: standard deviation of the elements' phases [degrees].
        element_wavelengths: standard deviation of each coordinate of the elements' positions [wavelengths].
        coupling: amplitude that an element half a wavelength away couples in.
        station_m: standard deviation of each coordinate of the stations' positions [m].
        station_deg: standard deviation of each component of the stations' rotation vectors [degrees].
        noise_db: noise of all stations above the nominal one, which is told to the estimators [dB].
        noise_spread_db: standard deviation of it from station to station [dB].
        clock_factor: deviation of the drawn clock offsets over that which the sampler was told.
        gain_spread_db: standard deviation of a log-normal factor on the power of every path, mean one [dB].
        diffuse: power of the diffuse tail over that of all paths of a station.
        diffuse_decay_m: path length over which the diffuse tail falls by a factor e; never scaled [m].
        multi_bounce: amplitude of paths over two scatterers relative to that over one.
        extent_m: standard deviation of each coordinate of a scatterer's reflection point, station by station [m].
        visibility_m: length over which the visibility of shared scatterers is correlated [m].

    Raises:
        ConfigError: a value outside its range.
    """

    severity: float = 1.0
    gain_db: float = 0.0
    phase_deg: float = 0.0
    element_wavelengths: float = 0.0
    coupling: float = 0.0
    station_m: float = 0.0
    station_deg: float = 0.0
    noise_db: float = 0.0
    noise_spread_db: float = 0.0
    clock_factor: float = 1.0
    gain_spread_db: float = 0.0
    diffuse: float = 0.0
    diffuse_decay_m: float = 15.0
    multi_bounce: float = 0.0
    extent_m: float = 0.0
    visibility_m: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"impairments.{name} must be a finite number, got {value!r}")
            above_zero = name in ("clock_factor", *_SHAPES)
            if name not in _SIGNED and (value < 0 or (above_zero and value == 0)):
                raise ConfigError(f"impairments.{name} must be {'>' if above_zero else '>='} 0, got {value}")

    def scaled(self) -> "Impairments":
        """The same sizes at severity 1."""
        sizes: dict[str, Any] = asdict(self)
        severity = sizes.pop("severity")
        for name in sizes.keys() - set(_SHAPES):
            sizes[name] = sizes[name] ** severity if name == "clock_factor" else sizes[name] * severity
        return Impairments(**sizes)
