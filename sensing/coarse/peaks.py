"""Minima of the three-dimensional null spectrum of a window, one source after the other.

Frequencies omega [* 3] are phase steps [rad] from one element to the next along (delay, y, z). With the unit response a
the null spectrum is `f = 1 - |Es^H a|^2`. Sources closer than a resolution cell share one valley on a grid. Divided by
the distance of a from the span Q of the sources found so far, `f / (1 - |Q^H a|^2)`, the valleys of these are gone and
the next one stands out ("recursively applied and projected MUSIC", Mosher and Leahy, IEEE TSP 47(2), 1999). At the end
all are refined on f itself.
"""

import math

import torch
from torch import Tensor

from sensing.coarse.spectrum import grid_power

_LEAST_DAMPING = 1e-9
_NEAR = 1e-3  # of the distance from the span of the found sources, below which the quotient is rounding


def find_minima(
    subspace: Tensor, order: Tensor, points: tuple[int, int, int], visible: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """One minimum per dimension of the signal subspace.

    Args:
        subspace: [n delay y z k] orthonormal; snapshots with fewer sources are filled up with zeros.
        order: [n] sources of every snapshot.
        points: frequencies of the search grid along delay, y and z.
        visible: [points_y points_z] bool; elsewhere no minimum is sought.
        steps: Levenberg-Marquardt steps of each.

    Returns:
        omega [n k 3] in [-pi, pi) and the null spectrum there [n k]; columns beyond the order are meaningless.
    """
    num, window = len(subspace), subspace.shape[1:4]
    axes = [2.0 * math.pi * torch.fft.fftfreq(p, dtype=torch.float64, device=order.device) for p in points]
    signal = subspace.flatten(1, 3)
    null = 1.0 - grid_power(subspace, points)
    distance = torch.ones_like(null)
    found = signal[..., :0]
    result = []
    for _ in range(int(order.max())):
        quotient = (null / distance).where(visible & (distance > _NEAR), torch.inf)
        place = torch.unravel_index(quotient.flatten(1).argmin(-1), points)
        omega = torch.stack([axis[i] for axis, i in zip(axes, place, strict=True)], -1)[:, None]
        omega, _ = refine_minima(signal, omega, window, steps, found)
        result.append(omega)
        new = _response(omega, window)[..., :1]  # [n D 1]
        for _ in range(2):  # twice is enough for orthogonality to rounding
            new = new - found @ (found.mH @ new)
        new = new / torch.linalg.vector_norm(new, dim=1, keepdim=True).clamp(min=_NEAR)
        found = torch.cat([found, new], -1)
        distance = distance - grid_power(new.unflatten(1, window), points)
    omega = torch.cat(result, 1) if result else signal.new_zeros(num, 0, 3, dtype=torch.float64)
    return refine_minima(signal, omega, window, steps, found[..., :0])


def refine_minima(
    signal: Tensor, omega: Tensor, window: tuple[int, ...], steps: int, found: Tensor
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt steps on the null spectrum over the distance from the sources found before.

    A minimum of `f / d` at the value h is one of `f - h d`, so that each step is one on that with the current h. Its
    Gauss-Newton matrix, `2 Re(a_i^H a_j - g_i^H g_j)` with `g = Es^H a` and a_i the derivative of a, is exact where f
    vanishes, as it does at a source. A step that does not lower the quotient is undone and damped more.

    Args:
        signal: [n D k] orthonormal.
        omega: [n peak 3] starts.
        window: sizes with the product D.
        steps: number of steps.
        found: [n D l] orthonormal.

    Returns:
        omega [n peak 3] and the quotient there [n peak].
    """
    size = omega.new_tensor(window)
    curvature = (size.square() - 1.0) / 12.0  # a_i^H a_i; the cross terms vanish for centred elements
    unresolved = (size == 1).to(size.dtype)
    metric = torch.diag(curvature + unresolved)
    conj = torch.cat([signal, found], -1).mH  # [n k+l D]
    damping = torch.full_like(omega[..., 0], 1e-3)

    def evaluate(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        response = _response(at, window)  # [n D 4*peak]
        g = (conj @ response).unflatten(-1, (-1, 4)).transpose(1, 2)  # [n peak k+l 4]
        g = torch.cat([g.real, g.imag], -2).unflatten(-2, (2, -1))
        inside, before = (part.flatten(-3, -2) for part in g.split([signal.shape[-1], found.shape[-1]], -2))
        inner, lost = inside.mT @ inside, before.mT @ before
        near = (1.0 - lost[..., 0, 0]).clamp(min=_NEAR)
        h = (1.0 - inner[..., 0, 0]) / near
        inner = inner - h[..., None, None] * lost
        return h, -inner[..., 1:, 0], metric - inner[..., 1:, 1:]

    value, gradient, hessian = evaluate(omega)
    for _ in range(steps):
        step = torch.linalg.solve(hessian + damping[..., None, None] * metric, gradient)
        trial = omega - step
        new = evaluate(trial)
        better = new[0] < value
        omega = torch.where(better[..., None], trial, omega)
        value = torch.where(better, new[0], value)
        gradient = torch.where(better[..., None], new[1], gradient)
        hessian = torch.where(better[..., None, None], new[2], hessian)
        damping = torch.where(better, damping / 10.0, damping * 10.0).clamp(min=_LEAST_DAMPING)
    return omega, value


def _response(omega: Tensor, window: tuple[int, ...]) -> Tensor:
    """Unit responses of [n peak 3] and their derivatives along the three frequencies, [n D peak*4]."""
    factors = []
    for axis, num in enumerate(window):
        index = torch.arange(num, dtype=omega.dtype, device=omega.device) - (num - 1) / 2.0
        phase = index[:, None] * omega[:, None, :, axis]  # [n num peak]
        plain = torch.polar(torch.full_like(phase, num**-0.5), phase)
        factors.append((plain, 1j * index[:, None] * plain))
    columns = []
    for derived in (None, 0, 1, 2):
        t, y, z = (pair[int(axis == derived)] for axis, pair in enumerate(factors))
        yz = (y[:, :, None] * z[:, None]).flatten(1, 2)
        columns.append((t[:, :, None] * yz[:, None]).flatten(1, 2))
    return torch.stack(columns, -1).flatten(2)


def distinct(omega: Tensor, value: Tensor, valid: Tensor, cell: Tensor, distance: float) -> Tensor:
    """Choose minima in order of their depth, leaving out those that fell into one already chosen.

    Args:
        omega: [n peak 3].
        value: [n peak] null spectrum.
        valid: [n peak] bool.
        cell: [3] width of a resolution cell [rad].
        distance: closer than this, in cells, is the same minimum.

    Returns:
        [n peak] bool.
    """
    gap = (omega[:, :, None] - omega[:, None] + math.pi).remainder(2.0 * math.pi) - math.pi
    same = (gap / cell).square().sum(-1) < distance**2
    rank = value.masked_fill(~valid, torch.inf).argsort(-1)
    chosen = torch.zeros_like(valid)
    row = torch.arange(len(omega), device=omega.device)
    for column in rank.unbind(-1):
        chosen[row, column] = valid[row, column] & ~(same[row, column] & chosen).any(-1)
    return chosen
