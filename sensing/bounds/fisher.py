"""Fisher information: elimination of nuisance parameters, Gaussian priors, and inverses that say what is unobservable.

A parameter vector is split into a few wanted ones (a) and many others (s). The effective information of a is the Schur
complement `E = J_aa - J_as J_ss^-1 J_sa`. Units differ between parameters, so each matrix is scaled by its diagonal
before it is factorised. The scaled E has its eigenvalues in [0, number of parameters]: the part of the information that
is left when the others are unknown. That makes "numerically zero" a question without units.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LOST = 1e-11
"""Scaled eigenvalues of an effective information below this are zero: the error is 3e5 times that with all else known.
Rounding leaves up to 3e-12 where the truth is 0; the weakest observable one of 1200 random hall scenes was 4e-10."""

MOVED = 1e-10
"""A parameter is open if its share in the squared length of a null direction exceeds this."""


class Elimination(NamedTuple):
    """Schur complement and what is needed to return to the eliminated parameters."""

    effective: Tensor  # [* a a] information of the wanted parameters
    slope: Tensor  # [* s a] J_ss^-1 J_sa: the others follow the wanted ones by minus this
    inverse: Tensor  # [* s s] J_ss^-1, covariance of the others if the wanted ones were known
    open: Tensor  # [* s] bool: not determined even if the wanted ones were known


class Inverse(NamedTuple):
    """Covariance on the observable subspace and a basis of the rest."""

    covariance: Tensor  # [* a a] zero along the null space
    null: Tensor  # [* a a] columns span the null space, zero columns fill up
    rank_deficiency: Tensor  # [*] int64
    condition: Tensor  # [*] of the scaled matrix, inf where deficient


def eliminate(information: Tensor, keep: int) -> Elimination:
    """Effective information of the first `keep` parameters, the others unknown without prior.

    Directions of the others without information (a scatterer that nobody sees, or one angle of a linear array) take no
    information from the wanted ones, so they are left out: J_ss^-1 is then the pseudo-inverse.

    Args:
        information: [* n n] symmetric, positive semidefinite.
        keep: number of wanted parameters.

    Returns:
        The elimination.
    """
    diagonal = information.diagonal(dim1=-2, dim2=-1)[..., keep:]
    blank = diagonal <= 0
    scale = torch.where(blank, torch.ones_like(diagonal), diagonal).rsqrt()
    inner = information[..., keep:, keep:] * scale[..., :, None] * scale[..., None, :] + torch.diag_embed(
        blank.to(scale)
    )
    cross = information[..., keep:, :keep] * scale[..., None]
    factor, failed = torch.linalg.cholesky_ex(inner)
    eye = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    weak = (failed != 0) | ~(factor.diagonal(dim1=-2, dim2=-1).square() > LOST).all(-1)
    factor = torch.where(weak[..., None, None], eye, factor)
    root = torch.linalg.solve_triangular(factor, eye.expand_as(inner), upper=False)  # root^T root = inner^-1
    if bool(weak.any()):  # rare, so the slow way is taken for these alone
        value, vector = torch.linalg.eigh(inner[weak])
        lost = value <= LOST
        root[weak] = torch.where(lost, torch.inf, value).rsqrt()[..., :, None] * vector.mT
        blank = blank.clone()
        blank[weak] |= (vector.square() * lost[..., None, :]).sum(-1) > MOVED
    left = root @ cross
    effective = information[..., :keep, :keep] - left.mT @ left
    slope = scale[..., None] * (root.mT @ left)
    inverse = (root.mT @ root) * scale[..., :, None] * scale[..., None, :]
    return Elimination(effective, slope, inverse, blank)


def invert_with_prior(effective: Tensor, total: Tensor, prior_std: Tensor, lost: float = LOST) -> Inverse:
    """Inverse of `effective + diag(prior_std^-2)`, where a deviation may be 0 (known) or inf (no prior).

    The parameters are expressed in units of their prior deviation, so that their prior precision is one and a deviation
    of zero needs no special case: it has no influence on the others and a covariance of zero.

    Args:
        effective: [* a a] information after elimination.
        total: [* a] diagonal of the information before elimination, the scale that defines a lost direction.
        prior_std: [a] prior standard deviations.
        lost: scaled eigenvalues below this count as zero.

    Returns:
        Covariance, null space, rank deficiency and condition.
    """
    informed = torch.isfinite(prior_std)
    unit = torch.where(informed, prior_std, torch.ones_like(prior_std))
    diagonal = total * unit.square() + informed.to(total)
    scale = unit * torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    prior = torch.where(diagonal > 0, informed / torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)), 0.0)
    scaled = effective * scale[..., :, None] * scale[..., None, :] + torch.diag_embed(prior)
    value, vector = torch.linalg.eigh(scaled)
    kept = value > lost
    weight = torch.where(kept, 1.0 / torch.where(kept, value, torch.ones_like(value)), torch.zeros_like(value))
    vector_scaled = scale[..., :, None] * vector
    covariance = (vector_scaled * weight[..., None, :]) @ vector_scaled.mT
    if covariance.requires_grad:  # where eigenvalues coincide, eigenvectors have no slope, but the inverse has
        fixed = covariance.detach()
        covariance = fixed - fixed @ (effective - effective.detach()) @ fixed
    condition = torch.where(kept.all(-1), value[..., -1] / value[..., 0], torch.full_like(value[..., 0], torch.inf))
    return Inverse(covariance, vector_scaled * ~kept[..., None, :], (~kept).sum(-1), condition)
