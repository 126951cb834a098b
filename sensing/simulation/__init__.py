"""Synthetic scenes and their observations."""

from sensing.simulation.deployments import build_deployment
from sensing.simulation.impairments import Impairments
from sensing.simulation.sampler import SceneSampler
from sensing.simulation.uplink import Simulator

__all__ = ["Impairments", "SceneSampler", "Simulator", "build_deployment"]
