"""Classical estimation of a target from its echoes: range, Doppler and direction in every link, then the position."""

from sensing.targets.echoes import EchoEstimates, EchoEstimator
from sensing.targets.localization import TargetEstimate, locate_target

__all__ = ["EchoEstimates", "EchoEstimator", "TargetEstimate", "locate_target"]
