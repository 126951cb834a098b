"""The line of sight of each station: the path that a located user would send straight to it, or by the ground.

It is a path whose scatterer is the user, `range = ||u - b|| + c delta` and direction `(u - b) / ||u - b||`, with which
the user's leg has no length; three equations without a further unknown. No path of the station may be
earlier, and few are as strong. A path reflected by the ground is the same seen from the station's image below the floor
of the region; it is there wherever the user is seen, and often where the straight path is blocked or was removed.
"""

import math

import torch
from torch import Tensor

from sensing.coarse.least_squares import Solution
from sensing.coarse.measurements import mirrored, straight_paths
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.pairs import region_box, wrap
from sensing.coarse.user_score import line_of_sight_odds
from sensing.containers import Deployment, PathEstimates

GATE = 16.3  # chi-square with 3 degrees of freedom, 0.1 %
LOG_ODDS = -8.0  # of a line of sight: with some ten paths in each of some stations, accidents stay below a percent
GROUND_LOG_ODDS = -6.0  # of a path by the ground, whatever its strength: a road reflects wherever it is seen
EARLY_M = 1.0  # earlier paths than this forbid the line of sight [m]


def lines_of_sight(solution: Solution, paths: PathEstimates, deployment: Deployment, slack_m: float = 0.0) -> Tensor:
    """Index [b bs] of the path that is each station's line of sight, -1 where none is.

    A path is accepted if it is more likely one than an unrelated path (uniform over ranges and directions), given the
    user and the offsets with their covariance. The index of a path by the ground is that of the path plus the number
    of paths.

    Args:
        solution: located users.
        paths: detected paths [b bs path].
        deployment: stations.
        slack_m: standard deviation of the model's own error in a range [m].
    """
    covariance = inverse_information(solution.information)
    ratio, chi2 = _log_odds(solution.ue_position, solution.offset_m, covariance, paths, deployment, slack_m)
    best, index = ratio.masked_fill((chi2 > GATE) | (ratio < 0), -torch.inf).max(-1)
    return torch.where(torch.isfinite(best), index, torch.full_like(index, -1))


def line_of_sight_evidence(
    ue: Tensor, offset: Tensor, covariance: Tensor, paths: PathEstimates, deployment: Deployment, slack_m: float = 0.0
) -> Tensor:
    """What the stations say for users [b] in nats: `sum_q log(1 + sum over paths of the odds of a line of sight)`.

    Args:
        ue: users [b xyz] [m].
        offset: their clock offsets [b bs] [m].
        covariance: [b 3+bs 3+bs] of both, or of all users.
        paths: detected paths [b bs path].
        deployment: stations.
        slack_m: standard deviation of the model's own error in a range [m].
    """
    ratio, _ = _log_odds(ue, offset, covariance, paths, deployment, slack_m)
    return torch.nn.functional.softplus(ratio.logsumexp(-1)).sum(-1)


def _log_odds(
    ue: Tensor, offset: Tensor, covariance: Tensor, paths: PathEstimates, deployment: Deployment, slack_m: float
) -> tuple[Tensor, Tensor]:
    """Log odds (-inf where excluded) and chi-square of each path straight, then by the ground: [b bs 2*path] each."""
    straight = torch.zeros_like(offset, dtype=torch.bool)
    box = region_box(deployment)
    volume = torch.log((box[1] - box[0]).norm() * 2.0 * math.pi)
    found = []
    for ground in (straight, ~straight):
        range_m, k, slope = straight_paths(ue, offset, deployment, ground)  # [b bs ...]
        predicted = slope @ covariance[..., None, :, :] @ slope.mT  # [b bs 4 4]
        direction, noise = mirrored(paths.direction, paths.covariance, ground[..., None])
        late = wrap(paths.range_m - range_m[..., None], deployment.range_ambiguity)  # [b bs path]
        residual = torch.cat([late[..., None], direction - k[..., None, :]], -1)
        total = noise + predicted[:, :, None]
        total[..., 0, 0] = total[..., 0, 0] + slack_m**2
        # a direction has no component along itself: give that component unit variance
        total[..., 1:, 1:] = total[..., 1:, 1:] + direction[..., :, None] * direction[..., None, :]
        total = torch.where(paths.mask[..., None, None], total, torch.eye(4, dtype=k.dtype, device=k.device))
        chi2 = (residual * torch.linalg.solve_ex(total, residual)[0]).sum(-1)
        found.append((-0.5 * chi2 - 0.5 * torch.logdet(total) - 1.5 * math.log(2.0 * math.pi) + volume, chi2))
    ratio, chi2 = (torch.cat(field, -1) for field in zip(*found, strict=True))
    reach = deployment.range_ambiguity / 3.0
    slack = EARLY_M + 3.0 * slack_m
    own = wrap(paths.range_m[..., None] - paths.range_m[..., None, :], deployment.range_ambiguity)  # [b bs path other]
    preceded = ((own > slack) & (own < reach) & paths.mask[..., None, :]).any(-1)
    possible = paths.mask & ~preceded
    nowhere = torch.zeros_like(possible) if deployment.region is None else possible  # without a region, no floor
    straight_odds = LOG_ODDS + line_of_sight_odds(paths).log()
    ratio = ratio + torch.cat([straight_odds, torch.full_like(straight_odds, GROUND_LOG_ODDS)], -1)
    return ratio.masked_fill(~torch.cat([possible, nowhere], -1), -torch.inf), chi2
