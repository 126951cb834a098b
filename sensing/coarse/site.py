"""Location on a site whose walls are known: users by mirrored stations beside those by clusters, the best sum decides.

Both kinds of modes are refined by the mirrors (`site_search`), form the clusters of their offsets, and are judged by
the evidence of the mirrors and the score of those clusters (`user_score`). Where the walls tell the user, least squares
on the few points of a street tells little more: the mode, with the covariance that the mirrors give it, is its prior.
"""

import torch
from torch import Tensor

from sensing.coarse.candidates import best_distinct
from sensing.coarse.clusters import form_clusters
from sensing.coarse.mirrors import mirrors
from sensing.coarse.rays import Rays, take
from sensing.coarse.settling import Bounces
from sensing.coarse.site_search import SiteModes, refine_site, search_site
from sensing.coarse.user_score import Hypothesis, hypothesis, score
from sensing.containers import Deployment

BY_MIRRORS, BY_CLUSTERS = 10, 5
"""Users of a scene that are refined, by what proposed them."""


def site_candidates(
    rays: Rays,
    ue: Tensor,
    offset: Tensor,
    value: Tensor,
    owner: Tensor,
    deployment: Deployment,
    bounces: Bounces,
    planes: Tensor,
) -> tuple[Tensor, SiteModes, Hypothesis, Tensor]:
    """Refine and judge users.

    Args:
        rays: paths and pairs of the scenes.
        ue: users [n xyz] that the clusters propose [m].
        offset: their clock offsets [n bs] [m].
        value: their score [n].
        owner: their scene [n], never falling.
        deployment: stations and priors.
        bounces: what the paths may be.
        planes: [plane 4] walls; see `mirrors`.

    Returns:
        scene [m], refined users, the clusters of their offsets, and their value [m] in nats.
    """
    images, scenes = mirrors(planes, deployment), len(rays.paths.mask)
    kept = best_distinct(value, ue, owner, scenes, torch.inf, BY_CLUSTERS)
    found, owners = [], []
    for scene in range(scenes):
        paths = take(rays.paths, torch.tensor([scene], device=ue.device))
        own = kept[owner[kept] == scene]
        users, offsets = search_site(paths, images, deployment, BY_MIRRORS)
        start = torch.cat([users, ue[own]]), torch.cat([offsets, offset[own]])
        found.append(refine_site(*start, paths, images, deployment, bounces.slack_m))
        owners.append(torch.full((len(start[0]),), scene, device=ue.device))
    modes, row = SiteModes(*(torch.cat(field) for field in zip(*found, strict=True))), torch.cat(owners)
    each, relative = take(rays, row), modes.offset_m - modes.offset_m[:, :1]
    clusters = form_clusters(each.pairs, relative, each.paths, deployment)
    case = hypothesis(clusters, relative, each.paths, deployment, bounces.slack_m, bounces.multi_bounce)
    points = score(modes.ue_position[:, None], modes.offset_m[:, :1, None], case, deployment)[:, 0, 0]
    return row, modes, case, torch.nan_to_num(modes.log_odds + points, nan=-torch.inf)
