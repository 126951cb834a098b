"""Columns of a dense dictionary: one factorisation for all observations, and LMMSE on all columns or on a few.

Nearly collinear columns span few dimensions: with `G = U diag(e) U^H` the LMMSE on all columns works in their span.
Where only the most probable columns stay, their Gram is small.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.inference.lmmse import lmmse

LEAST = 1e-6
"""Least prior variance of a column relative to what its observation leaves open: P = 0 for all that it matters."""

NULL = 1e-8
"""Eigenvalues of the Gram below this share of the largest are left out: 80 dB below the strongest direction."""


class Dictionary(NamedTuple):
    """Gram matrix of the columns and its eigenvalues and -vectors, without the null space."""

    gram: Tensor  # [col col]
    eigenvalue: Tensor  # [rank]
    eigenvector: Tensor  # [col rank]

    @classmethod
    def of(cls, gram: Tensor) -> "Dictionary":
        """Factorise a Gram matrix; nothing is differentiated through it."""
        eigenvalue, eigenvector = torch.linalg.eigh(gram)
        some = eigenvalue > NULL * eigenvalue[-1]
        return cls(gram, eigenvalue[some], eigenvector[:, some])


class Columns(NamedTuple):
    """The columns still in play."""

    number: Tensor  # [* kept] of each column
    gram: Tensor  # [* kept kept]
    matched: Tensor  # [* kept]
    coherence: Tensor  # [* kept kept] squared cosine between columns, zero on the diagonal


def all_columns(dictionary: Dictionary, matched: Tensor) -> Columns:
    """All columns, common to the observations."""
    index = torch.arange(matched.shape[-1], device=matched.device).expand(matched.shape)
    return Columns(index, dictionary.gram, matched, _coherence(dictionary.gram))


def some_columns(dictionary: Dictionary, matched: Tensor, index: Tensor) -> Columns:
    """The columns `index` [* kept] of each observation."""
    gram = dictionary.gram[index[..., :, None], index[..., None, :]]
    return Columns(index, gram, matched.gather(-1, index), _coherence(gram))


def _coherence(gram: Tensor) -> Tensor:
    energy = gram.diagonal(dim1=-2, dim2=-1).real
    squared = gram.abs().square() / (energy[..., :, None] * energy[..., None, :])
    return squared - torch.diag_embed(squared.diagonal(dim1=-2, dim2=-1))


def lmmse_in_span(
    dictionary: Dictionary, columns: Columns, noise_var: Tensor, prior: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Module A on all columns, in their span: with R = diag(e)^(1/2) U^H, C = R V R^H + s2; mean, r, w [* col]."""
    _, value, vector = dictionary
    root = value.sqrt()
    factor = root[:, None] * vector.mH
    seen = (columns.matched @ vector.conj()) / root
    weighted = factor * prior[..., None, :]
    covariance = weighted @ factor.mH + torch.diag_embed(noise_var[..., None].expand_as(seen.real)).to(factor.dtype)
    chol, _ = torch.linalg.cholesky_ex(covariance)
    white = torch.linalg.solve_triangular(chol, factor.expand_as(weighted), upper=False)
    strength = white.abs().square().sum(-2)
    fit = (white.mH @ torch.linalg.solve_triangular(chol, seen[..., None], upper=False))[..., 0]
    return prior * fit, fit / strength, left(prior, strength) / strength


def lmmse_by_gram(
    dictionary: Dictionary, columns: Columns, noise_var: Tensor, prior: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Module A on some columns, by their Gram; mean, r, w [* col]."""
    a = lmmse(columns.gram, columns.matched, noise_var, prior.sqrt())
    sigma = a.covariance.diagonal(dim1=-2, dim2=-1).real
    known = (1.0 - sigma / prior).clamp_min(0.1 * LEAST)
    return a.mean, a.mean / known, sigma / known


def left(prior: Tensor, strength: Tensor) -> Tensor:
    """The share `Sigma / v` of the prior variance that is left."""
    return (1.0 - prior * strength).clamp_min(torch.finfo(strength.dtype).eps)
