"""Observation files in, estimates files out, and data sets for training."""

from sensing.data.estimates_file import write_estimates
from sensing.data.reader import read_observations
from sensing.data.schema import ObservationSet
from sensing.data.writer import export_scenes, write_observations

__all__ = ["ObservationSet", "export_scenes", "read_observations", "write_estimates", "write_observations"]
