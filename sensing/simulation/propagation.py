"""Propagation that the model does not know: drawn anew for each scene, from (seed, split, scene, kind) alone.

- clock: offsets times a factor.
- gain: path amplitudes times `exp(a n - a^2)`, a = gain_spread ln(10) / 20 and n standard normal, so that the mean
  power stays: with Rayleigh gains a heavy-tailed law.
- visibility: a station sees a shared scatterer where `Phi(z(s)) < visibility` and it lies in front, with z a Gaussian
  field of variance 1 and correlation `exp(-d^2 / (2 l^2))` over the scatterers, one field for each station: obstacles
  hide neighbours together. Every scatterer is seen as often as before, but nobody makes sure that two stations see it.
- extent: the reflection point of scatterer s towards station b is `s + extent n_bs`.
- bounces: for each scatterer that a station sees, a path user - another scatterer - scatterer - station with the gain
  `multi_bounce CN(0, 1)`.
- diffuse tail: the covariance over pilots is that of an exponential delay profile, white over the antennas
  (Richter, "Estimation of radio channel parameters", dissertation, TU Ilmenau, 2005, section 2.5),

      E[h_mk h*_m'l] = [m = m'] P exp(-j 2 pi (f_k - f_l) r_0 / c) / (1 + j 2 pi (f_k - f_l) r_d / c),

  with P the share of the mean power of the station's paths, r_0 the length of the earliest and r_d the decay.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from sensing import ofdm
from sensing.containers import Deployment, Paths, Scene
from sensing.geometry import direction_and_range
from sensing.simulation.impairments import Impairments
from sensing.simulation.sampler import SceneSampler, scene_generator
from sensing.units import SPEED_OF_LIGHT

KINDS = ("gain", "visibility", "extent", "bounce", "bounce_gain", "diffuse")
_FIRST_STREAM = 8  # below are geometry, noise, start and SNR of a scene


class Draws:
    """Random numbers of scenes, one generator for each scene and kind of impairment.

    Args:
        seed: of the experiment.
        split: of the scenes.
        indices: scene numbers.
    """

    def __init__(self, seed: int, split: str, indices: Iterable[int]) -> None:
        self.seed, self.split, self.indices = seed, split, list(indices)

    def __call__(self, kind: str, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        """What `draw` makes of each scene's generator, stacked."""
        stream = _FIRST_STREAM + KINDS.index(kind)
        drawn = [draw(scene_generator(self.seed, self.split, index, stream)) for index in self.indices]
        return torch.from_numpy(np.stack(drawn))

    def normal(self, kind: str, *shape: int) -> Tensor:
        """Standard normal numbers, [scene, *shape]."""
        return self(kind, lambda rng: rng.standard_normal(shape))

    def complex_normal(self, kind: str, *shape: int) -> Tensor:
        """CN(0, 1), [scene, *shape]."""
        return torch.view_as_complex(self.normal(kind, *shape, 2)) / math.sqrt(2.0)


def impaired_scene(
    scene: Scene, sizes: Impairments, sampler: SceneSampler, deployment: Deployment, draws: Draws
) -> Scene:
    """The scene with other clock offsets, gains and visibility; see the module. On the CPU, as scenes are drawn."""
    if sizes.clock_factor != 1.0:
        scene = scene._replace(clock_offset=sizes.clock_factor * scene.clock_offset)
    if sizes.gain_spread_db:
        assert scene.gain is not None
        size = sizes.gain_spread_db * math.log(10.0) / 20.0
        scene = scene._replace(gain=scene.gain * (size * draws.normal("gain", *scene.gain.shape[1:]) - size**2).exp())
    if sizes.visibility_m:
        scene = scene._replace(visible=_patchy(scene, sizes.visibility_m, sampler, deployment, draws))
    return scene


def _patchy(scene: Scene, length_m: float, sampler: SceneSampler, deployment: Deployment, draws: Draws) -> Tensor:
    """Visibility [scene bs point] with shared scatterers hidden together."""
    stations, shared = len(deployment.bs_position), sampler.num_shared
    point = scene.scatterer_position[:, :shared]
    squared = (point[:, :, None] - point[:, None]).square().sum(-1)
    correlation = (-squared / (2.0 * length_m**2)).exp()
    field = draws.normal("visibility", stations, shared) @ _root(correlation).mT
    direction, _ = direction_and_range(point[:, None], deployment.bs_position[:, None])
    in_front = (direction * deployment.boresight[:, None]).sum(-1) >= sampler.min_boresight_cos
    seen = (field < ndtri(sampler.visibility)) & in_front
    return torch.cat([seen, scene.visible[..., shared:]], -1)


def impaired_paths(paths: Paths, scene: Scene, sizes: Impairments, deployment: Deployment, draws: Draws) -> Paths:
    """Paths of scatterers with extent, and over two scatterers.

    Args:
        paths: single-bounce paths of the scene, [scene bs point].
        scene: the truth.
        sizes: at severity 1.
        deployment: the true stations.
        draws: random numbers of these scenes.

    Returns:
        [scene bs path], with twice as many paths where there are double bounces.
    """
    if not sizes.extent_m and not sizes.multi_bounce:
        return paths
    offset_m = SPEED_OF_LIGHT * scene.clock_offset[..., None]
    stations, points = scene.visible.shape[1:]
    bs, last = deployment.bs_position[:, None], scene.scatterer_position[:, None].expand(-1, stations, -1, -1)
    if sizes.extent_m:
        last = last + sizes.extent_m * draws.normal("extent", stations, points, 3).to(last)
        direction, station_leg = direction_and_range(last, bs)
        _, user_leg = direction_and_range(last, scene.ue_position[:, None, None])
        paths = paths._replace(delay=(station_leg + user_leg + offset_m) / SPEED_OF_LIGHT, direction=direction)
    if sizes.multi_bounce and points > 1:
        step = draws("bounce", lambda rng: rng.integers(1, points, (stations, points))).to(last.device)
        first = (torch.arange(points, device=last.device) + step) % points
        gain = draws.complex_normal("bounce_gain", stations, points).to(paths.gain)
        before = last.gather(2, first[..., None].expand(-1, -1, -1, 3))
        _, user_leg = direction_and_range(before, scene.ue_position[:, None, None])
        _, between = direction_and_range(before, last)
        direction, station_leg = direction_and_range(last, bs)
        delay = (user_leg + between + station_leg + offset_m) / SPEED_OF_LIGHT
        double = Paths(delay, direction, sizes.multi_bounce * gain, paths.mask)
        paths = Paths(*(torch.cat(each, -2 if each[0].ndim > 3 else -1) for each in zip(paths, double, strict=True)))
    return paths


def diffuse_tail(channel: Tensor, paths: Paths, sizes: Impairments, deployment: Deployment, draws: Draws) -> Tensor:
    """Diffuse part of the channel [scene bs ant sc]; see the module.

    Args:
        channel: the specular part, whose power it is relative to.
        paths: of the specular part; the tail starts at the earliest.
        sizes: at severity 1.
        deployment: gives the pilots.
        draws: random numbers of these scenes.
    """
    onset_m = SPEED_OF_LIGHT * torch.where(paths.mask, paths.delay, torch.inf).amin(-1, keepdim=True)
    onset_m = torch.where(torch.isfinite(onset_m), onset_m, torch.zeros_like(onset_m))  # sees nothing: has no power
    root = _root(ofdm.profile_covariance(sizes.diffuse_decay_m, deployment.pilot_freq))
    tail = draws.complex_normal("diffuse", *channel.shape[1:]).to(channel) @ root.to(channel).mT
    amplitude = (sizes.diffuse * channel.abs().square().mean((-2, -1))).sqrt()
    return amplitude[..., None, None] * ofdm.response(onset_m, deployment.pilot_freq).mT.to(channel) * tail


def _root(covariance: Tensor) -> Tensor:
    """A square root R of positive semidefinite matrices, `R R^H`; they are singular where points come close."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0.0).sqrt()[..., None, :]
