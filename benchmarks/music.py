"""MUSIC spectrum against pyroomacoustics."""

from collections.abc import Iterator

from benchmarks.frame import Case

INSTALL = "pip install pyroomacoustics"


def cases(tiny: bool) -> Iterator[Case]:
    """Filled in with `sensing.coarse.spectrum`."""
    yield from ()
