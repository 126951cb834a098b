"""Learned fusion weights of paths in the user's coarse location.

The analytic weight of a path is its Fisher information. The learned correction multiplies the information of its range
and of its direction by `exp(f)`, where f is the network of `LearnedFusion` with the paths of all stations for members:
one network for all, so that it depends on neither their order nor their number, and untrained every weight is exactly
one. What differs are the features: paths are weighted before there is a location, so that no residuals exist yet.
"""

import torch
from torch import Tensor

from sensing.containers import PathEstimates
from sensing.fusion.network import MemberNetwork, bounded_factor


class FusionWeights(MemberNetwork):
    """Weights from the features of each path and of its station.

    Features, all dimensionless: log signal-to-noise ratio of the path, log of its power relative to the strongest path
    of the station, closeness to the next path of the station in units of the joint standard deviation, number of paths.

    Args:
        hidden: width of the network.
        limit: largest absolute log weight.
        messages: paths hear the paths of all stations; false: each is weighted by its own features alone.
    """

    NUM_FEATURES = 4

    def __init__(self, hidden: int = 8, limit: float = 3.0, messages: bool = False) -> None:
        super().__init__(self.NUM_FEATURES, hidden, 2, messages)
        self.limit = limit

    def features(self, paths: PathEstimates) -> Tensor:
        """[* bs path 4]; zero for absent paths."""
        mask = paths.mask
        power = paths.gain.abs().square().clamp_min(torch.finfo(torch.float64).tiny)
        strongest = torch.where(mask, power, torch.zeros_like(power)).amax(-1, keepdim=True)
        relative = torch.log(power / strongest.clamp_min(torch.finfo(torch.float64).tiny))
        # grows with |gain|^2 / noise, whatever the units of the observation; 1 m is the unit of length
        information = paths.information[..., 0, 0].clamp_min(torch.finfo(torch.float64).tiny)
        variance = paths.covariance[..., 0, 0] + paths.covariance[..., 1:, 1:].diagonal(dim1=-2, dim2=-1).sum(-1)
        gap = (paths.range_m[..., :, None] - paths.range_m[..., None, :]).square()
        other = (
            mask[..., :, None] & mask[..., None, :] & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        )
        joint = (variance[..., :, None] + variance[..., None, :]).clamp_min(torch.finfo(torch.float64).tiny)
        nearest = torch.where(other, gap / joint, torch.full_like(gap, 1e6)).amin(-1)
        count = mask.sum(-1, keepdim=True).to(power.dtype).expand_as(power)
        stacked = torch.stack([torch.log(information), relative, torch.log1p(nearest), torch.log1p(count)], -1)
        return torch.where(mask[..., None], stacked / 8.0, torch.zeros_like(stacked))

    def forward(self, paths: PathEstimates) -> Tensor:
        """Factors [* bs path 2] of the information of range and direction, in [exp(-limit), exp(limit)]."""
        mask = paths.mask
        raw = self.corrections(self.features(paths).flatten(-3, -2), paths.direction.flatten(-3, -2), mask.flatten(-2))
        return bounded_factor(raw.unflatten(-2, mask.shape[-2:]), self.limit)
