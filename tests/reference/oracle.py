"""Detections as an efficient detector would make them: truth plus noise of the Cramer-Rao bound, in random order."""

from typing import NamedTuple

import torch

from sensing.containers import Deployment, Example, PathEstimates
from sensing.geometry import bounce_ranges, tangent_basis
from sensing.operators.khatri_rao import extended_operator, path_information

C = 299_792_458.0


class Oracle(NamedTuple):
    paths: PathEstimates
    point: torch.Tensor  # [b bs path] scatterer of the scene behind each path, -1 where absent


def detect(
    example: Example,
    deployment: Deployment,
    noise: float = 1.0,
    min_snr: float = 13.6,
    seed: int = 0,
    shuffle: bool = True,
) -> Oracle:
    """Paths above `min_snr` (energy over noise), perturbed by `noise` standard deviations."""
    scene, noise_var = example.scene, example.observation.noise_var
    generator = torch.Generator().manual_seed(seed)
    ranges, direction, _, _ = bounce_ranges(
        scene.scatterer_position, scene.ue_position, deployment.bs_position, C * scene.clock_offset
    )
    energy = scene.gain.abs() ** 2 * len(deployment.antenna_local) * len(deployment.pilot_freq)
    mask = scene.visible & (energy > min_snr * noise_var[..., None])
    gram = extended_operator(ranges, direction, deployment, mask).gram()
    joint = path_information(gram, scene.gain * mask, noise_var)  # [b bs path 3 path 3]
    b, q, n = mask.shape
    joint = joint.reshape(b, q, 3 * n, 3 * n) + torch.diag_embed((~mask).double().repeat_interleave(3, -1))
    covariance = torch.linalg.inv(joint)
    unit = torch.randn(b, q, 3 * n, 1, generator=generator, dtype=torch.float64)
    shift = noise * (torch.linalg.cholesky(covariance) @ unit).reshape(b, q, n, 3)
    own = covariance.reshape(b, q, n, 3, n, 3).diagonal(dim1=2, dim2=4).movedim(-1, 2)
    moved = direction + (tangent_basis(direction) @ shift[..., 1:, None]).squeeze(-1)
    moved = moved / moved.norm(dim=-1, keepdim=True)
    lift = torch.zeros(b, q, n, 4, 3, dtype=torch.float64)
    lift[..., 0, 0], lift[..., 1:, 1:] = 1.0, tangent_basis(moved)
    period = float(deployment.range_ambiguity)
    measured = ranges + shift[..., 0]
    measured = torch.remainder(measured, period) if period < float("inf") else measured
    blank = mask[..., None, None]
    fields = (
        measured,
        moved,
        scene.gain * mask,
        lift @ torch.linalg.inv(own) @ lift.mT * blank,
        lift @ own @ lift.mT * blank,
        mask,
    )
    key = torch.rand(b, q, n, generator=generator) if shuffle else torch.arange(n).expand(b, q, n) / n
    order = (key + (~mask) * 2.0).argsort(-1)[..., : int(mask.sum(-1).max())]

    def pick(field: torch.Tensor) -> torch.Tensor:
        extra = field.shape[3:]
        return field.gather(2, order.reshape(*order.shape, *(1 for _ in extra)).expand(*order.shape, *extra))

    packed = PathEstimates(*(pick(field) for field in fields))
    return Oracle(packed, torch.where(packed.mask, order, -1))


def single_path(ranges, direction, std_range, std_angle, mask=None) -> PathEstimates:
    """Paths [b bs path] with independent, isotropic errors."""
    ranges, direction = torch.as_tensor(ranges, dtype=torch.float64), torch.as_tensor(direction, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    mask = torch.ones(ranges.shape, dtype=torch.bool) if mask is None else mask
    across = torch.eye(3, dtype=torch.float64) - direction[..., :, None] * direction[..., None, :]
    covariance = torch.zeros(*ranges.shape, 4, 4, dtype=torch.float64)
    covariance[..., 0, 0], covariance[..., 1:, 1:] = std_range**2, std_angle**2 * across
    information = torch.zeros_like(covariance)
    information[..., 0, 0], information[..., 1:, 1:] = std_range**-2, across / std_angle**2
    blank = mask[..., None, None]
    gain = torch.ones(ranges.shape, dtype=torch.complex128) * mask
    return PathEstimates(ranges, direction, gain, information * blank, covariance * blank, mask)


def members(oracle: Oracle, min_views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """True clusters: member paths [b k bs] and their scatterer [b k], both -1 where absent."""
    rows = []
    for scene in oracle.point.tolist():
        where = {}
        for q, station in enumerate(scene):
            for slot, point in enumerate(station):
                if point >= 0:
                    where.setdefault(point, [-1] * len(scene))[q] = slot
        rows.append([(p, w) for p, w in sorted(where.items()) if sum(slot >= 0 for slot in w) >= min_views])
    width, stations = max(len(row) for row in rows), oracle.point.shape[1]
    pad = [(-1, [-1] * stations)]
    rows = [row + pad * (width - len(row)) for row in rows]
    path = torch.tensor([[w for _, w in row] for row in rows])
    return path, torch.tensor([[p for p, _ in row] for row in rows])
