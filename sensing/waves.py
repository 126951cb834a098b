"""Phasors `exp(j p.k)` of plane waves at sampling points: antennas in space, pilots in frequency.

The points of a uniform array or of a pilot raster form a lattice: point `a * n + b` is `p_(a n) + p_b - p_0`. The
phasors then are products of two short tables, `exp(j p_(a n).k) * exp(j (p_b - p_0).k)`, so that of N points only
about 2 sqrt(N) need a sine and a cosine. Phases are formed in the precision of the points, which is double.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def plane_waves(point: Tensor, wave: Tensor) -> Tensor:
    """Unit phasors `exp(j p.k)`.

    Args:
        point: [* point dim] sampling points, whatever their unit.
        wave: [* path dim] wave vectors [rad per that unit].

    Returns:
        [* point path] complex, unit modulus.
    """
    lattice = _lattice(point)
    if lattice is None:
        return _phasor(point @ wave.mT)
    short, fine = lattice
    table = _phasor(short @ wave.mT)
    return (table[..., fine:, None, :] * table[..., None, :fine, :]).flatten(-3, -2)


def _lattice(point: Tensor) -> tuple[Tensor, int] | None:
    """Points of the fine table, then those of the coarse one, and the length of the former; None where it is no use."""
    if point.device.type != "cpu" or point.requires_grad:  # elsewhere sines are cheap, and a look would wait for them
        return None
    try:
        number = point.numpy()
    except RuntimeError:  # inside a transform of torch.func, whose tensors have no storage
        return None
    return _split(number.tobytes(), number.dtype.str, number.shape)


@lru_cache(maxsize=64)
def _split(data: bytes, dtype: str, shape: tuple[int, ...]) -> tuple[Tensor, int] | None:
    """`_lattice` of an array's bytes: to look each array over once takes less time than to compute with it."""
    fine = next(n for n in range(math.isqrt(shape[-2]), 0, -1) if shape[-2] % n == 0)
    if fine < 4:
        return None
    point = np.frombuffer(data, dtype).reshape(shape)
    block = point.reshape(*shape[:-2], -1, fine, shape[-1])
    offset = block[..., :1, :, :] - block[..., :1, :1, :]
    rounding = 8.0 * np.finfo(dtype).eps * np.abs(point).max()
    if np.abs(block - block[..., :1, :] - offset).max() > rounding:
        return None
    short = np.concatenate([offset[..., 0, :, :], block[..., 0, :]], -2)
    return torch.from_numpy(short), fine


def _phasor(phase: Tensor) -> Tensor:
    """`exp(j phase)`, three times as fast as `torch.polar`."""
    return torch.complex(phase.cos(), phase.sin())
