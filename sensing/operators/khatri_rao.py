"""The sensing matrix Phi of one station as a Khatri-Rao product, and its derivatives.

Column l of `Phi_q` is `steering[:, l] (x) delay[:, l]` over (antenna, subcarrier), so no column of length ant * sc is
ever formed: Grams are Hadamard products of small Grams, `Phi^H Phi = (S^H S) * (D^H D)`, and `Phi^H y` is two thin
products. The extended map carries, per path, the column and its derivatives with respect to range [m] and to the two
tangent coordinates of the direction [rad].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing import arrays, ofdm
from sensing.containers import Deployment
from sensing.geometry import tangent_basis
from sensing.units import SPEED_OF_LIGHT

# column c of the extended map is steering factor STEERING[c] times delay factor DELAY[c]
STEERING = (0, 0, 1, 2)
DELAY = (0, 1, 0, 0)


class PathOperator(NamedTuple):
    """Factors of Phi: `Phi[(m, k), l] = steering[m, l] * delay[k, l]`."""

    steering: Tensor  # [* bs ant path] complex
    delay: Tensor  # [* bs sc path] complex

    def matvec(self, gain: Tensor) -> Tensor:
        """`Phi x`: [* bs path] to [* bs ant sc]."""
        return (self.steering * gain[..., None, :]) @ self.delay.mT

    def rmatvec(self, y: Tensor) -> Tensor:
        """`Phi^H y`: [* bs ant sc] to [* bs path]."""
        return ((self.steering.mH @ y) * self.delay.mH).sum(-1)

    def gram(self) -> Tensor:
        """`Phi^H Phi`, [* bs path path]."""
        return (self.steering.mH @ self.steering) * (self.delay.mH @ self.delay)

    def energy(self) -> Tensor:
        """Squared norm of every column, the diagonal of the Gram: [* bs path]."""
        return self.steering.abs().square().sum(-2) * self.delay.abs().square().sum(-2)

    def whitened(self, whitener: Tensor | None) -> "PathOperator":
        """`W Phi` with W [* bs sc sc] over the pilots; the map itself for None."""
        return self if whitener is None else self._replace(delay=whitener.to(self.delay.dtype) @ self.delay)

    def gram_row(self, index: Tensor) -> Tensor:
        """Row `index` [* bs] of the Gram, [* bs path], without the rest of it."""

        def products(factor: Tensor) -> Tensor:
            column = factor.gather(-1, index[..., None, None].expand(*factor.shape[:-1], 1))
            return (column.mH @ factor)[..., 0, :]

        return products(self.steering) * products(self.delay)


class ExtendedOperator(NamedTuple):
    """Factors of `[phi, d phi/d range, d phi/d t1, d phi/d t2]`, four columns per path."""

    steering: Tensor  # [* bs ant path 3]: response, derivatives along the two tangents
    delay: Tensor  # [* bs sc path 2]: response, derivative with respect to range

    @property
    def plain(self) -> PathOperator:
        """The map without derivatives."""
        return PathOperator(self.steering[..., 0], self.delay[..., 0])

    def whitened(self, whitener: Tensor | None) -> "ExtendedOperator":
        """`W Phi` with W [* bs sc sc] over the pilots; the map itself for None."""
        if whitener is None:
            return self
        delay = whitener.to(self.delay.dtype) @ self.delay.flatten(-2)
        return self._replace(delay=delay.unflatten(-1, self.delay.shape[-2:]))

    def rmatvec(self, y: Tensor) -> Tensor:
        """Inner products of the four columns of every path with y: [* bs ant sc] to [* bs path 4]."""
        # pilots first: two products with y per path where antennas first would take three
        right = y @ self.delay.conj().flatten(-2)  # [* bs ant path*2]
        right = right.unflatten(-1, (-1, 2))
        left = self.steering.conj().resolve_conj()
        with_delay = (left * right[..., :1]).sum(-3)  # [* bs path 3]
        with_slope = (left[..., :1] * right[..., 1:]).sum(-3)
        return torch.cat([with_delay[..., :1], with_slope, with_delay[..., 1:]], -1)

    def gram(self) -> Tensor:
        """Gram of all columns, [* bs path 4 path 4]."""
        s_gram, d_gram = _gram(self.steering), _gram(self.delay)
        s_index = torch.tensor(STEERING, device=self.steering.device)
        d_index = torch.tensor(DELAY, device=self.steering.device)
        s_gram = s_gram.index_select(-3, s_index).index_select(-1, s_index)
        d_gram = d_gram.index_select(-3, d_index).index_select(-1, d_index)
        return s_gram * d_gram


def whitened(y: Tensor, whitener: Tensor | None) -> Tensor:
    """`W y` over the pilots of y [* bs ant sc]; y itself for None."""
    return y if whitener is None else y @ whitener.mT.to(y.dtype)


def _gram(factor: Tensor) -> Tensor:
    """[* n path kind] to [* path kind path kind]."""
    n, path, kinds = factor.shape[-3:]
    flat = factor.reshape(*factor.shape[:-3], n, path * kinds)
    return (flat.mH @ flat).reshape(*factor.shape[:-3], path, kinds, path, kinds)


def path_operator(
    range_m: Tensor,
    direction: Tensor,
    deployment: Deployment,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> PathOperator:
    """Sensing matrix of plane waves.

    Args:
        range_m: [* bs path] [m], float64: phases are formed in double and cast afterwards.
        direction: [* bs path xyz] unit vectors.
        deployment: stations, array and pilots.
        mask: [* bs path] bool; columns of absent paths are zero.
        dtype: complex type of the factors; that of the phases by default.

    Returns:
        The factors.
    """
    steering = arrays.response(direction, deployment.antenna_global, deployment.wavelength)
    delay = ofdm.response(range_m, deployment.pilot_freq)
    if mask is not None:
        steering = steering * mask[..., None, :]
    if dtype is not None:
        steering, delay = steering.to(dtype), delay.to(dtype)
    return PathOperator(steering, delay)


def extended_operator(
    range_m: Tensor,
    direction: Tensor,
    deployment: Deployment,
    mask: Tensor | None = None,
    basis: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> ExtendedOperator:
    """Sensing matrix with derivatives; arguments as in `path_operator`.

    Args:
        range_m: [* bs path] [m].
        direction: [* bs path xyz].
        deployment: stations, array and pilots.
        mask: [* bs path] bool.
        basis: [* bs path xyz 2] tangents; `geometry.tangent_basis(direction)` by default.
        dtype: complex type of the factors.

    Returns:
        The factors.
    """
    steering, delay = path_operator(range_m, direction, deployment, mask)
    basis = tangent_basis(direction) if basis is None else basis
    antenna = (2.0 * math.pi / deployment.wavelength) * deployment.antenna_global  # [bs ant xyz]
    slope = (antenna @ basis.movedim(-2, -3).flatten(-2)).unflatten(-1, (-1, 2))  # [* bs ant path 2]
    steering = torch.cat([steering[..., None], 1j * slope * steering[..., None]], -1)
    rate = (-2.0 * math.pi / SPEED_OF_LIGHT) * deployment.pilot_freq
    delay = torch.stack([delay, 1j * rate[:, None] * delay], -1)
    if dtype is not None:
        steering, delay = steering.to(dtype), delay.to(dtype)
    return ExtendedOperator(steering, delay)


def path_information(gram: Tensor, gain: Tensor, noise_var: Tensor, gain_precision: Tensor | float = 0.0) -> Tensor:
    """Fisher information of (range, t1, t2) of all paths of a station, complex gains eliminated.

    `J = (2 / noise_var) Re( a^H D^H (I - Phi (Phi^H Phi + noise_var * P)^-1 Phi^H) D a )` with D the derivative
    columns, a the gains and P the prior precision of the gains (0: unknown deterministic gains).

    Args:
        gram: [* bs path 4 path 4] of the extended operator; rows and columns of absent paths are zero.
        gain: [* bs path] complex; zero for absent paths.
        noise_var: [* bs].
        gain_precision: [* bs path] or a number.

    Returns:
        [* bs path 3 path 3] real, symmetric, positive semidefinite.
    """
    path = gain.shape[-1]
    batch = gram.shape[:-4]
    plain = gram[..., :, 0, :, 0]
    diagonal = plain.diagonal(dim1=-2, dim2=-1).real
    absent = (diagonal <= 0).to(diagonal.dtype)
    ridge = noise_var[..., None] * gain_precision + absent
    plain = plain + torch.diag_embed(ridge.expand(diagonal.shape).to(plain.dtype))
    cross = gram[..., :, 0, :, 1:].reshape(*batch, path, path * 3)
    inner = gram[..., :, 1:, :, 1:].reshape(*batch, path * 3, path * 3)
    # 1e-13 of the trace keeps the factorisation alive when two paths coincide; it is below rounding of the Gram itself
    floor = 1e-13 * plain.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    chol = torch.linalg.cholesky(
        plain + floor[..., None, None] * torch.eye(path, dtype=plain.dtype, device=plain.device)
    )
    half = torch.linalg.solve_triangular(chol, cross, upper=False)
    projected = (inner - half.mH @ half).reshape(*batch, path, 3, path, 3)
    weight = gain.conj()[..., :, None, None, None] * gain[..., None, None, :, None]
    return (2.0 / noise_var)[..., None, None, None, None] * (weight * projected).real
