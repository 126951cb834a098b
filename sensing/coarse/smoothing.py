"""Forward-backward smoothing of one snapshot over antennas and pilots.

A single snapshot of several paths is coherent: its sample covariance has rank one. Windows that slide over a uniform
grid of pilots and antennas see the same paths with other phases, and their average covariance has full signal rank
(Shan, Wax and Kailath, IEEE TASSP 33(4), 1985; in delay and angle: Wang, Chen and Fang, "TST-MUSIC", IEEE TSP 49(4),
2001). Windows and their elements are indexed (delay, y, z), z running fastest.
"""

import math
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from sensing.checks import check_shape
from sensing.containers import Deployment
from sensing.errors import DomainError, ShapeError
from sensing.units import SPEED_OF_LIGHT

_RASTER = 1e-6  # of a step: positions and pilots further off their raster are not uniform

Window = tuple[int, int, int]
"""Pilots, horizontal and vertical antennas of a window, or of the whole grid."""


class UniformGrid(NamedTuple):
    """A snapshot as samples of a uniform grid over pilots and the local y and z axes."""

    shape: Window
    antenna: Tensor  # [y*z] index of the element at (iy, iz)
    step: Tensor  # [3] pilot spacing / c [1/m]; antenna spacing / wavelength along y and z; zero where there is one

    def cube(self, y: Tensor) -> Tensor:
        """Snapshots [* ant sc] as [* sc y z]."""
        return y[..., self.antenna, :].mT.unflatten(-1, self.shape[1:])


def uniform_grid(deployment: Deployment) -> UniformGrid:
    """The grid of a deployment's antennas and pilots.

    Args:
        deployment: elements in any order, on a full raster in the local y-z plane; uniform pilots.

    Returns:
        The grid.

    Raises:
        DomainError: the array or the pilots are not uniform.
    """
    (num_y, num_z), antenna, (step_y, step_z) = planar_raster(deployment.antenna_local / deployment.wavelength)
    freq = deployment.pilot_freq
    index_f, step_f = _raster(freq, freq[-1] - freq[0])
    if step_f is None or int(index_f.max()) + 1 != len(freq):
        raise DomainError("pilot_freq must be uniformly spaced for frequency smoothing, got uneven steps")
    step = torch.stack([step_f / SPEED_OF_LIGHT, step_y, step_z])
    return UniformGrid((len(freq), num_y, num_z), antenna, step)


def planar_raster(position: Tensor) -> tuple[tuple[int, int], Tensor, tuple[Tensor, Tensor]]:
    """Rows and columns of elements that fill a rectangular raster in the y-z plane.

    Args:
        position: [ant xyz], in any order.

    Returns:
        Numbers along (y, z), the index of the element at (iy, iz) as [y*z], and the steps along (y, z).

    Raises:
        DomainError: they do not fill one.
    """
    extent = position.amax(0) - position.amin(0)
    (_, depth), (index_y, step_y), (index_z, step_z) = (_raster(axis, extent.max()) for axis in position.mT)
    if depth is None or step_y is None or step_z is None or bool(depth > 0):
        raise DomainError("antenna_local must be a uniform grid in the local y-z plane, got elements off it")
    num_y, num_z = int(index_y.max()) + 1, int(index_z.max()) + 1
    place = index_y * num_z + index_z
    if len(place) != num_y * num_z or len(place.unique()) != len(place):
        raise DomainError(
            f"antenna_local must fill its {num_y} x {num_z} grid with one element each, "
            f"got {len(place)} elements on {len(place.unique())} of its points"
        )
    return (num_y, num_z), place.argsort(), (step_y, step_z)


def _raster(value: Tensor, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    """Indices of values on a raster and its step (zero if all are equal, None if there is no raster)."""
    offset = value - value.min()
    ordered = offset.sort().values
    gap = ordered.diff()
    gap = gap[gap > _RASTER * scale]
    if not len(gap):
        return torch.zeros_like(value, dtype=torch.long), value.new_zeros(())
    step = ordered[-1] / (ordered[-1] / gap.min()).round()
    index = (offset / step).round()
    uniform = bool((offset - index * step).abs().max() <= _RASTER * scale)
    return index.long(), step if uniform else None


def check_window(window: Window, shape: Window) -> None:
    """Raise ShapeError unless a window fits into a grid and leaves something to resolve."""
    if not all(1 <= size <= limit for size, limit in zip(window, shape, strict=True)):
        raise ShapeError(f"window must be (delay, y, z) between 1 and the grid's {shape}, got {tuple(window)}")


def smoothed_covariance(cube: Tensor, window: Window) -> Tensor:
    """Average of `x x^H` over all positions of a window.

    Elements whose delays are both one pilot further on average the same products but for the first and the last
    position, `R[i+1, j+1] = R[i, j] + x_T x_T^H - x_0 x_0^H`: only the first block row is summed over all positions, as
    a correlation along the pilots by FFT; the others follow by thin products. A tenth of the work of the plain sum.

    Args:
        cube: [* sc y z] snapshots on a uniform grid.
        window: its size along the three axes.

    Returns:
        [* D D] Hermitian, D the product of the window's sizes.

    Raises:
        ShapeError: the window does not fit into the snapshot.
    """
    check_shape("cube", cube, "* sc y z")
    check_window(window, (cube.shape[-3], cube.shape[-2], cube.shape[-1]))
    depth, size = window[0], window[1] * window[2]
    flat = cube.reshape(-1, *cube.shape[-3:]).unfold(2, window[1], 1).unfold(3, window[2], 1)
    batch, pilots = flat.shape[:2]
    x = flat.reshape(batch, pilots, -1, size)  # [n sc place antenna]
    span = pilots - depth + 1
    scale = 1.0 / (span * x.shape[2])
    first = torch.fft.fft(x[:, :span], n=pilots, dim=1).mT @ torch.fft.fft(scale * x, dim=1).conj()
    first = torch.fft.fft(first, dim=1, norm="forward")[:, :depth]  # lags that do not wrap: [n j antenna antenna]
    head, tail = (x[:, start : start + depth - 1].transpose(1, 2).flatten(2) for start in (0, span))
    change = torch.cat([tail, -head], 1).mT @ (scale * torch.cat([tail, head], 1)).conj()
    change = change.reshape(batch, depth - 1, size, depth - 1, size)
    result = x.new_empty(batch, depth, size, depth, size)
    result[:, 0] = first.transpose(1, 2)
    result[:, 1:, :, 0] = first[:, 1:].mH
    for i in range(depth - 1):
        torch.add(result[:, i, :, :-1], change[:, i], out=result[:, i + 1, :, 1:])
    return result.reshape(*cube.shape[:-3], depth * size, depth * size)


def smoothing_loss(shape: Window, window: Window) -> tuple[float, float, float]:
    """Variance of a single path's frequencies by smoothed MUSIC over the Cramer-Rao bound, to first order in the noise.

    The estimate weights the noise along its own axis with a ramp across the window, averaged over the positions, and
    with the averaged window (a trapezoid) along the two others; the bound with a ramp and two constants.

    Args:
        shape: of the grid.
        window: at least two along every axis that has as many.

    Returns:
        One factor per axis, at least 1.
    """
    ramps, boxes = [], []
    for size, width in zip(shape, window, strict=True):
        positions = numpy.ones(size - width + 1)
        ramp, full = numpy.arange(width) - (width - 1) / 2, numpy.arange(size) - (size - 1) / 2
        box = numpy.convolve(positions, numpy.ones(width))
        slope = numpy.convolve(positions, ramp)
        lever = len(positions) * (ramp**2).sum()
        ramps.append(float((slope**2).sum() * (full**2).sum() / lever**2) if size > 1 else 1.0)
        boxes.append(float(size * (box**2).sum() / box.sum() ** 2))
    everything = math.prod(boxes)
    t, y, z = (ramp * everything / box for ramp, box in zip(ramps, boxes, strict=True))
    return t, y, z


def real_covariance(covariance: Tensor) -> Tensor:
    """Forward-backward average `(R + J R^* J) / 2`, rotated by `Q = (I + j J) / sqrt(2)` into a real matrix.

    J reverses the window. `Q^H R_fb Q = Re R_fb - Im(R_fb) J`: same eigenvalues, eigenvectors of a real matrix
    (Lee, Linear Algebra Appl. 29, 1980); `complex_vectors` leads back.

    Args:
        covariance: [* D D] Hermitian.

    Returns:
        [* D D] real symmetric.
    """
    real, imag = covariance.real, covariance.imag.flip(-1)
    real = real + real.flip(-2, -1)
    imag = imag - imag.flip(-2, -1)
    return 0.5 * (real - imag)


def complex_vectors(vectors: Tensor) -> Tensor:
    """Vectors of the forward-backward covariance from those of its real form, `Q v`: [* D k] to [* D k] complex."""
    return torch.complex(vectors, vectors.flip(-2)) * math.sqrt(0.5)
