"""Start points near the truth, for training and tests without a front end.

`theta + amplitude * C^(1/2) z + jitter`, with C the bound's covariance of (user, c * offsets, scatterers), plus ghost
nodes where nothing is. Scatterers seen by two stations or more become located nodes, those seen by one free paths.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sensing.containers import Deployment, Example, Geometry
from sensing.errors import DomainError
from sensing.geometry import bounce_ranges
from sensing.units import SPEED_OF_LIGHT


def perturbed_start(
    example: Example,
    deployment: Deployment,
    covariance: Tensor,
    amplitude: float | Tensor,
    ghosts: int,
    rngs: Sequence[np.random.Generator],
    jitter_m: float = 0.05,
    longest_m: float | None = None,
) -> Geometry:
    """Perturb the truth in the directions in which it is hard to see.

    Args:
        example: batch of scenes with their truth.
        deployment: the stations.
        covariance: [* n n] of (u, c * offsets, scatterers) from `bounds.asynchronous.uplink_bound`; an infinite
            variance counts as no perturbation along it.
        amplitude: standard deviations, a number or [*].
        ghosts: nodes added per scene at random places.
        rngs: one generator per scene, so that scene i does not depend on its batch (`scene_generator(..., stream=2)`).
        jitter_m: standard deviation of further white perturbations per coordinate [m].
        longest_m: no scatterer is moved by more [m]; c / bandwidth by default.

    Returns:
        Geometry with as many nodes and free paths as the fullest scene needs, the rest masked.

    Raises:
        DomainError: the example has no truth, or the number of generators differs from the number of scenes.
    """
    scene = example.scene
    if scene is None:
        raise DomainError("example.scene must hold the truth to perturb it, got None")
    count, (bs, points) = scene.ue_position.shape[0], scene.visible.shape[-2:]
    if len(rngs) != count:
        raise DomainError(f"rngs must hold one generator per scene ({count}), got {len(rngs)}")
    device = scene.ue_position.device
    region = _region(deployment)
    draws = [
        (rng.standard_normal((2, 3 + bs + 3 * points)), rng.uniform(*region, (ghosts, 3)), rng.random((ghosts, bs)))
        for rng in rngs
    ]
    unit, ghost, order = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*draws, strict=True))

    root = _root(covariance)
    amplitude = torch.as_tensor(amplitude, dtype=root.dtype, device=device)
    theta = torch.cat(
        [scene.ue_position, SPEED_OF_LIGHT * scene.clock_offset, scene.scatterer_position.flatten(-2)], -1
    )
    shift = amplitude[..., None] * (root @ unit[:, 0, :, None])[..., 0] + jitter_m * unit[:, 1]
    longest = torch.as_tensor(SPEED_OF_LIGHT / deployment.bandwidth if longest_m is None else longest_m)
    moves = shift[:, 3 + bs :].unflatten(-1, (points, 3))
    moves = moves * (longest / torch.linalg.vector_norm(moves, dim=-1, keepdim=True)).clamp(max=1.0)
    ue, offset = theta[:, :3] + shift[:, :3], theta[:, 3 : 3 + bs] + shift[:, 3 : 3 + bs]
    position = scene.scatterer_position + moves

    views = scene.visible.sum(-2)
    index, node_mask = _compact(views >= 2)
    node = position.gather(1, index[..., None].expand(-1, -1, 3))
    member = scene.visible.gather(-1, index[:, None, :].expand(-1, bs, -1)) & node_mask[:, None, :]
    # a false node was put together from one path of each of two stations
    ghost_member = (order.argsort(-1) < min(2, bs)).mT
    free_index, free_mask = _compact(scene.visible & (views == 1)[:, None, :])
    range_m, direction, _, _ = bounce_ranges(position, ue, deployment.bs_position, offset)
    return Geometry(
        ue_position=ue,
        offset_m=offset,
        node_position=torch.cat([node, ghost], 1),
        node_mask=torch.cat([node_mask, torch.ones_like(ghost[..., 0], dtype=torch.bool)], 1),
        member=torch.cat([member, ghost_member], -1),
        free_range_m=range_m.gather(-1, free_index),
        free_direction=direction.gather(-2, free_index[..., None].expand(*free_index.shape, 3)),
        free_mask=free_mask,
    )


def _root(covariance: Tensor) -> Tensor:
    """Square root of a covariance; parameters of infinite variance get zero."""
    open_ = ~torch.isfinite(covariance.diagonal(dim1=-2, dim2=-1))
    closed = torch.where(open_[..., :, None] | open_[..., None, :], torch.zeros_like(covariance), covariance)
    values, vectors = torch.linalg.eigh(closed)
    return vectors * values.clamp(min=0.0).sqrt()[..., None, :]


def _compact(present: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the present entries of the last axis, in order, and their mask, as narrow as the batch allows."""
    width = int(present.sum(-1).max()) if present.numel() else 0
    index = present.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :width]
    return index, present.gather(-1, index)


def _region(deployment: Deployment) -> tuple[np.ndarray, np.ndarray]:
    """Box for the ghosts: the region of interest, else the box of the stations."""
    box = deployment.region
    low, high = (
        (box[0], box[1]) if box is not None else (deployment.bs_position.amin(0), deployment.bs_position.amax(0))
    )
    return low.cpu().numpy(), high.cpu().numpy()
