"""The coarse stage: paths of every station, their association across stations, and a first position of the user."""

from sensing.coarse.detection import PathDetector
from sensing.coarse.localization import CoarseLocalizer
from sensing.coarse.music import MusicDetector
from sensing.coarse.noise import estimate_noise_variance

__all__ = ["CoarseLocalizer", "MusicDetector", "PathDetector", "estimate_noise_variance"]
