"""Three-layer support prior: a node exists, a station sees it, a gain is drawn (paper 1, equation 1.11).

`p(s_g = 1) = activity`, `p(s_qg = 1 | s_g = 1) = visibility`, `x_qg | s_qg = 1 ~ CN(0, power_q)`, and zero otherwise.
The messages of this tree are exact and kept as log-odds: for the observation `r = x + CN(0, v)`

    L_q  = ln CN(r; 0, v + power) / CN(r; 0, v)              evidence of station q
    U_q  = visibility e^L_q + 1 - visibility                 message station -> node
    T    = logit(activity) + sum_q ln U_q                    log-odds of the node
    P_q  : logit = ln visibility - ln(1 - visibility + e^-(T - ln U_q)) + L_q

Nothing is exponentiated but inside logsigmoid and logaddexp, so no evidence is too large and none is clipped.
A free path belongs to one station, which sees it whenever it exists: logit P = logit(activity_free) + L.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sensing.inference.linearisation import per_scene


class SupportPrior(NamedTuple):
    """Log-odds of the three Bernoulli layers, [] or one per scene [*] each."""

    activity: Tensor
    visibility: Tensor
    free_activity: Tensor


class SupportPosterior(NamedTuple):
    """Posterior of the gains under the support prior; columns are located nodes, then free paths."""

    mean: Tensor  # [* bs col] complex
    variance: Tensor  # [* bs col]
    log_odds: Tensor  # [* bs col] of "the station sees the column"
    node_log_odds: Tensor  # [* node] of "the node exists"
    energy: Tensor  # [* bs col] E|x|^2 given that the station sees the column

    @property
    def probability(self) -> Tensor:
        """P(the station sees the column | r), [* bs col]."""
        return self.log_odds.sigmoid()


def support_posterior(
    r: Tensor, variance: Tensor, power: Tensor, prior: SupportPrior, mask: Tensor, num_nodes: int
) -> SupportPosterior:
    """Moments of the gains given `r = x + CN(0, variance)`.

    Args:
        r: [* bs col] complex, columns `:num_nodes` are nodes common to all stations, the others free paths.
        variance: [* bs] noise of r.
        power: [* bs] variance of a gain that is present.
        prior: log-odds of the layers.
        mask: [* bs col] bool, false for padding, which carries no evidence.
        num_nodes: number of located nodes.

    Returns:
        Posterior moments; exact, since the graph is a tree.
    """
    v, sx2 = variance[..., None], power[..., None]
    magnitude = r.real.square() + r.imag.square()
    evidence = torch.log(v / (v + sx2)) + magnitude * (sx2 / (v * (v + sx2)))
    evidence = torch.where(mask, evidence, torch.zeros_like(evidence))

    seen, unseen = logsigmoid(per_scene(prior.visibility, r)), logsigmoid(-per_scene(prior.visibility, r))
    located = evidence[..., :num_nodes]
    upward = torch.logaddexp(seen + located, unseen.expand_as(located))
    node_log_odds = upward.sum(-2)
    node_log_odds = per_scene(prior.activity, node_log_odds) + node_log_odds
    others = node_log_odds[..., None, :] - upward
    log_odds = seen - torch.logaddexp(unseen.expand_as(others), -others) + located
    log_odds = torch.cat([log_odds, per_scene(prior.free_activity, r) + evidence[..., num_nodes:]], -1)

    shrink = sx2 / (sx2 + v)
    probability = log_odds.sigmoid()
    energy = shrink.square() * magnitude + shrink * v
    mean = (probability * shrink) * r
    # E|x|^2 - |E x|^2, written as a sum of positive terms
    spread = probability * (1.0 - probability) * shrink.square() * magnitude + probability * shrink * v
    return SupportPosterior(mean, spread, log_odds, node_log_odds, energy)
