"""Asynchronous uplink: scenes to noisy pilots at a given SNR."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sensing.channel import channel_response, scene_paths
from sensing.containers import Deployment, Example, Observation, Scene, to_device
from sensing.errors import ConfigError
from sensing.simulation.hardware import draw_hardware
from sensing.simulation.impairments import Impairments
from sensing.simulation.propagation import Draws, diffuse_tail, impaired_paths, impaired_scene
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
        deployment: stations, array, pilots and priors, as estimators and bounds are told.
        sampler: law of the scenes.
        seed: experiment seed.
        impairments: what estimators are not told; nothing when None.
    """

    def __init__(
        self, deployment: Deployment, sampler: SceneSampler, seed: int = 0, impairments: Impairments | None = None
    ) -> None:
        self.deployment, self.sampler, self.seed = deployment.validate(), sampler, seed
        self.impairments = (impairments or Impairments()).scaled()
        self.hardware = draw_hardware(self.impairments, self.deployment, seed)

    @property
    def true_deployment(self) -> Deployment:
        """Stations where they are, with `antenna_local` [bs ant xyz] if elements are out of place."""
        return self.hardware.deployment

    @property
    def element_gain(self) -> Tensor:
        """Factors of the elements, [bs ant] complex; one without errors. Coupling comes before: `hardware.coupling`."""
        shape = len(self.deployment.bs_position), len(self.deployment.antenna_local)
        gain = self.hardware.element_gain
        return torch.ones(shape, dtype=torch.complex128) if gain is None else gain

    def scenes(self, split: str, indices: Sequence[int]) -> Scene:
        """Scenes `indices` of a split."""
        scene = self.sampler.sample(self.deployment, self.seed, split, indices)
        draws = Draws(self.seed, split, indices)
        return impaired_scene(scene, self.impairments, self.sampler, self.deployment, draws)

    def channel(self, scene: Scene, split: str, indices: Sequence[int]) -> Tensor:
        """Noise-free observation [scene bs ant sc] of scenes `indices` of a split, on their device."""
        device, draws = scene.ue_position.device, Draws(self.seed, split, indices)
        deployment, hardware = to_device(self.true_deployment, device), to_device(self.hardware, device)
        paths = impaired_paths(scene_paths(scene, deployment), scene, self.impairments, deployment, draws)
        channel = channel_response(paths, deployment)
        if self.impairments.diffuse:
            channel = channel + diffuse_tail(channel, paths, self.impairments, deployment, draws)
        return hardware.received(channel)

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
        scene = to_device(self.scenes(split, indices), device)
        channel = self.channel(scene, split, indices)
        noise = unit_noise(channel.shape[1:], self.seed, split, indices).to(device)
        return self.observe(scene, channel, noise, snr_db)

    def observe(self, scene: Scene, channel: Tensor, noise: Tensor, snr_db: Tensor | float) -> Example:
        """As the function `observe`, with the true noise of these stations."""
        return observe(scene, channel, noise, snr_db, self.hardware.noise_factor)


def observe(
    scene: Scene, channel: Tensor, noise: Tensor, snr_db: Tensor | float, noise_factor: Tensor | None = None
) -> Example:
    """Add unit noise, scaled to an SNR, to a channel.

    Args:
        scene: the truth, carried along.
        channel: [* bs ant sc].
        noise: [* bs ant sc] CN(0, 1).
        snr_db: [*] or a number, of the nominal noise, which is the one that the observation tells [dB].
        noise_factor: [bs] true noise variance over the nominal one; one when None.
    """
    nominal = noise_variance(channel, snr_db)
    true = nominal if noise_factor is None else nominal * noise_factor.to(nominal)
    return Example(Observation(channel + true.sqrt()[..., None, None] * noise, nominal), scene, channel, true)
