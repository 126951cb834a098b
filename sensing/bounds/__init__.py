"""Lower bounds on the errors of unbiased estimators."""

from sensing.bounds.asynchronous import UplinkBound, uplink_bound, uplink_information

__all__ = ["UplinkBound", "uplink_bound", "uplink_information"]
