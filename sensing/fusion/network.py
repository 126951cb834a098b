"""The network behind all learned fusion weights, of stations and of paths, and its conventions.

A member's log weights come from its own features and from messages of the other members, pooled by mean and maximum, so
that neither order nor number matters. Neutral at zero: the last layer starts at zero, so that an untrained network
corrects nothing, exactly: factors are one, shifts zero.
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


class MemberNetwork(NeutralNetwork):
    """Corrections of the members of a pool.

    Args:
        features: of a member.
        hidden: width of messages and network.
        outputs: number of outputs of a member.
        messages: members hear each other; false: each is corrected by its own features alone.
    """

    def __init__(self, features: int, hidden: int, outputs: int, messages: bool = True) -> None:
        super().__init__(features + 2 * hidden * messages, hidden, outputs)
        self.messages = messages
        if messages:
            self.sender = nn.Linear(features, hidden, dtype=torch.float64)
            self.receiver = nn.Linear(features, hidden, bias=False, dtype=torch.float64)
            self.angle = nn.Linear(1, hidden, bias=False, dtype=torch.float64)

    def corrections(self, features: Tensor, unit: Tensor, exists: Tensor) -> Tensor:
        """Raw corrections.

        Args:
            features: [* member features].
            unit: [* member xyz] direction that goes with a member; messages know the angle between two.
            exists: [* member] bool.

        Returns:
            [* member outputs].
        """
        inputs = torch.cat([features, *self.heard(features, unit, exists)], -1) if self.messages else features
        return self.raw(inputs)

    def heard(self, features: Tensor, unit: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and maximum of the other members' messages, [* member hidden] each."""
        count, hidden = exists.shape[-1], self.sender.out_features
        if count == 1:
            silence = features.new_zeros(*features.shape[:-1], hidden)
            return silence, silence - 1.0
        index = torch.arange(count, device=exists.device)
        others = (index[:, None] + index[1:]) % count  # [to from]: all but itself
        cosine = (unit[..., :, None, :] * unit[..., others, :]).sum(-1, keepdim=True)
        # in place: the largest tensors, for which memory would be had anew
        message = self.sender(features)[..., others, :].add_(self.receiver(features)[..., :, None, :])
        message = message.addcmul_(cosine, self.angle.weight[:, 0]).tanh_()  # [* to from hidden]
        there, loudest = exists[..., others, None], message
        if not bool(there.all()):
            message = torch.where(there, message, 0.0)
            loudest = torch.where(there, loudest, -1.0)  # the least that a message can be
        return message.sum(-2) / there.sum(-2).clamp_min(1), loudest.amax(-2)


def bounded_factor(raw: Tensor, limit: float) -> Tensor:
    """A factor in [exp(-limit), exp(limit)], one at zero and `exp(raw)` near it."""
    return torch.exp(limit * torch.tanh(raw / limit))
