"""How much of the layers training remembers.

- `full`: everything; memory grows with the number of layers.
- `checkpoint`: the state between layers; every layer is computed again in the backward pass. Same gradients.
- `truncated`: gradients pass through `window` layers at most and are cut at their borders; with one layer each learns
  to improve its own proposal. Biased, and calm: gradients through many Gauss-Newton steps can explode.
- `implicit`: nothing but the last layer, taken for a fixed point z = f(z, theta) of tied iterations: the gradient is
  `dL/dz (I - df/dz)^-1 df/dtheta`, its inverse by a Neumann series of as many vector products as there are layers.
  Exact at the fixed point, whatever the path there; losses of earlier layers have no gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sensing.containers import map_tensors
from sensing.errors import ConfigError
from sensing.inference.state import State

MODES = ("full", "checkpoint", "truncated", "implicit")
Step = Callable[[State, int], State]


class Memory:
    """Runs layers under one of the modes; all are alike where no gradient is recorded.

    Args:
        mode: see above.
        window: layers between cuts of the mode `truncated`.
        tied: whether all iterations are alike, which the mode `implicit` needs.

    Raises:
        ConfigError: no such mode, no layer in the window, or implicit gradients of iterations that differ.
    """

    def __init__(self, mode: str = "full", window: int = 2, tied: bool = True) -> None:
        if mode not in MODES:
            raise ConfigError(f"memory must be one of {', '.join(MODES)}, got {mode!r}")
        if not isinstance(window, int) or window < 1:
            raise ConfigError(f"window must be a whole number >= 1, got {window}")
        if mode == "implicit" and not tied:
            raise ConfigError("memory=implicit must have iterations that are alike (tied=true), got tied=false")
        self.mode, self.window = mode, window

    def __call__(self, iterate: Step, state: State, step: int, last: int) -> State:
        """One layer."""
        if self.mode == "full" or not torch.is_grad_enabled():
            return iterate(state, step)
        if self.mode == "checkpoint":
            after: State = checkpoint(iterate, state, step, use_reentrant=False)
            return after
        if self.mode == "truncated":
            return iterate(_cut(state) if step % self.window == 0 else state, step)
        if step < last:
            with torch.no_grad():
                return iterate(state, step)
        return _fixed_point(lambda z: iterate(z, step), _cut(state), rounds=last + 1)


def _cut(state: State) -> State:
    return map_tensors(state, lambda tensor: tensor.detach())


def _moving(state: State) -> list[Tensor]:
    """What an iteration changes: positions, offsets, paths, and the power of the gains."""
    geometry = state.proposal
    return [
        geometry.ue_position,
        geometry.offset_m,
        geometry.node_position,
        geometry.free_range_m,
        geometry.free_direction,
        state.power,
    ]


def _with(state: State, moving: list[Tensor]) -> State:
    ue, offset, node, free_range, free_direction, power = moving
    geometry = state.proposal._replace(
        ue_position=ue, offset_m=offset, node_position=node, free_range_m=free_range, free_direction=free_direction
    )
    return state._replace(proposal=geometry, power=power)


def _fixed_point(function: Callable[[State], State], state: State, rounds: int) -> State:
    """One more iteration, whose backward pass solves `v = g + J^T v` first."""
    after = function(state)
    inner = [tensor.detach().requires_grad_() for tensor in _moving(state)]
    again = _moving(function(_with(state, inner)))
    sizes = [tensor.numel() for tensor in inner]
    joint = torch.cat([tensor.flatten() for tensor in _moving(after)])
    if not joint.requires_grad:
        return after

    def solve(gradient: Tensor) -> Tensor:
        v = gradient
        for _ in range(rounds):
            pieces = [piece.reshape(t.shape) for piece, t in zip(v.split(sizes), again, strict=True)]
            back = torch.autograd.grad(again, inner, pieces, retain_graph=True, allow_unused=True)
            turned = [torch.zeros_like(t) if b is None else b for b, t in zip(back, inner, strict=True)]
            v = gradient + torch.cat([each.flatten() for each in turned])
        return v

    joint.register_hook(solve)
    shaped = [piece.reshape(t.shape) for piece, t in zip(joint.split(sizes), inner, strict=True)]
    return _with(after, shaped)
