"""Evidence of a whole association: every path of every cluster, one user, one set of clocks."""

import math

import torch
from torch import Tensor

from sensing.coarse.cluster_fit import gather_members, path_log_det
from sensing.coarse.least_squares import Solution, eliminated_system
from sensing.coarse.measurements import cluster_measurements
from sensing.coarse.normal_equations import location_prior
from sensing.coarse.pairs import region_box
from sensing.containers import Deployment, PathEstimates
from sensing.units import SPEED_OF_LIGHT


def association_evidence(
    path: Tensor, solution: Solution, paths: PathEstimates, deployment: Deployment, log_odds: float = -3.0
) -> Tensor:
    """Log marginal likelihood of all member paths against that of unrelated ones, [b].

    Laplace over (user, offsets, scatterers) at the solution, for n paths in K clusters:

        sum_paths (log det W / 2 + log V_path) - cost / 2 - log det H / 2 + log det P / 2
            - 3 (n - K) log(2 pi) / 2 - K log V_region + K log odds

    with P the prior precision of user and offsets, V_path = span * 2 pi and scatterers uniform over the region. Every
    path counts once: evidence that is summed over clusters, each given the user, would let the paths behind the user's
    position vote for it again. -inf where the solution is singular.

    Args:
        path: [b cluster bs] members, -1 for none.
        solution: their least-squares fit.
        paths: detected paths.
        deployment: stations and priors.
        log_odds: prior log odds of a cluster.
    """
    member = path >= 0
    clusters, count = member.any(-1).sum(-1), member.sum((-2, -1))
    box = region_box(deployment)
    span, volume = (box[1] - box[0]).norm(), (box[1] - box[0]).prod()
    precision, proper = location_prior(deployment).precision, proper_precision(deployment)
    cost, log_det = eliminated_system(solution, cluster_measurements(path, paths), deployment, proper - precision)
    information = (gather_members(path_log_det(paths), path) * member).sum((-2, -1))
    evidence = 0.5 * (information - cost - log_det + proper.log().sum()) + count * torch.log(span * 2.0 * torch.pi)
    evidence = evidence - 1.5 * math.log(2.0 * math.pi) * (count - clusters) + clusters * (log_odds - volume.log())
    return torch.nan_to_num(evidence, nan=-torch.inf, posinf=-torch.inf)


def proper_precision(deployment: Deployment) -> Tensor:
    """Prior precision of (user, offsets); a flat prior, which has no density, as wide as the span [3+bs].

    That is as wide as the range of an unrelated path.
    """
    precision, box = location_prior(deployment).precision, region_box(deployment)
    return torch.where(precision > 0, precision, 2.0 * torch.pi / (box[1] - box[0]).square().sum())


def clock_allowance(deployment: Deployment) -> Tensor:
    """Evidence, in nats, that clocks less certain than the delay resolution cost a location, [].

    Clusters that are formed without the user know nothing of the prior of the clocks and do not pay for its width.
    """
    resolution = SPEED_OF_LIGHT / deployment.bandwidth
    return -0.5 * (proper_precision(deployment)[3:] * resolution.square()).clamp_max(1.0).log().sum()
