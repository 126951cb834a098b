"""Checks of public inputs. Each raises a typed error that says what was expected and what came."""

import torch
from torch import Tensor

from sensing.errors import DomainError, ShapeError


def check_shape(name: str, tensor: Tensor, spec: str, **sizes: int) -> dict[str, int]:
    """Match the axes of a tensor against a specification and return the sizes by name.

    Args:
        name: field name for the message.
        tensor: the tensor to check.
        spec: axis names separated by blanks, for example `"* bs ant sc"`; a leading `*` stands for any number
            of batch axes, a number for itself.
        sizes: sizes already known, for example `sc=64`.

    Returns:
        The size of every named axis, the known ones included.

    Raises:
        ShapeError: the number of axes or a size differs.
    """
    axes = spec.split()
    batched = axes[:1] == ["*"]
    axes = axes[1:] if batched else axes
    shape = tuple(tensor.shape)
    known = dict(sizes)
    fits = len(shape) >= len(axes) if batched else len(shape) == len(axes)
    if fits:
        for axis, size in zip(axes, shape[len(shape) - len(axes) :], strict=True):
            fits &= size == (int(axis) if axis.isdigit() else known.setdefault(axis, size))
    if not fits:
        wanted = [f"{axis}={sizes[axis]}" for axis in axes if axis in sizes]
        where = f" with {', '.join(wanted)}" if wanted else ""
        raise ShapeError(f"{name} must be [{spec}]{where}, got {list(shape)}")
    return known


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise DomainError if a tensor holds NaN or infinity, with how many and where the first is."""
    bad = ~torch.isfinite(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
    if bad.any():
        first = bad.nonzero()[0].tolist()[: tensor.ndim]
        raise DomainError(f"{name} must be finite, got {int(bad.sum())} non-finite values, the first at index {first}")


def check_real(name: str, tensor: Tensor) -> None:
    """Raise DomainError unless a tensor holds floating point numbers that are not complex."""
    if not tensor.is_floating_point():
        raise DomainError(f"{name} must be real, of a floating point type, got {tensor.dtype}")


def check_positive(name: str, tensor: Tensor) -> None:
    """Raise DomainError unless every entry is finite and larger than zero."""
    check_finite(name, tensor)
    if (tensor <= 0).any():
        raise DomainError(f"{name} must be positive, got {float(tensor.min()):g}")


def check_magnitude(name: str, tensor: Tensor, low: float, high: float, hint: str = "") -> None:
    """Raise DomainError for values whose magnitude is neither zero nor from `low` to `high`."""
    size = tensor.abs()
    size = size[size > 0]
    if bool(((size > high) | (size < low)).any()):
        raise DomainError(
            f"{name} must have magnitudes from {low:g} to {high:g}{hint}, "
            f"got {float(size.min()):.3g} to {float(size.max()):.3g}"
        )


def check_rotation(name: str, rotation: Tensor, tolerance: float = 1e-6) -> None:
    """Raise DomainError unless every [3, 3] matrix is orthonormal with determinant +1."""
    check_shape(name, rotation, "* 3 3")
    check_finite(name, rotation)
    eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    defect = (rotation.mT @ rotation - eye).abs().amax(dim=(-2, -1))
    determinant = torch.linalg.det(rotation)
    bad = ~(defect <= tolerance) | ~(determinant > 0)  # NaN, from entries whose squares overflow, is bad too
    if bad.any():
        worst = (
            int(defect.reshape(-1).argmax()) if (defect > tolerance).any() else int(determinant.reshape(-1).argmin())
        )
        raise DomainError(
            f"{name} must hold rotations (R^T R = I to {tolerance:g}, det R = 1), "
            f"got |R^T R - I| = {float(defect.reshape(-1)[worst]):.2g}, "
            f"det = {float(determinant.reshape(-1)[worst]):.3f} "
            f"for station {worst}"
        )


def check_increasing(name: str, tensor: Tensor) -> None:
    """Raise DomainError unless a vector is strictly increasing (no duplicates)."""
    check_finite(name, tensor)
    step = tensor.diff()
    if (step <= 0).any():
        at = int((step <= 0).nonzero()[0, 0])
        raise DomainError(
            f"{name} must be strictly increasing without duplicates, got {float(tensor[at]):g} followed by "
            f"{float(tensor[at + 1]):g} at index {at + 1}"
        )
