"""Signal subspaces and MUSIC pseudo-spectra.

The null spectrum of a unit response a is `|En^H a|^2 = 1 - |Es^H a|^2`, En and Es the noise and signal eigenvectors;
MUSIC looks for the peaks of its inverse (Schmidt, IEEE TAP 34(3), 1986). The form with the few signal vectors is
evaluated: on a full grid the noise vectors, or the matrix `En En^H`, cost many times more. On a uniform grid of
elements the power `|Es^H a|^2` is a trigonometric polynomial of the spatial frequencies, known everywhere from few
samples.
"""

import math

import torch
from torch import Tensor

from sensing import arrays
from sensing.checks import check_finite, check_shape
from sensing.coarse.smoothing import complex_vectors, planar_raster, real_covariance
from sensing.errors import DomainError

_SPARE = 5  # vectors iterated beyond those wanted, at least: they absorb the slowest errors
_TOLERANCE = 1e-9  # of the angle between the iterated and the exact subspace


def leading_eigenpairs(matrix: Tensor, count: int, rounds: int = 3, exact: bool = True) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues and their vectors of positive semidefinite matrices by subspace iteration.

    A matrix whose leading subspace has not converged after the last round, for lack of a gap behind its last
    eigenvalue, is decomposed fully.

    Args:
        matrix: [* D D] Hermitian or symmetric.
        count: number wanted, at most D.
        rounds: most rounds.
        exact: decompose what has not converged; otherwise its vectors are good where eigenvalues stand out.

    Returns:
        Eigenvalues [* count], descending, and vectors [* D count].
    """
    size, block = matrix.shape[-1], 4 * math.ceil((count + _SPARE) / 4)
    flat = matrix.reshape(-1, size, size)
    if 3 * block > size:
        return _leading(torch.linalg.eigh(matrix), count)
    value = flat.new_zeros(len(flat), count, dtype=flat.real.dtype)
    vector = flat.new_zeros(len(flat), size, count)
    index = torch.arange(len(flat), device=flat.device)
    start = torch.randn(size, block, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = flat @ (flat @ start.to(flat).expand(len(flat), size, block))
    for _ in range(rounds):
        basis = torch.linalg.qr(flat @ image).Q
        basis = torch.linalg.qr(flat @ basis).Q  # a single product before the last: its rounding stays below the spread
        image = flat @ basis
        ritz, rotation = torch.linalg.eigh(basis.mH @ image)
        leading, turned = _leading((ritz, rotation), count)
        found = basis @ turned
        rest = _power((image @ turned - found * leading[..., None, :]).flatten(-2), -1).sqrt()
        done = rest <= _TOLERANCE * (leading[..., -1] - ritz[..., -count - 1])
        value[index], vector[index] = leading, found
        if bool(done.all()):
            break
        index, flat, image = index[~done], flat[~done], image[~done]
    else:
        if exact:
            value[index], vector[index] = _leading(torch.linalg.eigh(flat), count)
    return value.reshape(*matrix.shape[:-2], count), vector.reshape(*matrix.shape[:-1], count)


def _leading(pair: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The last eigenpairs of an ascending decomposition, descending."""
    return pair[0][..., -count:].flip(-1), pair[1][..., -count:].flip(-1)


def signal_subspace(covariance: Tensor, order: int) -> Tensor:
    """The `order` leading eigenvectors of covariances, [* ant ant] to [* ant order].

    Raises:
        ShapeError: the covariance is not square.
        DomainError: it is not finite, or the order is not between 1 and ant - 1.
    """
    ant = covariance.shape[-1]
    check_shape("covariance", covariance, "* ant ant", ant=ant)
    if not bool(covariance.sum().abs().isfinite()):  # a fraction of the cost of looking at each
        check_finite("covariance", covariance)
    if not 1 <= order < ant:
        raise DomainError(f"order must be between 1 and ant - 1 = {ant - 1}, got {order}")
    return leading_eigenpairs(covariance, order)[1]


def null_spectrum(subspace: Tensor, steering: Tensor) -> Tensor:
    """`1 - |Es^H a|^2 / |a|^2`, between 0 on a source and 1.

    Args:
        subspace: [* ant order] orthonormal signal vectors.
        steering: [ant point] responses.

    Returns:
        [* point], at least the rounding unit, so that its inverse is finite.
    """
    check_shape("steering", steering, "ant point", ant=subspace.shape[-2])
    return _null(_power(subspace.mH @ steering, -2) / _power(steering, -2))


def music_spectrum(covariance: Tensor, steering: Tensor, order: int) -> Tensor:
    """Pseudo-spectrum `|a|^2 / |En^H a|^2` of covariances [* ant ant] on [ant point] responses, [* point]."""
    return null_spectrum(signal_subspace(covariance, order), steering).reciprocal()


class AngleSpectrum:
    """MUSIC pseudo-spectrum over azimuth and elevation, for many covariances of one array.

    Directions are `(cos el cos az, cos el sin az, sin el)` in the frame of the array. For a uniform grid of elements in
    the y-z plane the power is sampled by FFT at twice as many frequencies as elements, which determine it, and
    interpolated by Dirichlet kernels, first along z (one frequency per elevation), then along y: all real, and the
    number of elements enters by its root. Other arrays go through their responses.

    Args:
        antenna: [ant xyz] element positions [wavelengths].
        azimuth: [az] [rad].
        elevation: [el] [rad].
        forward_backward: average every covariance with that of the reversed array, and decompose it in real arithmetic;
            for uniform grids only.
    """

    def __init__(self, antenna: Tensor, azimuth: Tensor, elevation: Tensor, forward_backward: bool = False) -> None:
        check_shape("antenna", antenna, "ant xyz", xyz=3)
        check_shape("azimuth", azimuth, "az")
        check_shape("elevation", elevation, "el")
        for name, value in (("antenna", antenna), ("azimuth", azimuth), ("elevation", elevation)):
            check_finite(name, value)
        self.shape, self.forward_backward = (len(azimuth), len(elevation)), forward_backward
        side = azimuth.sin() * elevation.cos()[:, None]  # [el az]
        up = elevation.sin()
        self.steering: Tensor | None = None
        try:
            self.num, self.order, step = planar_raster(antenna)
        except DomainError:
            if forward_backward:
                raise
            front = azimuth.cos() * elevation.cos()[:, None]
            direction = torch.stack([front, side, up[:, None].expand_as(side)], -1).transpose(0, 1).reshape(-1, 3)
            self.steering = arrays.response(direction, antenna, torch.ones_like(up[0]))
        else:
            self.sorted = bool((self.order.diff() > 0).all())
            self.along_y = _interpolation(2.0 * math.pi * step[0] * side, self.num[0])  # [el 2y az]
            self.along_z = _interpolation(2.0 * math.pi * step[1] * up, self.num[1])  # [2z el]

    def __call__(self, covariance: Tensor, order: int) -> Tensor:
        """Pseudo-spectra `1 / |En^H a|^2` of unit responses a.

        Args:
            covariance: [* ant ant].
            order: number of sources.

        Returns:
            [* az el].
        """
        if self.steering is not None:
            return music_spectrum(covariance, self.steering, order).unflatten(-1, self.shape)
        if self.forward_backward:
            ordered = covariance if self.sorted else covariance[..., self.order[:, None], self.order]
            subspace = complex_vectors(signal_subspace(real_covariance(ordered), order))
        else:
            subspace = signal_subspace(covariance, order)[..., self.order, :]
        cube = subspace.reshape(-1, *self.num, order)
        power = _power(torch.fft.fftn(cube, s=[2 * size for size in self.num], dim=(1, 2)), -1)
        power = (power @ self.along_z).permute(2, 0, 1) @ self.along_y  # [el n az]
        return _null(power.permute(1, 2, 0)).reciprocal().reshape(*covariance.shape[:-2], *self.shape)


def grid_power(subspace: Tensor, points: tuple[int, ...]) -> Tensor:
    """Power `|Es^H a|^2` of unit responses a in a subspace, over all spatial frequencies of a uniform grid, by FFT.

    Args:
        subspace: [* delay y z order] orthonormal vectors; zero vectors may fill up a batch.
        points: number of frequencies `i / points` [cycles per element] along delay, y and z.

    Returns:
        [* *points].
    """
    spectrum = torch.fft.fftn(subspace, s=points, dim=(-4, -3, -2))
    return _power(spectrum, -1) / subspace.shape[-4:-1].numel()


def _interpolation(omega: Tensor, num: int) -> Tensor:
    """Weights of 2 num equidistant samples of a polynomial of degree num - 1 at omega [* point], [* 2*num point].

    Real: `sum_p exp(j p (omega - omega_i)) / (2 num)` over |p| < num. A further `1 / num` is the norm of a response.
    """
    sample = (math.pi / num) * torch.arange(2 * num, dtype=omega.dtype, device=omega.device)
    lag = torch.arange(1, num, dtype=omega.dtype, device=omega.device)
    phase = (omega[..., None, :] - sample[:, None])[..., None] * lag
    return (1.0 + 2.0 * phase.cos().sum(-1)) / (2.0 * num * num)


def _power(value: Tensor, dim: int) -> Tensor:
    """Sum of squared moduli along a dimension."""
    return torch.linalg.vecdot(value, value, dim=dim).real


def _null(power: Tensor) -> Tensor:
    """One less the power, at least the rounding unit."""
    return (1.0 - power).clamp(min=torch.finfo(power.dtype).eps)
