"""Training losses, normalised by what is achievable in each scene.

A plain squared error is dominated by the few scenes with a bad geometry; dividing by the bound makes all scenes count
alike, and the logarithm keeps outliers from drowning the rest:

    loss = sum_t w_t mean (sqrt(1 + |u_t - u|^2 / PEB^2) - 1) + c mean log(1 + NMSE / (4 NMSE_ref)) + s mean GOSPA

with t the iterations (deep supervision; layer by layer if `layerwise_epochs` says so), NMSE_ref = paths * noise /
power, that of known paths with unknown gains, and GOSPA the expected squared distance of the located nodes from the
scatterers that two stations or more see, over that of an empty map.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sensing.containers import Example
from sensing.errors import ConfigError, DomainError
from sensing.set_loss import expected_gospa


def location_term(ue: Tensor, true: Tensor, peb: Tensor) -> Tensor:
    """`sqrt(1 + |ue - true|^2 / peb^2) - 1` per scene; scenes whose bound is infinite carry no weight.

    Args:
        ue: [* xyz] [m].
        true: [* xyz] [m].
        peb: [*] position error bound [m].
    """
    usable = torch.isfinite(peb)
    ratio = (ue - true).square().sum(-1) / torch.where(usable, peb, torch.ones_like(peb)).square()
    return torch.where(usable, (1.0 + ratio).sqrt() - 1.0, torch.zeros_like(ratio))


def channel_term(channel: Tensor, example: Example) -> Tensor:
    """`log(1 + NMSE / (4 NMSE_ref))` per scene.

    Args:
        channel: [* bs ant sc] estimate.
        example: its truth.

    Raises:
        DomainError: the example has no true channel or scene.
    """
    if example.channel is None or example.scene is None:
        raise DomainError("example must hold the true channel and scene for a channel loss, got None")
    error = (channel - example.channel).abs().square().sum((-3, -2, -1))
    paths = example.scene.visible.sum(-1).to(error.dtype)
    reference = (paths * example.true_noise_var).sum(-1).clamp_min(torch.finfo(error.dtype).tiny)
    return torch.log1p(error / (4.0 * reference))


def scatterer_term(position: Tensor, probability: Tensor, mask: Tensor, example: Example, cutoff: float) -> Tensor:
    """Expected squared GOSPA distance of the located nodes over that of an empty map, per scene.

    Args:
        position: [* node xyz] [m].
        probability: [* node] that a node exists.
        mask: [* node] bool.
        example: its truth; scatterers that one station sees have no place in the map.
        cutoff: distance at which a scatterer counts as missed [m].

    Raises:
        DomainError: the example has no true scene.
    """
    if example.scene is None:
        raise DomainError("example must hold the true scene for a loss of scatterers, got None")
    shared = example.scene.visible.sum(-2) >= 2
    empty = 0.5 * cutoff**2 * shared.sum(-1).clamp_min(1)
    return expected_gospa(position, probability, mask, example.scene.scatterer_position, shared, cutoff) / empty


class BoundNormalisedLoss:
    """The loss above.

    Args:
        channel_weight: c, weight of the channel term.
        scatterer_weight: s, weight of the scatterers' term; 0 leaves it out.
        scatterer_cutoff_m: distance at which a scatterer counts as missed [m].
        final_weight: weight of the last iteration relative to the mean of the earlier ones.
        coarse_weight: weight of the coarse location, where the front end runs in training.
        layerwise_epochs: epochs over which the loss moves from the first layer to the last; 0: all layers at once.
    """

    def __init__(
        self,
        channel_weight: float = 0.3,
        final_weight: float = 4.0,
        coarse_weight: float = 0.5,
        layerwise_epochs: int = 0,
        scatterer_weight: float = 0.0,
        scatterer_cutoff_m: float = 2.0,
    ) -> None:
        for name, value in (
            ("channel_weight", channel_weight),
            ("final_weight", final_weight),
            ("coarse_weight", coarse_weight),
            ("layerwise_epochs", layerwise_epochs),
            ("scatterer_weight", scatterer_weight),
        ):
            if not 0 <= value < math.inf:
                raise ConfigError(f"loss.{name} must be finite and >= 0, got {value}")
        if layerwise_epochs != int(layerwise_epochs):
            raise ConfigError(f"loss.layerwise_epochs must be a whole number, got {layerwise_epochs}")
        if not scatterer_cutoff_m > 0:
            raise ConfigError(f"loss.scatterer_cutoff_m must be > 0, got {scatterer_cutoff_m}")
        self.channel_weight, self.final_weight, self.coarse_weight = channel_weight, final_weight, coarse_weight
        self.layerwise_epochs = layerwise_epochs
        self.scatterer_weight, self.scatterer_cutoff_m = scatterer_weight, scatterer_cutoff_m

    def __call__(
        self,
        iterates: list[Tensor],
        channel: Tensor,
        example: Example,
        peb: Tensor,
        coarse: Tensor | None = None,
        progress: float = 1.0,
        scatterers: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Terms of the loss; `total` is what is minimised.

        Args:
            iterates: user position after each iteration, [* xyz].
            channel: [* bs ant sc] after the last one.
            example: truth.
            peb: [*] [m].
            coarse: [* xyz] start found by the front end.
            progress: share of the layers that count, in (0, 1]; the channel counts once all do.
            scatterers: position [* node xyz], probability [* node] and mask [* node] after the last one.
        """
        assert example.scene is not None
        true = example.scene.ue_position
        iterates = iterates[: math.ceil(progress * len(iterates))]
        per_layer = torch.stack([location_term(ue, true, peb).mean() for ue in iterates])
        weight = torch.ones_like(per_layer)
        weight[-1] = self.final_weight * max(len(iterates) - 1, 1)
        terms = {
            "location": (weight * per_layer).sum() / weight.sum(),
            "channel": (self.channel_weight if progress >= 1.0 else 0.0) * channel_term(channel, example).mean(),
        }
        if scatterers is not None and self.scatterer_weight:
            terms["scatterers"] = (
                self.scatterer_weight * scatterer_term(*scatterers, example, self.scatterer_cutoff_m).mean()
            )
        if coarse is not None:
            terms["coarse"] = self.coarse_weight * location_term(coarse, true, peb).mean()
        return terms | {"total": torch.stack(list(terms.values())).sum()}


class FusionLoss:
    """Error of a fused position and misfit of the covariance that comes with it.

        sum_t w_t ((1 + |p_t - p|^2 / c^2)^(q/2) - 1 + a (e_t^T J_t e_t - ln det J_t) / 2)

    with J_t the information of the weighted pool; the second part makes weights mean what they say, so that what a
    layer knows of its cavity is right.

    Args:
        scale_m: c, below which errors count as squares [m].
        power: q, of errors beyond; 2: squares throughout.
        calibration: a.
        early: weight of each position but the last.
    """

    def __init__(self, scale_m: float = 1.0, power: float = 1.0, calibration: float = 0.1, early: float = 0.3) -> None:
        for name, value in (("scale_m", scale_m), ("power", power)):
            if not value > 0:
                raise ConfigError(f"loss.{name} must be > 0, got {value}")
        for name, value in (("calibration", calibration), ("early", early)):
            if not value >= 0:
                raise ConfigError(f"loss.{name} must be >= 0, got {value}")
        self.scale_m, self.power, self.calibration, self.early = scale_m, power, calibration, early

    def __call__(
        self, positions: Sequence[Tensor], informations: Sequence[Tensor], true: Tensor, unknown: list[int]
    ) -> Tensor:
        """Loss of each drop, [*].

        Args:
            positions: of each layer, [* xyz] [m].
            informations: of each layer, [* n n] over the unknown coordinates [1/m^2].
            true: [* xyz] [m].
            unknown: the n unknown coordinates.
        """
        total = torch.zeros_like(true[..., 0])
        for number, (position, information) in enumerate(zip(positions, informations, strict=True)):
            error = (position - true)[..., unknown]
            squared = error.square().sum(-1) / self.scale_m**2
            inside = (error[..., None, :] @ information @ error[..., :, None])[..., 0, 0]
            surprise = 0.5 * (inside - torch.logdet(information))
            term = (1.0 + squared).pow(0.5 * self.power) - 1.0 + self.calibration * surprise
            total = total + (1.0 if number == len(positions) - 1 else self.early) * term
        return total


class GenieRatioLoss:
    """Error of sparse gains over that of the genie, `sum_t w_t (nmse_t / floor)^(q / 2)`.

    Args:
        power: q; 2 is the mean error, less counts far outliers less.
        early: weight of each layer but the last.
    """

    def __init__(self, power: float = 1.0, early: float = 0.02) -> None:
        if not power > 0 or not early >= 0:
            raise ConfigError(f"loss needs power > 0 and early >= 0, got {power}, {early}")
        self.power, self.early = power, early

    def __call__(self, nmse: Sequence[Tensor], floor: Tensor) -> Tensor:
        """Loss of each problem, [*].

        Args:
            nmse: of each layer, [*], in linear scale.
            floor: [*] of the genie.
        """
        terms = [(each / floor).pow(0.5 * self.power) for each in nmse]
        return terms[-1] + self.early * torch.stack(terms[:-1]).sum(0) if len(terms) > 1 else terms[-1]
