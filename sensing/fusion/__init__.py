"""Weights with which paths and stations enter a joint estimate."""

from sensing.fusion.weights import FusionWeights

__all__ = ["FusionWeights"]
