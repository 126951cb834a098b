"""Fisher information of the asynchronous uplink against the same by automatic differentiation of the forward model.

Ours is batched and works on path Grams; the peer takes one scene at a time through `torch.func.jacfwd` of the channel
over (user, offsets, scatterers, complex gains), squares the Jacobian and eliminates the gains. Asked for: 1 ms a scene.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.frame import Case
from benchmarks.hall import hall
from sensing.bounds import uplink_bound, uplink_information
from sensing.channel import channel_response, scene_paths
from sensing.containers import Deployment, Scene
from sensing.units import SPEED_OF_LIGHT

INSTALL = None


def cases(tiny: bool) -> Iterator[Case]:
    """The hall with eight shared scatterers; the peer on four scenes, ours on as many, on 64 and on 256."""
    simulator = hall(8)
    for batch in (1,) if tiny else (4, 64, 256):
        scene = simulator.scenes("test", range(batch))
        noise_var = torch.full(scene.clock_offset.shape, 0.1, dtype=torch.float64)

        def information(s: Scene = scene, n: Tensor = noise_var) -> Tensor:
            return uplink_information(s, n, simulator.deployment)

        def bound(s: Scene = scene, n: Tensor = noise_var) -> Tensor:
            return uplink_bound(s, n, simulator.deployment).ue_position_m

        def peer(s: Scene = scene, n: Tensor = noise_var) -> Tensor:
            return autodiff_information(s, n, simulator.deployment)

        size, per = f"{batch} scenes, 4 stations, 64 antennas, 64 pilots, 16 scatterers", (float(batch), "scene")
        name = f"torch {torch.__version__.split('+')[0]} jacfwd"
        what = "Fisher information, asynchronous uplink"
        if batch <= 4:
            yield Case(what, size, information, peer, name, error=scaled_error, per=per)
        else:
            yield Case(what, size, information, per=per)
            yield Case("&nbsp;&nbsp;and the bound from it", size, bound, per=per)


def scaled_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of two information matrices, each parameter in units of its own information."""
    scale = theirs.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(theirs.dtype).tiny).rsqrt()
    return float(((ours - theirs) * scale[..., :, None] * scale[..., None, :]).abs().max())


def autodiff_information(scene: Scene, noise_var: Tensor, deployment: Deployment) -> Tensor:
    """What `uplink_information` returns, scene by scene, [* n n]."""
    keep = 3 + scene.clock_offset.shape[-1] + scene.scatterer_position[0].numel()
    singles = zip(map(Scene._make, zip(*scene, strict=True)), noise_var, strict=True)
    return torch.stack([effective_information(square_root(*single, deployment), keep) for single in singles])


def effective_information(root: Tensor, keep: int) -> Tensor:
    """Information of the first parameters of `root^T root`; the others leave by a Schur complement, scaled first."""
    whole = root.T @ root
    scale = whole.diagonal()[keep:].rsqrt()
    factor = torch.linalg.cholesky(whole[keep:, keep:] * scale[:, None] * scale)
    half = torch.linalg.solve_triangular(factor, whole[keep:, :keep] * scale[:, None], upper=False)
    return whole[:keep, :keep] - half.T @ half


def square_root(scene: Scene, noise_var: Tensor, deployment: Deployment) -> Tensor:
    """Derivative of the noise-free observation of one scene over the noise's deviation, [observation parameter].

    Its square is the Fisher information. Parameters are the user [m], c * offsets [m], scatterers [m], then the real
    and the imaginary parts of the gains of the visible pairs, in the order of `scene.visible.nonzero()`.
    """
    assert scene.gain is not None
    pairs = scene.visible
    parts = (scene.ue_position, SPEED_OF_LIGHT * scene.clock_offset, scene.scatterer_position.flatten())
    theta = torch.cat([*parts, scene.gain[pairs].real, scene.gain[pairs].imag])
    sizes = [*map(len, parts), int(pairs.sum()), int(pairs.sum())]
    weight = (2.0 / noise_var).sqrt()[:, None, None, None]

    def mean(theta: Tensor) -> Tensor:
        user, offset_m, scatterer, real, imag = theta.split(sizes)
        gain = torch.zeros_like(scene.gain).index_put(pairs.nonzero(as_tuple=True), torch.complex(real, imag))
        moved = Scene(user, scatterer.unflatten(0, (-1, 3)), pairs, offset_m / SPEED_OF_LIGHT, gain)
        return (weight * torch.view_as_real(channel_response(scene_paths(moved, deployment), deployment))).flatten()

    return torch.func.jacfwd(mean)(theta)
