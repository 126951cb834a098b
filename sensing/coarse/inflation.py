"""Path covariances that include the model's own error.

A channel that is no sum of a few plane waves (unresolved ground bounces, diffuse tails, rough surfaces) shifts the
detected paths by a fraction of the resolution cell, whatever the noise is. Fisher information knows nothing of it.
"""

import torch

from sensing.containers import PathEstimates


def inflated(paths: PathEstimates, range_m: float, direction: float) -> PathEstimates:
    """Paths with independent errors of the given standard deviations added to range [m] and directions [rad]."""
    if range_m == 0.0 and direction == 0.0:
        return paths
    k = paths.direction
    eye = torch.eye(3, dtype=k.dtype, device=k.device)
    along = k[..., :, None] * k[..., None, :]
    added = torch.zeros_like(paths.covariance)
    added[..., 0, 0] = range_m**2
    added[..., 1:, 1:] = direction**2 * (eye - along)
    present = paths.mask[..., None, None]
    covariance = paths.covariance + added
    # the direction's own axis has no variance; a unit there makes the inverse exist and is taken off again
    lifted = covariance.clone()
    lifted[..., 1:, 1:] = lifted[..., 1:, 1:] + along
    information = torch.linalg.inv_ex(torch.where(present, lifted, torch.eye(4, dtype=k.dtype, device=k.device)))[0]
    information[..., 1:, 1:] = information[..., 1:, 1:] - along
    return paths._replace(covariance=covariance * present, information=information * present)
