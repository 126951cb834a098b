"""Corrections that depend on the scene: a small network reads what the iterations see of it.

Features, all dimensionless and the same for any number of stations: signal-to-noise ratio, fit (power of the residual
over that of the noise, one where the model explains the observation) of all stations together and of the worst one,
number of columns per station, and the place of the layer. A scene in a wrong lobe of the delay shows by its fit.

The network's last layer starts at zero: untrained it corrects nothing. Features carry no gradient.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sensing.fusion.network import NeutralNetwork
from sensing.inference.state import Problem, State

Shift = Mapping[str, Tensor]
"""What is added to the corrections of a layer, name to [*]."""

NO_SHIFT: Shift = {}
LIMIT = 3.0
"""Largest shift: scenes unlike those of the training are not led astray without bound."""


class Conditioner(NeutralNetwork):
    """Shifts of a layer's corrections, scene by scene.

    Args:
        names: the corrections that are shifted.
        hidden: width of the network.
    """

    NUM_FEATURES = 5

    def __init__(self, names: Sequence[str], hidden: int = 8) -> None:
        super().__init__(self.NUM_FEATURES, hidden, len(names))
        self.names = tuple(names)

    def forward(self, state: State, problem: Problem, fit: Tensor, place: float) -> Shift:
        """Shifts for a layer.

        Args:
            state: what the layer starts from.
            problem: the observation.
            fit: [* bs] of the last point that was evaluated.
            place: of the layer, from 0 (first) to 1 (last).
        """
        raw = self.raw(features(state, problem, fit, place))
        return dict(zip(self.names, (LIMIT * torch.tanh(raw / LIMIT)).unbind(-1), strict=True))


def features(state: State, problem: Problem, fit: Tensor, place: float) -> Tensor:
    """[* feature], see above."""
    entries = problem.y.shape[-2] * problem.y.shape[-1]
    noise = problem.noise_var.sum(-1)
    excess = problem.energy.sum((-2, -1)) / entries - noise
    snr = torch.log10(torch.maximum(excess, noise / entries) / noise)
    geometry = state.proposal
    columns = geometry.node_mask.sum(-1) + geometry.free_mask.sum((-2, -1)) / geometry.free_mask.shape[-2]
    misfit = torch.log10(fit.detach().clamp(min=0.1))
    whole = torch.log10(((fit.detach() * problem.noise_var).sum(-1) / noise).clamp(min=0.1))
    return torch.stack(
        [0.5 * snr, whole, misfit.amax(-1), torch.log(columns.clamp(min=1.0)) / 2.0, torch.full_like(snr, place)], -1
    )
