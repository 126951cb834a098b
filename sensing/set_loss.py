"""How far a set of points, each believed to exist with a probability, is from the true set: a loss with gradients.

GOSPA counts an estimate as there or not, which has no gradient. With independent existence probabilities p_i its
expectation (order 2, alpha 2) over which of the estimates exist, the assignment g fixed, is

    sum_(i, j) in g (p_i d_ij^2 + (1 - p_i) c^2 / 2) + sum_(i unassigned) p_i c^2 / 2 + (number of j unassigned) c^2 / 2
        = (sum_i p_i + m) c^2 / 2 + sum_(i, j) in g p_i (d_ij^2 - c^2)

so that the best assignment minimises `p_i (min(d_ij, c)^2 - c^2)`; for probabilities 0 and 1 it is GOSPA squared.
Source: probabilistic GOSPA of multi-Bernoulli densities, Xia et al. 2024, with points for densities.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sensing.checks import check_positive, check_shape


def expected_gospa(
    estimated: Tensor, probability: Tensor, mask: Tensor, true: Tensor, true_mask: Tensor, cutoff: float
) -> Tensor:
    """Expected squared GOSPA distance, order 2 and alpha 2, in [0, inf).

    Args:
        estimated: [* node xyz] [m].
        probability: [* node] that the node exists.
        mask: [* node] bool; a node outside it takes no part.
        true: [* point xyz] [m].
        true_mask: [* point] bool.
        cutoff: distance at which a pair counts as missed and false [m].

    Returns:
        [*] [m^2], with gradients for positions and probabilities, the assignment being held; NaN where a position of
        the scene is, so that a training that diverges does not look well.

    Raises:
        ShapeError: an axis does not fit.
        DomainError: the cutoff is not positive.
    """
    nodes = check_shape("estimated", estimated, "* node xyz", xyz=3)["node"]
    points = check_shape("true", true, "* point xyz", xyz=3)["point"]
    for name, field, axis in (("probability", probability, "node"), ("mask", mask, "node")):
        check_shape(name, field, f"* {axis}", node=nodes)
    check_shape("true_mask", true_mask, "* point", point=points)
    check_positive("cutoff", torch.tensor(cutoff))
    believed = torch.where(mask, probability, torch.zeros_like(probability))
    squares = (estimated[..., :, None, :] - true[..., None, :, :]).square().sum(-1)
    gain = believed[..., :, None] * (squares.clamp(max=cutoff**2) - cutoff**2)
    gain = torch.where(mask[..., :, None] & true_mask[..., None, :], gain, torch.zeros_like(gain))
    costs = gain.detach().nan_to_num(nan=0.0).reshape(-1, nodes, points).cpu().numpy()
    chosen = np.zeros(costs.shape)
    for cost, pairs in zip(costs, chosen, strict=True):
        pairs[linear_sum_assignment(cost)] = 1.0
    kept = torch.from_numpy(chosen).to(gain).reshape(gain.shape)
    return 0.5 * cutoff**2 * (believed.sum(-1) + true_mask.sum(-1)) + (kept * gain).sum((-2, -1))
