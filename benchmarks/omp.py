"""Orthogonal matching pursuit against pylops and scikit-learn."""

from collections.abc import Iterator

from benchmarks.frame import Case

INSTALL = "pip install pylops scikit-learn"


def cases(tiny: bool) -> Iterator[Case]:
    """Filled in with the baseline of the same name."""
    yield from ()
