"""The line of sight of each station: the path that a located user would send straight to it.

It is a path whose scatterer is the user, `range = ||u - b|| + c delta` and direction `(u - b) / ||u - b||`, with which
the user's leg has no length; three equations without a further unknown. No path of the station may be
earlier, and few are as strong.
"""

import math

import torch
from torch import Tensor

from sensing.coarse.least_squares import Solution
from sensing.coarse.measurements import straight_paths
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.pairs import region_box, wrap
from sensing.coarse.user_score import line_of_sight_odds
from sensing.containers import Deployment, PathEstimates

GATE = 16.3  # chi-square with 3 degrees of freedom, 0.1 %
LOG_ODDS = -8.0  # of a line of sight: with some ten paths in each of some stations, accidents stay below a percent
EARLY_M = 1.0  # earlier paths than this forbid the line of sight [m]


def lines_of_sight(solution: Solution, paths: PathEstimates, deployment: Deployment, slack_m: float = 0.0) -> Tensor:
    """Index [b bs] of the path that is each station's line of sight, -1 where none is.

    A path is accepted if it is more likely one than an unrelated path (uniform over ranges and directions), given the
    user and the offsets with their covariance.

    Args:
        solution: located users.
        paths: detected paths [b bs path].
        deployment: stations.
        slack_m: standard deviation of the model's own error in a range [m].
    """
    straight, k, slope = straight_paths(solution.ue_position, solution.offset_m, deployment)  # [b bs ...]
    predicted = slope @ inverse_information(solution.information)[:, None] @ slope.mT  # [b bs 4 4]
    late = wrap(paths.range_m - straight[..., None], deployment.range_ambiguity)  # [b bs path]
    residual = torch.cat([late[..., None], paths.direction - k[..., None, :]], -1)
    total = paths.covariance + predicted[:, :, None]
    total[..., 0, 0] = total[..., 0, 0] + slack_m**2
    # a direction has no component along itself: give that component unit variance
    total[..., 1:, 1:] = total[..., 1:, 1:] + paths.direction[..., :, None] * paths.direction[..., None, :]
    total = torch.where(paths.mask[..., None, None], total, torch.eye(4, dtype=k.dtype, device=k.device))
    chi2 = (residual * torch.linalg.solve_ex(total, residual)[0]).sum(-1)
    box = region_box(deployment)
    volume = torch.log((box[1] - box[0]).norm() * 2.0 * math.pi)
    ratio = -0.5 * chi2 - 0.5 * torch.logdet(total) - 1.5 * math.log(2.0 * math.pi) + volume + LOG_ODDS
    ratio = ratio + line_of_sight_odds(paths).log()
    reach = deployment.range_ambiguity / 3.0
    slack = EARLY_M + 3.0 * slack_m
    own = wrap(late[..., None] - late[..., None, :], deployment.range_ambiguity)  # [b bs path other]
    preceded = ((own > slack) & (own < reach) & paths.mask[..., None, :]).any(-1)
    accepted = paths.mask & (chi2 < GATE) & (ratio > 0) & ~preceded
    best, index = ratio.masked_fill(~accepted, -torch.inf).max(-1)
    return torch.where(torch.isfinite(best), index, torch.full_like(index, -1))
