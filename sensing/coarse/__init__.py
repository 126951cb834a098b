"""The coarse stage: paths of every station, their association across stations, and a first position of the user."""

from sensing.coarse.detection import PathDetector

__all__ = ["PathDetector"]
