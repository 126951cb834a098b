"""Orthogonal matching pursuit on the Gram matrix, batched.

One column at a time: the one that correlates best with the residual, relative to its norm, joins, and all gains are
fitted again (Pati, Rezaiifar and Krishnaprasad, Asilomar 1993). With `Phi^H y` and the Gram's rows of the chosen
columns nothing of the length of y is touched after the start (Rubinstein, Zibulevsky and Elad, "Efficient
implementation of the K-SVD algorithm using batch OMP", Technion CS-2008-08). Here the Cholesky factor of the chosen
columns' Gram is kept for all columns: with Q an orthonormal basis of the chosen columns, `R = Q^H Phi` and r the
residual, column j adds

    rho^2 = G_jj - sum_i |R_ij|^2,   R_new = (G_j: - sum_i conj(R_ij) R_i:) / rho,   t = (Phi^H r)_j / rho,
    Phi^H r <- Phi^H r - conj(R_new) t,   |r|^2 <- |r|^2 - |t|^2,

and the gains solve the triangular system `R_S x = t` once, at the end.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sensing.errors import ConfigError

RULES = ("omp", "ols")


class GramMatrix(Protocol):
    """What the pursuit needs of `Phi^H Phi`; `PathOperator` offers it without ever forming the matrix."""

    def energy(self) -> Tensor:
        """Diagonal [* col]."""
        ...

    def gram_row(self, index: Tensor) -> Tensor:
        """Rows `index` [*] as [* col]."""
        ...


class DenseGram(NamedTuple):
    """A Gram matrix that is held as such: one for the whole batch [col col], or one each [* col col]."""

    matrix: Tensor

    def energy(self) -> Tensor:
        """Diagonal, [col] or [* col]."""
        return self.matrix.diagonal(dim1=-2, dim2=-1).real

    def gram_row(self, index: Tensor) -> Tensor:
        """Rows `index` [*] as [* col]."""
        if self.matrix.ndim == 2:
            return self.matrix[index]
        row = index[..., None, None].expand(*index.shape, 1, self.matrix.shape[-1])
        return self.matrix.gather(-2, row)[..., 0, :]


class Pursuit(NamedTuple):
    """Chosen columns in order of choice; slots that were not needed hold column -1 and gain 0."""

    column: Tensor  # [* atom] int64
    gain: Tensor  # [* atom]
    residual: Tensor  # [*] energy that is left, |y - Phi x|^2

    def scatter(self, columns: int) -> tuple[Tensor, Tensor]:
        """Gains [* col] of all columns, and which were chosen [* col] bool."""
        chosen = self.column >= 0
        gain = self.gain.new_zeros(*self.gain.shape[:-1], columns)
        return (
            gain.scatter_add(-1, self.column.clamp_min(0), self.gain),
            gain.real.scatter_add(-1, self.column.clamp_min(0), chosen.to(gain.real.dtype)) > 0,
        )


def omp(
    gram: GramMatrix,
    matched: Tensor,
    energy: Tensor,
    max_atoms: int,
    stop_energy: Tensor | float = 0.0,
    stop_peak: Tensor | float = 0.0,
    rule: str = "omp",
) -> Pursuit:
    """Sparse gains of a batch of observations.

    Args:
        gram: Gram matrix of the columns, real or complex; a column of zero norm is never chosen.
        matched: [* col] `Phi^H y`.
        energy: [*] `|y|^2`.
        max_atoms: most columns of an observation.
        stop_energy: [*] or a number; finished when the residual's energy is not above it.
        stop_peak: [*] or a number; finished when no column alone explains more of the residual's energy than this.
        rule: `omp`, or `ols` for orthogonal least squares: the next column is the one that lowers the energy most once
            all gains are fitted again, `|phi^H r|^2 / rho^2`. Between columns that are nearly collinear this matters:
            what is left beside a chosen column hardly correlates with its neighbours.

    Returns:
        Pursuit with as many slots as the longest one needs.

    Raises:
        ConfigError: an unknown rule.
    """
    if rule not in RULES:
        raise ConfigError(f"rule must be one of {RULES}, got {rule!r}")
    power = gram.energy().expand(matched.shape)
    left = power.clone()  # of every column, outside the span of the chosen ones
    # a column in that span up to rounding would be fitted to noise
    least = 1e3 * torch.finfo(power.dtype).eps * power
    basis = matched.new_zeros(*matched.shape[:-1], max_atoms, matched.shape[-1])  # R
    weight = matched.new_zeros(*matched.shape[:-1], max_atoms)  # t
    index = torch.full(weight.shape, -1, dtype=torch.int64, device=matched.device)
    atoms = 0
    for atoms in range(max_atoms + 1):
        score = (matched.abs().square() / (power if rule == "omp" else left)).where(left > least, 0.0)
        peak, best = score.max(-1, keepdim=True)
        active = (energy > stop_energy) & (peak[..., 0] > stop_peak)
        if atoms == max_atoms or not bool(active.any()):
            break
        known = basis[..., :atoms, :]
        overlap = known.gather(-1, best[..., None, :].expand(*known.shape[:-1], 1))  # R_ij, [* atom 1]
        new = gram.gram_row(best[..., 0]) - (overlap.mH @ known)[..., 0, :]
        rho = left.gather(-1, best).sqrt()
        # a finished observation is left alone: its best column may be no column at all
        basis[..., atoms, :] = new = torch.where(active[..., None], new / rho, 0.0)
        weight[..., atoms] = step = torch.where(active, (matched.gather(-1, best) / rho)[..., 0], 0.0)
        index[..., atoms] = torch.where(active, best[..., 0], -1)
        matched = matched - new.conj() * step[..., None]
        left = (left - new.abs().square()).scatter(-1, best, 0.0)
        energy = (energy - step.abs().square()).clamp_min(0.0)
    index, weight = index[..., :atoms], weight[..., :atoms]
    chosen = index.clamp_min(0)[..., None, :].expand(*index.shape, atoms)
    factor = basis[..., :atoms, :].gather(-1, chosen).triu()
    unused = torch.diag_embed((index < 0).to(factor.dtype))
    factor = torch.where((index < 0)[..., None, :], 0.0, factor) + unused
    gain = torch.linalg.solve_triangular(factor, weight[..., None], upper=True)[..., 0]
    return Pursuit(index, gain, energy)


def omp_dictionary(
    dictionary: Tensor, y: Tensor, max_atoms: int, stop_energy: Tensor | float = 0.0, gram: Tensor | None = None
) -> Pursuit:
    """Pursuit in an explicit dictionary, for problems without structure.

    Args:
        dictionary: [row col], common to the batch, real or complex.
        y: [* row].
        max_atoms: most columns of an observation.
        stop_energy: [*] or a number, as in `omp`.
        gram: [col col] where it is known already.

    Returns:
        Pursuit [* atom].
    """
    gram = dictionary.mH @ dictionary if gram is None else gram
    matched = (y.conj() @ dictionary).conj()  # without a conjugate copy of the dictionary
    return omp(DenseGram(gram), matched, y.abs().square().sum(-1), max_atoms, stop_energy)
