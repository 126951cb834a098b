"""Antenna arrays and their response.

Element positions are given in wavelengths in the local frame: x is the boresight, y horizontal, z vertical. The
response of an element at p to a plane wave from the unit direction k is `exp(+j 2 pi p.k)` (p in wavelengths), unit
modulus, phase reference at the local origin.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sensing.checks import check_finite, check_shape
from sensing.errors import ConfigError
from sensing.waves import plane_waves


def upa(num_y: int = 8, num_z: int = 8, spacing: float = 0.5) -> Tensor:
    """Uniform planar array in the local y-z plane, centred; element (iy, iz) has index iy * num_z + iz.

    Args:
        num_y: elements along the horizontal.
        num_z: elements along the vertical.
        spacing: element distance in wavelengths.

    Returns:
        [ant xyz] in wavelengths.
    """
    if num_y < 1 or num_z < 1 or not spacing > 0:
        raise ConfigError(f"upa needs num_y, num_z >= 1 and spacing > 0, got {num_y}, {num_z}, {spacing}")
    y = (torch.arange(num_y, dtype=torch.float64) - (num_y - 1) / 2) * spacing
    z = (torch.arange(num_z, dtype=torch.float64) - (num_z - 1) / 2) * spacing
    grid_y, grid_z = torch.meshgrid(y, z, indexing="ij")
    return torch.stack([torch.zeros_like(grid_y), grid_y, grid_z], -1).reshape(-1, 3)


def ula(num: int = 16, spacing: float = 0.5) -> Tensor:
    """Uniform linear array along the local y axis, [ant xyz] in wavelengths. It does not resolve elevation."""
    if num < 1 or not spacing > 0:
        raise ConfigError(f"ula needs num >= 1 and spacing > 0, got {num}, {spacing}")
    return upa(num, 1, spacing)


def elements(positions: Sequence[Sequence[float]]) -> Tensor:
    """Array with explicit element positions in wavelengths, [ant xyz]."""
    tensor = torch.as_tensor(positions, dtype=torch.float64)
    check_shape("array positions", tensor, "ant xyz", xyz=3)
    check_finite("array positions", tensor)
    return tensor


def response(direction: Tensor, antenna: Tensor, wavelength: Tensor) -> Tensor:
    """Array response `exp(+j 2 pi / lambda p.k)`.

    Args:
        direction: [* bs path xyz] unit vectors in global axes.
        antenna: [bs ant xyz] element positions in global axes [m].
        wavelength: [] [m].

    Returns:
        [* bs ant path] complex, unit modulus.
    """
    return plane_waves(antenna, (2.0 * math.pi / wavelength) * direction)
