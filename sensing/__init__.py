"""Cooperative localization and channel estimation with asynchronous base stations."""

__version__ = "0.1.0"
