"""Signal subspaces and MUSIC pseudo-spectra.

The null spectrum of a unit response a is `|En^H a|^2 = 1 - |Es^H a|^2`, En and Es the noise and signal eigenvectors;
MUSIC looks for the peaks of its inverse (Schmidt, IEEE TAP 34(3), 1986). The form with the few signal vectors is
evaluated: on a full grid the noise vectors, or the matrix `En En^H`, cost many times more.
"""

import torch
from torch import Tensor

from sensing.checks import check_finite, check_shape
from sensing.errors import DomainError

_SPARE = 16  # vectors iterated beyond those wanted
_ROUNDS = 4  # each multiplies by the third power of the matrix: errors fall with (next / wanted eigenvalue)^13


def leading_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues and their vectors of positive semidefinite matrices by subspace iteration.

    Cheaper than all eigenvectors by the ratio of size to count; small matrices are decomposed fully.

    Args:
        matrix: [* D D] Hermitian or symmetric.
        count: number wanted, at most D.

    Returns:
        Eigenvalues [* count], descending, and vectors [* D count].
    """
    size = matrix.shape[-1]
    block = count + _SPARE
    if 4 * block > size:
        value, vector = torch.linalg.eigh(matrix)
        return value[..., -count:].flip(-1), vector[..., -count:].flip(-1)
    start = torch.randn(size, block, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    basis = matrix @ start.to(matrix)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(basis).Q
        basis = matrix @ (matrix @ (matrix @ basis))
    basis = torch.linalg.qr(basis).Q
    value, rotation = torch.linalg.eigh(basis.mH @ (matrix @ basis))
    return value[..., -count:].flip(-1), basis @ rotation[..., -count:].flip(-1)


def signal_subspace(covariance: Tensor, order: int) -> Tensor:
    """The `order` leading eigenvectors of covariances, [* ant ant] to [* ant order].

    Raises:
        ShapeError: the covariance is not square.
        DomainError: it is not finite, or the order is not between 1 and ant - 1.
    """
    ant = covariance.shape[-1]
    check_shape("covariance", covariance, "* ant ant", ant=ant)
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
    power = _power(steering.mT @ subspace.conj()).sum(-1)
    return _null(power, _power(steering).sum(-2))


def music_spectrum(covariance: Tensor, steering: Tensor, order: int) -> Tensor:
    """Pseudo-spectrum `|a|^2 / |En^H a|^2` of covariances [* ant ant] on [ant point] responses, [* point]."""
    return null_spectrum(signal_subspace(covariance, order), steering).reciprocal()


def grid_power(subspace: Tensor, points: tuple[int, ...]) -> Tensor:
    """Power `|Es^H a|^2` of unit responses a in a subspace, over all spatial frequencies of a uniform grid, by FFT.

    Args:
        subspace: [* delay y z order] orthonormal vectors; zero vectors may fill up a batch.
        points: number of frequencies `i / points` [cycles per element] along delay, y and z.

    Returns:
        [* *points].
    """
    spectrum = torch.fft.fftn(subspace, s=points, dim=(-4, -3, -2))
    return _power(spectrum).sum(-1) / subspace.shape[-4:-1].numel()


def _power(value: Tensor) -> Tensor:
    """Squared modulus."""
    return torch.view_as_real(value).square().sum(-1) if value.is_complex() else value.square()


def _null(power: Tensor, norm: Tensor) -> Tensor:
    return (1.0 - power / norm).clamp(min=torch.finfo(power.dtype).eps)
