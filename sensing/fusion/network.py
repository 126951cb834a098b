"""The network behind all learned fusion weights, and its convention: neutral at zero.

Its last layer starts at zero, so that an untrained network corrects nothing, exactly: factors are one, shifts zero.
"""

import torch
from torch import Tensor, nn


class NeutralNetwork(nn.Module):
    """Two layers, applied to the last axis, whose output is exactly zero until trained.

    Args:
        features: number of inputs.
        hidden: width.
        outputs: number of outputs.
    """

    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, hidden, dtype=torch.float64)
        self.outer = nn.Linear(hidden, outputs, dtype=torch.float64)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def raw(self, features: Tensor) -> Tensor:
        """Features [* features] to [* outputs]."""
        return self.outer(self.inner(features).tanh_())


def bounded_factor(raw: Tensor, limit: float) -> Tensor:
    """A factor in [exp(-limit), exp(limit)], one at zero and `exp(raw)` near it."""
    return torch.exp(limit * torch.tanh(raw / limit))
