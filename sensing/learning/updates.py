"""Updates in closed form as steps of a training, so that the Trainer counts them and saves what they change."""

from collections.abc import Callable

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn


def unit_steps(learned: nn.Module) -> torch.optim.Optimizer:
    """Gradient steps of length one over the parameters of `learned`: p - grad."""
    return torch.optim.SGD(learned.parameters(), lr=1.0)


def take_update(learner: lightning.LightningModule, learned: nn.Module, update: Callable[[], None]) -> None:
    """Take an update of the parameters, written as its gradient `old - new`.

    Call it inside a training step: the Trainer counts no optimizer steps elsewhere.

    Args:
        learner: whose optimizer is that of `unit_steps`.
        learned: what is updated.
        update: writes the new values into the parameters of `learned`.
    """
    parameters = list(learned.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    update()
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.grad = old - parameter.detach()
            parameter.copy_(old)
    optimizer = learner.optimizers()
    assert isinstance(optimizer, LightningOptimizer)
    optimizer.step()
    optimizer.zero_grad()
