"""Slow, obvious versions of the equations, written apart from the package."""
