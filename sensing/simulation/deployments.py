"""From configuration values to a Deployment."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sensing.checks import check_finite, check_shape
from sensing.containers import Deployment
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.geometry import facing
from sensing.units import SPEED_OF_LIGHT


def build_deployment(
    bs_position: Sequence[Sequence[float]],
    array: Tensor,
    pilot_freq: Tensor,
    carrier_hz: float,
    clock_offset_std: float,
    target: Sequence[float] | None = None,
    bs_rotation: Sequence[Sequence[Sequence[float]]] | None = None,
    tilt: bool = False,
    region: Sequence[Sequence[float]] | None = None,
    ue_height_range: Sequence[float] | None = None,
) -> Deployment:
    """Stations with one kind of array, each facing a target or with a given pose.

    Args:
        bs_position: [bs xyz] [m].
        array: [ant xyz] element positions in wavelengths (see `sensing.arrays`).
        pilot_freq: [sc] [Hz] (see `sensing.ofdm`).
        carrier_hz: carrier frequency [Hz].
        clock_offset_std: standard deviation of the clock offset prior [s]; inf for a flat prior.
        target: [xyz] or [bs xyz] point that the boresights face [m]; ignored when `bs_rotation` is given.
        bs_rotation: [bs 3 3] local to global, column 0 the boresight.
        tilt: face the target's height too.
        region: [2 xyz] corners of the region of interest [m].
        ue_height_range: lowest and highest height of the user [m].

    Returns:
        A validated deployment in float64.

    Raises:
        ConfigError: neither target nor rotations are given.
        ShapeError, DomainError: a value does not fit.
    """

    def double(name: str, values: Any) -> Tensor:
        try:
            return torch.as_tensor(values, dtype=torch.float64)
        except (TypeError, ValueError) as error:  # rows of unequal length, texts
            raise ShapeError(f"{name} must be a regular array of numbers, got {values!r}") from error

    position = double("bs_position", bs_position)
    check_shape("bs_position", position, "bs xyz", xyz=3)
    check_finite("bs_position", position)
    if bs_rotation is not None:
        rotation = double("bs_rotation", bs_rotation)
    elif target is not None:
        point = double("target", target)
        check_shape("target", point, "* xyz", xyz=3)
        if point.ndim > 1:
            check_shape("target", point, "bs xyz", bs=len(position), xyz=3)
        check_finite("target", point)
        rotation = facing(position, point, tilt)
        if not bool(torch.isfinite(rotation).all()):
            station = int((~torch.isfinite(rotation)).flatten(1).any(-1).nonzero()[0, 0])
            raise DomainError(
                f"target must not lie straight above, below or at a station, got {point.tolist()} "
                f"for station {station} at {position[station].tolist()}"
            )
    else:
        raise ConfigError("a deployment needs bs_rotation or a target that the boresights face, got neither")
    if not (isinstance(carrier_hz, (int, float)) and carrier_hz > 0 and math.isfinite(carrier_hz)):
        raise ConfigError(f"carrier_hz must be a positive number, got {carrier_hz!r}")
    return Deployment(
        bs_position=position,
        bs_rotation=rotation,
        antenna_local=array.to(torch.float64) * (SPEED_OF_LIGHT / carrier_hz),
        pilot_freq=pilot_freq.to(torch.float64),
        carrier_hz=double("carrier_hz", carrier_hz),
        clock_offset_std=double("clock_offset_std", clock_offset_std),
        region=None if region is None else double("region", region),
        ue_height_range=None if ue_height_range is None else double("ue_height_range", ue_height_range),
    ).validate()
