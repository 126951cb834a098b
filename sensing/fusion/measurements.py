"""Ranges and angles that stations report of one target: what a fusion centre gets (paper 3, equations 1 to 3).

`range = |p - b| + bias + noise`, azimuth and elevation the target's plus noise, in global axes. Paper 3's members are
one density per station and modality; a modality that a station does not report has an infinite deviation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.checks import check_finite, check_real, check_shape
from sensing.errors import ConfigError, DomainError, ShapeError

MODALITIES = ("toa", "aoa", "hybrid")

LARGEST, SHARPEST = 1e9, 1e-12
"""Of positions, ranges and finite deviations; of deviations. Beyond them squares overflow or vanish."""


class StationMeasurements(NamedTuple):
    """Measurements of a target and the deviations that the stations claim for them."""

    bs_position: Tensor  # [bs xyz], or [* bs xyz] where they differ from drop to drop [m]
    range_m: Tensor  # [* bs] [m]
    azimuth: Tensor  # [* bs] [rad]
    elevation: Tensor  # [* bs] [rad]
    range_std: Tensor  # [* bs] assumed deviation of the range [m]; inf: no range
    angle_std: Tensor  # [* bs] assumed deviation of azimuth and elevation [rad]; inf: no angles

    @property
    def direction(self) -> Tensor:
        """Measured unit vector from the station to the target, [* bs xyz]."""
        level = self.elevation.cos()
        return torch.stack([level * self.azimuth.cos(), level * self.azimuth.sin(), self.elevation.sin()], -1)

    @property
    def precision(self) -> Tensor:
        """Assumed precisions of range [1/m^2] and direction (kappa = 1 / std^2), [* 2 bs]; 0: not measured."""
        return torch.stack([self.range_std.reciprocal().square(), self.angle_std.reciprocal().square()], -2)

    @property
    def members(self) -> Tensor:
        """Which densities exist, [* 2*bs] bool: the ranges of all stations, then their directions."""
        return (self.precision > 0).flatten(-2)

    def only(self, modality: str) -> "StationMeasurements":
        """The measurements of one modality: `toa`, `aoa`, or `hybrid` for both.

        Raises:
            ConfigError: another name.
        """
        if modality not in MODALITIES:
            raise ConfigError(f"modality must be one of {list(MODALITIES)}, got {modality!r}")
        none = torch.full_like(self.range_std, torch.inf)
        if modality == "toa":
            return self._replace(angle_std=none)
        return self._replace(range_std=none) if modality == "aoa" else self

    def stations(self, index: list[int]) -> "StationMeasurements":
        """The measurements of some stations."""
        fields = (field[..., index] for field in self[1:])
        return StationMeasurements(self.bs_position[..., index, :], *fields)

    def validate(self) -> "StationMeasurements":
        """Check shapes and values; returns the measurements themselves.

        Raises:
            ShapeError: an axis does not fit.
            DomainError: a value is not finite, a deviation not positive, an angle outside its range, or a drop is
                without any measurement.
        """
        stations = check_shape("range_m", self.range_m, "* bs")["bs"]
        if not self.range_m.numel():
            raise ShapeError(f"range_m must hold a drop and a station at least, got {list(self.range_m.shape)}")
        check_shape("bs_position", self.bs_position, "* bs xyz", bs=stations, xyz=3)
        for name, field in zip(self._fields, self, strict=True):
            check_real(name, field)
            if name.endswith("_std"):
                check_shape(name, field, "* bs", bs=stations)
                if not bool((field > 0).all()):
                    raise DomainError(f"{name} must be positive (inf: not measured), got {float(field.min()):g}")
                odd = field[torch.isfinite(field) & ((field < SHARPEST) | (field > LARGEST))]
                if len(odd):
                    limits = f"from {SHARPEST:g} to {LARGEST:g} (inf: not measured)"
                    raise DomainError(f"{name} must be {limits}, got {float(odd[0]):g}")
            else:
                check_finite(name, field)
                if name in ("bs_position", "range_m") and bool((field.abs() > LARGEST).any()):
                    raise DomainError(f"{name} must be within +-{LARGEST:g} m, got {float(field.abs().max()):g}")
                check_shape(name, field, "* bs xyz" if name == "bs_position" else "* bs", bs=stations)
        for name, largest in (("azimuth", 2 * torch.pi), ("elevation", torch.pi / 2)):
            worst = float(getattr(self, name).abs().max())
            if worst > largest:
                raise DomainError(f"{name} must be within +-{largest:.4f} rad, got {worst:g} (degrees?)")
        if not bool(self.members.any(-1).all()):
            raise DomainError("every drop must have a range or an angle, got one whose deviations are all infinite")
        return self
