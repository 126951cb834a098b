"""Lower bounds on the errors of unbiased estimators."""

from sensing.bounds.asynchronous import UplinkBound, uplink_bound, uplink_information
from sensing.bounds.cooperative import PointBound, Reason, TargetBound, point_bound, target_bound, target_information

__all__ = [
    "PointBound",
    "Reason",
    "TargetBound",
    "UplinkBound",
    "point_bound",
    "target_bound",
    "target_information",
    "uplink_bound",
    "uplink_information",
]
