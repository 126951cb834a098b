"""What a benchmark row is, and how it is timed.

A row is a module of this folder with `INSTALL`, the command that brings its peer (None where there is none), and
`cases(tiny)`, its cases: one comparison each, small ones for the tests when `tiny`. A module imports its peer inside
`cases` only, behind `installed`, and leaves `peer` at None where it is absent.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor

MIN_SECONDS = 0.02  # calls are repeated until one timing takes so long


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value; infinite where shapes differ or NaN is met."""
    a, b = torch.as_tensor(ours), torch.as_tensor(theirs)
    if a.shape != b.shape:
        return math.inf
    error = float((a - b).abs().max() / b.abs().max())
    return error if math.isfinite(error) else math.inf


class Case(NamedTuple):
    """One comparison: two callables that do the same work, and how equal their results must be."""

    what: str  # what is computed, in which precision
    size: str  # problem size
    ours: Callable[[], Any]
    peer: Callable[[], Any] | None = None  # None: absent, or there is none
    peer_name: str = ""  # peer and version
    tolerance: float = 1e-9  # of the error
    error: Callable[[Any, Any], float] = relative_error  # of (ours, peer); without a peer of (ours, ours once more)
    per: tuple[float, str] = (1.0, "call")  # times are divided by the number, and named so
    target: float | None = None  # least ratio that is asked for
    note: str = ""


class Timing(NamedTuple):
    """A case, measured."""

    case: Case
    ours: float  # median over the repeats [s], per `case.per`
    peer: float  # NaN where there is no peer
    ratio: tuple[float, float, float]  # of the peer's time over ours: first decile, median, last decile
    error: float

    @property
    def failed(self) -> bool:
        """Whether the results differ by more than the tolerance."""
        return not self.error <= self.case.tolerance


def installed(*distributions: str) -> str:
    """Names and versions of distributions, "" if one of them is absent."""
    try:
        return ", ".join(f"{name} {metadata.version(name)}" for name in distributions)
    except metadata.PackageNotFoundError:
        return ""


def check(case: Case) -> float:
    """Error between ours and the peer's result; without a peer, between two runs of ours."""
    ours = case.ours()
    return case.error(ours, case.ours() if case.peer is None else case.peer())


def measure(case: Case, repeats: int) -> Timing:
    """Check equality, then time both in turns, so that the machine's noise hits both alike."""
    error = check(case)
    functions = [case.ours] if case.peer is None else [case.ours, case.peer]
    counts = [max(1, math.ceil(MIN_SECONDS / max(_seconds(f, 1), 1e-9))) for f in functions]
    times: list[list[float]] = [[] for _ in functions]
    gc.disable()
    for _ in range(repeats):
        for function, count, seconds in zip(functions, counts, times, strict=True):
            seconds.append(_seconds(function, count) / case.per[0])
    gc.enable()
    median = statistics.median(times[0])
    if case.peer is None:
        return Timing(case, median, math.nan, (math.nan, math.nan, math.nan), error)
    ratios = Tensor([theirs / mine for mine, theirs in zip(*times, strict=True)]).quantile(Tensor([0.1, 0.5, 0.9]))
    low, middle, high = ratios.tolist()
    return Timing(case, median, statistics.median(times[1]), (low, middle, high), error)


def _seconds(function: Callable[[], Any], count: int) -> float:
    """CPU seconds per call: on one thread that is the wall clock of an idle core, whatever else the machine does."""
    begin = time.process_time()
    for _ in range(count):
        function()
    return (time.process_time() - begin) / count
