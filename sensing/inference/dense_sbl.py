"""Sparse Bayesian learning in a dense dictionary: updates of `sensing.inference.sbl`, shortcuts of `DenseTurbo`."""

import torch
from torch import Tensor

from sensing.inference.dense_columns import LEAST, Dictionary, all_columns, lmmse_by_gram, lmmse_in_span, some_columns
from sensing.inference.sbl import Posterior, updated


def sbl(
    dictionary: Dictionary,
    matched: Tensor,
    energy: Tensor,
    noise_var: Tensor,
    iterations: int,
    update: str,
    sparsity: float,
    wide: int = 3,
    kept: int = 96,
) -> Tensor:
    """Gains [* col] after so many updates of one prior variance per column, and one more LMMSE.

    Args:
        dictionary: common to the batch.
        matched: [* col] `Phi^H y`.
        energy: [*] `|y|^2`.
        noise_var: [*].
        iterations: updates of the variances.
        update: em, mackay or convex.
        sparsity: of the hyperprior `p(v) = v^-sparsity`.
        wide: LMMSE estimates on all columns.
        kept: columns with the largest variances, which stay afterwards.
    """
    columns, norm = all_columns(dictionary, matched), dictionary.gram.diagonal().real
    prior = (energy / norm.sum())[..., None].expand_as(matched.real)
    for number in range(iterations):
        if number == wide:
            columns = some_columns(dictionary, matched, prior.topk(min(kept, matched.shape[-1]), -1).indices)
            prior = prior.gather(-1, columns.number)
        mean, _, w = (lmmse_in_span if number < wide else lmmse_by_gram)(dictionary, columns, noise_var, prior)
        posterior = Posterior(mean, prior / (prior + w), energy)
        ceiling = norm[columns.number] / noise_var[..., None]
        prior = torch.maximum(updated(prior, posterior, ceiling, update, False, sparsity), LEAST * w.minimum(prior))
    mean, _, _ = (lmmse_in_span if iterations < wide else lmmse_by_gram)(dictionary, columns, noise_var, prior)
    return torch.zeros_like(matched).scatter(-1, columns.number, mean)
