"""Time of path detection per station, and what it finds: hits, ghosts, errors over the Cramer-Rao bound. No peer."""

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

from benchmarks.frame import Case, relative_error
from benchmarks.hall import hall
from sensing.channel import scene_paths
from sensing.coarse import MusicDetector, PathDetector
from sensing.containers import Deployment, Example, PathEstimates
from sensing.geometry import tangent_basis
from sensing.operators.khatri_rao import extended_operator, path_information
from sensing.units import SPEED_OF_LIGHT

INSTALL = None


def cases(tiny: bool) -> Iterator[Case]:
    """Scenes of `hall_hard` in one batch, from far below to far above the noise."""
    simulator = hall()
    detectors = {"Newtonized OMP": PathDetector(), "MUSIC": MusicDetector()}
    for (name, detector), snr_db in product(detectors.items(), (10.0,) if tiny else (-10.0, 0.0, 10.0, 20.0, 30.0)):
        example = simulator.examples("test", range(1 if tiny else 16), snr_db)

        def ours(given: Example = example, detector: Callable[..., PathEstimates] = detector) -> PathEstimates:
            return detector(given.observation, simulator.deployment)

        quality = score(ours(), example, simulator.deployment)
        stations = example.observation.noise_var.numel()
        yield Case(
            what=f"{name} at {snr_db:g} dB",
            size=f"{stations} stations, 64 antennas, 64 pilots",
            ours=ours,
            tolerance=0.0,
            error=difference,
            per=(stations, "station"),
            note=", ".join(f"{name} {value:.3g}" for name, value in quality.items()),
        )


def difference(first: PathEstimates, second: PathEstimates) -> float:
    """Largest difference of the ranges of two runs, which must agree bit for bit."""
    return relative_error(first.range_m, second.range_m)


def score(paths: PathEstimates, example: Example, deployment: Deployment) -> dict[str, float]:
    """Match every true path to the nearest estimate in units of the bound and count."""
    assert example.scene is not None
    truth = scene_paths(example.scene, deployment)
    range_m, gain = truth.delay * SPEED_OF_LIGHT, truth.gain * truth.mask
    gram = extended_operator(range_m, truth.direction, deployment, truth.mask).gram()
    joint = path_information(gram, gain, example.observation.noise_var).flatten(-2).flatten(-3, -2)
    absent = (~truth.mask).repeat_interleave(3, -1).to(joint.dtype)
    scale = (joint.diagonal(dim1=-2, dim2=-1) + absent).rsqrt()
    joint = joint * scale[..., None] * scale[..., None, :] + torch.diag_embed(absent)
    crb = torch.linalg.inv(joint).diagonal(dim1=-2, dim2=-1) * scale.square()
    crb = crb.unflatten(-1, (-1, 3))
    # differences between every true and every estimated path, [scene bs true est]
    ambiguity = deployment.range_ambiguity
    d_range = (paths.range_m[..., None, :] - range_m[..., None] + ambiguity / 2).remainder(ambiguity) - ambiguity / 2
    d_tangent = torch.einsum(
        "...lit,...lni->...lnt",
        tangent_basis(truth.direction),
        paths.direction[..., None, :, :] - truth.direction[..., None, :],
    )
    far = d_range.square() / crb[..., None, 0] + (d_tangent.square() / crb[..., None, 1:]).sum(-1)
    # near: inside a third of a resolution cell in every dimension, or within five sigma
    near = (d_range.abs() < 0.8) & (d_tangent.abs().amax(-1) < 0.08) | (far < 75)
    pair = near & truth.mask[..., None] & paths.mask[..., None, :]
    far = torch.where(pair, far, torch.inf)
    best, which = far.min(-1)
    mutual = far.argmin(-2).gather(-1, which) == torch.arange(far.shape[-2])
    hit = torch.isfinite(best) & mutual & truth.mask
    ghosts = paths.mask.sum() - hit.sum()
    e_range = d_range.gather(-1, which[..., None]).squeeze(-1)[hit]
    e_tangent = d_tangent.gather(-2, which[..., None, None].expand(*which.shape, 1, 2)).squeeze(-2)[hit]

    def ratio(error: Tensor, variance: Tensor) -> float:
        return float((error.square() / variance).mean().sqrt())

    return {
        "detected": float(hit.sum() / truth.mask.sum()),
        "ghosts/bs": float(ghosts / truth.mask[..., 0].numel()),
        "exact": float((paths.mask.sum(-1) == truth.mask.sum(-1)).double().mean()),
        "range": ratio(e_range, crb[hit][:, 0]),
        "angle": ratio(e_tangent, crb[hit][:, 1:]),
    }
