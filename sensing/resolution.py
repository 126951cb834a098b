"""How finely a deployment resolves ranges and directions: the natural lengths of every estimator."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Deployment
from sensing.units import SPEED_OF_LIGHT


class Scales(NamedTuple):
    """Natural lengths of the problem."""

    metre: Tensor  # [] c / bandwidth [m]
    radian: Tensor  # [] wavelength over the longest extent of the array, at most 1 [rad]


def natural_scales(deployment: Deployment) -> Scales:
    """Resolution in range and direction."""
    extent = (deployment.antenna_local.amax(0) - deployment.antenna_local.amin(0)).amax()
    beam = torch.where(
        extent > 0, deployment.wavelength / extent.clamp(min=1e-3 * deployment.wavelength), extent.new_ones(())
    )
    # a single pilot has no bandwidth: its ambiguity-free range does not exist either
    metre = SPEED_OF_LIGHT / deployment.bandwidth if len(deployment.pilot_freq) > 1 else extent.new_ones(())
    return Scales(metre, beam.clamp(max=1.0))
