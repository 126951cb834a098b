"""Joint detection over stations: a path too weak for its own station is looked for where another one points.

With user and clocks known, a path that one station alone has found leads to its scatterer, the bounce on its ray, and
every other station would see that scatterer at a known range and direction. What is left to search is the box of the
path's own errors, a handful of places where the blind search has ten thousand cells, so that about half the energy is
evidence enough. A path that is confirmed becomes a located node: it then tells of user and clocks, and both stations
place its scatterer.
"""

import torch
from torch import Tensor

from sensing.coarse.localization import free_paths
from sensing.coarse.pairs import inside, region_box
from sensing.containers import Deployment, Geometry, Observation, PathEstimates
from sensing.geometry import bounce_on_ray, bounce_ranges
from sensing.operators.khatri_rao import path_operator, whitened

REACH = 1.2  # standard deviations of range and direction between the places that are tried
APART = 3.0  # independent places in the box: how much likelier its maximum is to exceed a level than one of them
LEAST = 0.2  # share of a response that other paths must leave over: less is their own remainder
MARGIN = 0.05  # of the region, by which a scatterer may lie outside


@torch.no_grad()
def joint_detection(
    observation: Observation,
    deployment: Deployment,
    paths: PathEstimates,
    path: Tensor,
    geometry: Geometry,
    false_alarm: float,
) -> Geometry:
    """A coarse geometry with nodes in place of those free paths that another station confirms.

    Args:
        observation: y [b bs ant sc] and noise_var [b bs].
        deployment: stations.
        paths: detected paths.
        path: [b node bs] members of the nodes, -1 for none.
        geometry: user, clocks, these nodes, and the other paths as free ones in the order of `free_paths`.
        false_alarm: nodes per scene that noise alone may confirm.
    """
    position, valid, shift = _bounces(paths, path, geometry, deployment)  # [b bs free place ...]
    stations, free = geometry.free_mask.shape[-2:]
    exists = valid.any(-1).flatten(1)  # [b bs*free]
    width = int(exists.sum(-1).max())
    if width == 0:
        return geometry
    order = exists.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :width]
    row = torch.arange(len(order), device=order.device)[:, None]
    position, valid = position.flatten(1, 2)[row, order], valid.flatten(1, 2)[row, order]  # [b c place ...]
    own = (order // free)[:, None] == torch.arange(stations, device=order.device)[:, None]  # [b bs c]

    energy = unexplained_energy(observation, geometry, position.flatten(1, 2), deployment)
    energy = energy.unflatten(-1, position.shape[1:3]) * (~own[..., None] & valid[:, None])  # [b bs c place]
    tests = (exists.sum(-1) * (stations - 1)).clamp_min(1)
    excess = (energy - torch.log(tests * APART / false_alarm)[:, None, None, None]).clamp_min(0.0)
    best = (excess.sum(1) - 0.5 * shift.square().sum(-1)).argmax(-1)  # [b c]
    seen = excess.gather(-1, best[:, None, :, None].expand(*own.shape, 1))[..., 0] > 0
    found = seen.any(1)
    return _with_nodes(geometry, position[row, torch.arange(width), best], seen | own, found, row, order)


def _with_nodes(
    geometry: Geometry, position: Tensor, member: Tensor, found: Tensor, row: Tensor, order: Tensor
) -> Geometry:
    """Nodes [b c xyz] in place of the free paths at `order` [b c], where found [b c]."""
    width = int(found.sum(-1).max())
    kept = found.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :width]
    mask, free = found[row, kept], geometry.free_mask.flatten(1).clone()
    free[row, order] &= ~found
    return geometry._replace(
        node_position=torch.cat([geometry.node_position, position[row, kept]], 1),
        node_mask=torch.cat([geometry.node_mask, mask], 1),
        member=torch.cat([geometry.member, (member & found[:, None]).mT[row, kept].mT], 2),
        free_mask=free.view_as(geometry.free_mask),
    )


def _bounces(
    paths: PathEstimates, path: Tensor, geometry: Geometry, deployment: Deployment
) -> tuple[Tensor, Tensor, Tensor]:
    """Places of free paths' scatterers [b bs free place xyz], which exist [b bs free place], deviations [place 3].

    The places are the path's own and six around it, along the axes in which its range and direction are independent.
    """
    index, exists = free_paths(path, paths)
    eye = torch.eye(3, dtype=paths.range_m.dtype, device=paths.range_m.device)
    shift = torch.cat([0.0 * eye[:1], REACH * eye, -REACH * eye])  # [place 3]
    covariance = paths.covariance.gather(2, index[..., None, None].expand(*index.shape, 4, 4))
    variance, axes = torch.linalg.eigh(covariance)
    # the direction has no variance along itself: of four axes the last three are those of the errors
    root = axes[..., 1:] * variance[..., None, 1:].clamp_min(0.0).sqrt()
    moved = (root[..., None, :, :] @ shift[..., None]).squeeze(-1)  # [b bs free place 4]
    length = (geometry.free_range_m - geometry.offset_m[..., None])[..., None] + moved[..., 0]
    direction = torch.nn.functional.normalize(geometry.free_direction[..., None, :] + moved[..., 1:], dim=-1)
    bs, ue = deployment.bs_position[:, None, None], geometry.ue_position[:, None, None, None]
    position, valid = bounce_on_ray(direction, length, bs, ue, deployment.range_ambiguity)
    return position, valid & exists[..., None] & inside(position, region_box(deployment), MARGIN), shift


def unexplained_energy(
    observation: Observation, geometry: Geometry, position: Tensor, deployment: Deployment
) -> Tensor:
    """Energy over noise of a further path at each place, beyond the paths known, [b bs place]; Exp(1) in noise alone.

    `|phi^H P y|^2 / (phi^H P phi noise_var)` with P the projector off the columns of the members and free paths of the
    station; zero behind the array and where these leave too little of the response.

    Args:
        observation: y [b bs ant sc] and noise_var [b bs].
        geometry: user, clocks and the paths known.
        position: [b place xyz] scatterers.
        deployment: stations.
    """
    nodes = geometry.node_mask.shape[-1]
    everything = torch.cat([geometry.node_position, position], 1)
    range_m, direction, _, _ = bounce_ranges(
        everything, geometry.ue_position, deployment.bs_position, geometry.offset_m
    )
    mask = torch.cat([geometry.member & geometry.node_mask[:, None], geometry.free_mask], -1)
    known = path_operator(
        torch.cat([range_m[..., :nodes], geometry.free_range_m], -1),
        torch.cat([direction[..., :nodes, :], geometry.free_direction], -2),
        deployment,
        mask,
    ).whitened(observation.whitener)
    new = path_operator(range_m[..., nodes:], direction[..., nodes:, :], deployment).whitened(observation.whitener)
    y = whitened(observation.y.to(new.delay.dtype), observation.whitener)
    size = float(observation.y.shape[-2] * observation.y.shape[-1])
    # absent columns are zero: one on their diagonal keeps the factor; coincident ones share what they explain
    gram = known.gram() / size + torch.diag_embed((~mask).double() + 1e-9)
    chol = torch.linalg.cholesky(gram)
    cross = (known.steering.mH @ new.steering) * (known.delay.mH @ new.delay) / size
    right = torch.cat([cross, known.rmatvec(y)[..., None]], -1)
    white = torch.linalg.solve_triangular(chol, right, upper=False)
    cross, matched = white[..., :-1], white[..., -1:]
    rest = new.rmatvec(y) - (cross.mH @ matched).squeeze(-1)
    whole = torch.ones_like(rest.real) if observation.whitener is None else new.energy() / size
    left = whole - cross.abs().square().sum(-2)
    usable = (left > LEAST * whole) & ((direction[..., nodes:, :] * deployment.boresight[:, None]).sum(-1) > 0)
    energy = rest.abs().square() / (torch.maximum(left, LEAST * whole) * size * observation.noise_var[..., None])
    return torch.where(usable, energy, torch.zeros_like(energy))
