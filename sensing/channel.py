"""The forward model: scene to paths to noise-free observation. Simulator, estimators and bounds all use this one."""

import torch
from torch import Tensor

from sensing.containers import Deployment, Paths, Scene
from sensing.errors import DomainError
from sensing.geometry import bounce_ranges
from sensing.operators.khatri_rao import path_operator
from sensing.units import SPEED_OF_LIGHT


def scene_paths(scene: Scene, deployment: Deployment) -> Paths:
    """Single-bounce paths of a scene (paper 1, equations 2 to 4).

    `delay = (||s - b|| + ||s - u||) / c + clock_offset`.

    Args:
        scene: batch of scenes with gains.
        deployment: the stations.

    Returns:
        One path per (station, scatterer), masked by visibility.

    Raises:
        DomainError: the scene has no gains.
    """
    if scene.gain is None:
        raise DomainError("scene.gain must hold the path gains to simulate a scene, got None")
    range_m, direction, _, _ = bounce_ranges(
        scene.scatterer_position, scene.ue_position, deployment.bs_position, SPEED_OF_LIGHT * scene.clock_offset
    )
    return Paths(range_m / SPEED_OF_LIGHT, direction, scene.gain, scene.visible)


def channel_response(paths: Paths, deployment: Deployment, dtype: torch.dtype | None = None) -> Tensor:
    """Noise-free observation `h = sum_l gain_l a(direction_l) exp(-j 2 pi f delay_l)`.

    Args:
        paths: [* bs path].
        deployment: array and pilots.
        dtype: complex type of the result; that of the gains by default.

    Returns:
        [* bs ant sc] complex.
    """
    dtype = paths.gain.dtype if dtype is None else dtype
    operator = path_operator(paths.delay * SPEED_OF_LIGHT, paths.direction, deployment, dtype=dtype)
    return operator.matvec(torch.where(paths.mask, paths.gain, 0.0).to(dtype))
