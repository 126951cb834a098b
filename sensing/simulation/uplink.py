"""Asynchronous uplink: scenes to noisy pilots at a given SNR."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sensing.channel import channel_response, scene_paths
from sensing.containers import Deployment, Example, Observation, Scene, to_device
from sensing.errors import ConfigError
from sensing.simulation.sampler import SceneSampler, unit_noise
from sensing.units import from_db


def noise_variance(channel: Tensor, snr_db: Tensor | float) -> Tensor:
    """Noise power per entry for an SNR: mean received power over stations, antennas and pilots, over the noise power.

    Args:
        channel: [* bs ant sc] noise-free observation.
        snr_db: [*] or a number [dB].

    Returns:
        [* bs], the same for all stations of a scene.

    Raises:
        ConfigError: a scene receives no power at all.
    """
    power = channel.abs().square().mean((-3, -2, -1))
    if not bool((power > 0).all()):
        raise ConfigError("a scene without received power has no SNR: no scatterer is visible")
    variance = power / from_db(snr_db).to(power)
    return variance[..., None].expand(channel.shape[:-2])


class Simulator:
    """Seeded examples of a deployment: scene, noise-free channel and observation.

    Args:
        deployment: stations, array, pilots and priors.
        sampler: law of the scenes.
        seed: experiment seed.
    """

    def __init__(self, deployment: Deployment, sampler: SceneSampler, seed: int = 0) -> None:
        self.deployment, self.sampler, self.seed = deployment.validate(), sampler, seed

    def scenes(self, split: str, indices: Sequence[int]) -> Scene:
        """Scenes `indices` of a split."""
        return self.sampler.sample(self.deployment, self.seed, split, indices)

    def examples(
        self, split: str, indices: Sequence[int], snr_db: Tensor | float = 10.0, device: torch.device | str = "cpu"
    ) -> Example:
        """Observed scenes. Draws happen on the CPU (equal on every device), synthesis on `device`.

        Args:
            split: train, val, test or sample.
            indices: scene numbers.
            snr_db: one value or one per scene [dB].
            device: where the channel is synthesised and the result lies.

        Returns:
            Example with batch shape [len(indices)].
        """
        deployment = to_device(self.deployment, device)
        scene = to_device(self.scenes(split, indices), device)
        channel = channel_response(scene_paths(scene, deployment), deployment)
        noise = unit_noise(channel.shape[1:], self.seed, split, indices).to(device)
        return observe(scene, channel, noise, snr_db)


def observe(scene: Scene, channel: Tensor, noise: Tensor, snr_db: Tensor | float) -> Example:
    """Add unit noise, scaled to an SNR, to a channel.

    Args:
        scene: the truth, carried along.
        channel: [* bs ant sc].
        noise: [* bs ant sc] CN(0, 1).
        snr_db: [*] or a number [dB].
    """
    variance = noise_variance(channel, snr_db)
    y = channel + variance.sqrt()[..., None, None] * noise
    return Example(Observation(y, variance), scene, channel)
