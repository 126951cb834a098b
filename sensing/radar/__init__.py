"""Sensing by echoes: stations that illuminate a target and estimate its delay, Doppler and direction (paper 2)."""

from sensing.radar.echo import EchoParameters, Target, echo_parameters, echo_response
from sensing.radar.network import RadarNetwork, build_network
from sensing.radar.power import echo_snr

__all__ = [
    "EchoParameters",
    "RadarNetwork",
    "Target",
    "build_network",
    "echo_parameters",
    "echo_response",
    "echo_snr",
]
