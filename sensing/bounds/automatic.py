"""Fisher information of any model `y ~ CN(mean(theta), noise_var I)` by automatic differentiation.

Slower than the structured forms beside it and independent of them: it takes the mean function as it is. Together with
`fisher.eliminate` (Schur complement) and `reparametrise` it bounds any parameters of any differentiable model.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacfwd, vmap


def fisher_information(mean: Callable[[Tensor], Tensor], parameters: Tensor, noise_var: Tensor | float) -> Tensor:
    """Fisher information `(2 / noise_var) Re(J^H J)`, J the Jacobian of the mean.

    Args:
        mean: [n] real parameters to a complex (or, with twice the noise variance, real) tensor of any shape.
        parameters: [* n] points, real.
        noise_var: power of the complex noise per sample; a number or a tensor that broadcasts against the output.

    Returns:
        [* n n].
    """

    def slope(point: Tensor) -> Tensor:
        def whitened(theta: Tensor) -> Tensor:
            value = mean(theta) * torch.as_tensor(noise_var, dtype=theta.dtype).rsqrt()
            return torch.view_as_real(value).flatten() if value.is_complex() else value.flatten()

        jacobian = jacfwd(whitened)(point)
        return 2.0 * jacobian.mT @ jacobian

    flat = parameters.reshape(-1, parameters.shape[-1])
    return vmap(slope)(flat).reshape(*parameters.shape, -1)


def reparametrise(information: Tensor, jacobian: Tensor) -> Tensor:
    """Information of new parameters q on which the old ones depend, `T^T J T` with T = d old / d q.

    Args:
        information: [* n n].
        jacobian: [* n q].

    Returns:
        [* q q].
    """
    return jacobian.mT @ information @ jacobian
