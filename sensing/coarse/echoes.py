"""Clusters that are echoes of others: a further bounce between the user, a scatterer and a station.

A bounce on the user's leg leaves the scatterer where it is and only makes the path longer: same position, later excess.
A bounce on the station's leg mirrors the scatterer in the reflecting plane and leaves the user's leg as it is: same
excess, and the image lies behind the plane, further from the stations; a wall keeps its height, the ground its place in
the plan. Either way the original is usually there too, because it is stronger.
"""

import torch
from torch import Tensor

from sensing.coarse.clusters import Clusters
from sensing.coarse.pairs import wrap
from sensing.containers import Deployment

GATE = 16.3  # chi-square with 3 degrees of freedom, 0.1 %
GATE_PLAN = 13.8  # with 2
GATE_SINGLE = 10.8  # with 1


def echoes(clusters: Clusters, deployment: Deployment, slack_m: float = 0.0) -> Tensor:
    """Which clusters another one explains as its echo, [b k] bool.

    Args:
        clusters: candidates with position, excess and their covariance.
        deployment: stations.
        slack_m: standard deviation of the model's own error, added to positions and excesses [m].
    """
    position, covariance = clusters.position, clusters.covariance
    apart = position[:, :, None] - position[:, None]  # [b k j xyz]: k minus j
    eye = torch.eye(4, dtype=position.dtype, device=position.device)
    total = covariance[:, :, None] + covariance[:, None] + 2.0 * slack_m**2 * eye
    later = wrap(clusters.excess[:, :, None] - clusters.excess[:, None], deployment.range_ambiguity)
    excess_variance = total[..., 3, 3]
    squared = (apart * torch.linalg.solve_ex(total[..., :3, :3], apart)[0]).sum(-1)
    both = clusters.mask[:, :, None] & clusters.mask[:, None]
    same_place = squared < GATE
    user_leg = same_place & (later > (GATE_SINGLE * excess_variance).sqrt())
    same_height = apart[..., 2].square() < GATE_SINGLE * total[..., 2, 2]
    plan = apart[..., :2]
    same_plan = (plan * torch.linalg.solve_ex(total[..., :2, :2], plan)[0]).sum(-1) < GATE_PLAN
    leg = (position[:, :, None] - deployment.bs_position).norm(dim=-1).mean(-1)
    behind = leg[:, :, None] > leg[:, None]
    station_leg = ~same_place & (same_height | same_plan) & behind & (later.square() < GATE_SINGLE * excess_variance)
    return (both & (user_leg | station_leg)).any(-1)
