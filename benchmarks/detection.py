"""Path detection in the hall: detection rate, ghosts, errors over the Cramer-Rao bound and time, per SNR."""

import argparse
import time

import torch
from torch import Tensor

from sensing import arrays, ofdm
from sensing.channel import scene_paths
from sensing.coarse import PathDetector
from sensing.containers import Deployment, Example, PathEstimates
from sensing.geometry import tangent_basis
from sensing.operators.khatri_rao import extended_operator, path_information
from sensing.simulation import SceneSampler, Simulator, build_deployment
from sensing.units import SPEED_OF_LIGHT


def hall(num_shared: int = 8) -> Simulator:
    """The default scenes."""
    deployment = build_deployment(
        [[0, 0, 6], [40, 0, 6], [40, 40, 6], [0, 40, 6]],
        arrays.upa(8, 8),
        ofdm.pilot_frequencies(1024, 120e3, 16),
        28e9,
        1 / 122.88e6,
        target=[20, 20, 4],
        region=[[0, 0, 0], [40, 40, 8]],
    )
    return Simulator(deployment, SceneSampler([[3, 3, 1], [37, 37, 2]], [[1, 1, 0.5], [39, 39, 7.5]], num_shared, 2))


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


def main() -> None:
    """Print one row per SNR."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--snr", type=float, nargs="+", default=[-10.0, 0.0, 10.0, 20.0, 30.0])
    parser.add_argument("--shared", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    simulator, detector = hall(args.shared), PathDetector()
    print("snr_db detected ghosts/bs exact range/crb angle/crb ms/scene")
    for snr in args.snr:
        rows, seconds = [], 0.0
        for start in range(0, args.scenes, args.batch):
            example = simulator.examples("test", range(start, start + args.batch), snr)
            begin = time.process_time()
            paths = detector(example.observation, simulator.deployment)
            seconds += time.process_time() - begin
            rows.append(list(score(paths, example, simulator.deployment).values()))
        mean = torch.tensor(rows).mean(0).tolist()
        print(f"{snr:6.0f} " + " ".join(f"{value:9.3f}" for value in mean) + f" {1e3 * seconds / args.scenes:8.1f}")


if __name__ == "__main__":
    main()
