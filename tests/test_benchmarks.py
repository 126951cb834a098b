"""Every row of the benchmarks computes the same as its peer, on a problem small enough for a test."""

from importlib import import_module

import pytest

from benchmarks.frame import Case, check, measure, relative_error
from benchmarks.run import ROWS, cells


@pytest.mark.parametrize("row", ROWS)
def test_row_equals_its_peer(row):
    module = import_module(f"benchmarks.{row}")
    cases = list(module.cases(tiny=True))
    absent = module.INSTALL is not None and all(case.peer is None for case in cases)
    if not cases or absent:
        pytest.skip(f"the peer of {row} is absent: {module.INSTALL}")
    for case in cases:
        assert check(case) <= case.tolerance, case.what


def test_relative_error_sees_wrong_values_shapes_and_nan():
    assert relative_error([1.0, 2.0], [1.0, 2.5]) == pytest.approx(0.2)
    assert relative_error([1.0, 2.0], [[1.0, 2.0]]) == float("inf")
    assert relative_error([1.0, float("nan")], [1.0, 2.0]) == float("inf")


def test_a_result_that_differs_fails_its_row():
    wrong = Case("sum", "2", ours=lambda: [1.0], peer=lambda: [1.1], peer_name="peer 1", tolerance=1e-3, target=2.0)
    timing = measure(wrong, repeats=2)
    assert timing.failed
    line = cells("row", timing, "pip install peer")
    assert "FAILED" in line["error"]
    assert line["peer"] == "peer 1"
    assert line["target"] == ">= 2"


def test_an_absent_peer_is_named_with_its_command():
    timing = measure(Case("sum", "2", ours=lambda: [1.0]), repeats=2)
    assert not timing.failed
    assert cells("row", timing, "pip install peer")["peer"] == "absent: pip install peer"
    assert cells("row", timing, None)["peer"] == ""
    assert cells("row", timing, None)["ratio (10-90 %)"] == ""
