"""Ridge regression of the path gains, shared by the reference estimators."""

import torch
from torch import Tensor

from sensing.operators.khatri_rao import PathOperator


def regularised_gains(operator: PathOperator, y: Tensor, ridge: Tensor | float) -> Tensor:
    """`(Phi^H Phi + ridge I)^-1 Phi^H y` by the structured Gram; zero columns get a zero gain.

    Args:
        operator: [* bs (ant, sc) path].
        y: [* bs ant sc].
        ridge: [* bs 1] or a number.

    Returns:
        [* bs path].
    """
    gram = operator.gram()
    diagonal = gram.diagonal(dim1=-2, dim2=-1).real
    loading = ridge + (diagonal <= 0).to(diagonal.dtype)
    chol = torch.linalg.cholesky(gram + torch.diag_embed(loading.expand(diagonal.shape).to(gram.dtype)))
    return torch.cholesky_solve(operator.rmatvec(y)[..., None], chol)[..., 0]
