"""LMMSE with one covariance for many observations against Sionna."""

from collections.abc import Iterator

from benchmarks.frame import Case

INSTALL = "pip install --no-deps sionna importlib-resources"


def cases(tiny: bool) -> Iterator[Case]:
    """Filled in with the baseline of the same name."""
    yield from ()
