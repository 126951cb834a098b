"""Path covariances with the model's own error against sums in a tangent basis."""

import pytest
import torch

from sensing.coarse.inflation import inflated
from sensing.geometry import tangent_basis
from tests.reference.oracle import detect


@pytest.fixture(scope="module")
def paths(hall):
    return detect(hall.simulator.examples("test", range(2), 15.0), hall.deployment).paths


@pytest.mark.parametrize(("range_m", "direction"), [(0.1, 0.01), (0.0, 0.02), (0.3, 0.0)])
def test_errors_add_in_a_tangent_basis(paths, range_m, direction):
    found = inflated(paths, range_m, direction)
    for at in paths.mask.nonzero().tolist():
        b, q, p = at
        lift = torch.zeros(4, 3, dtype=torch.float64)
        lift[0, 0], lift[1:, 1:] = 1.0, tangent_basis(paths.direction[b, q, p])
        added = torch.diag(torch.tensor([range_m**2, direction**2, direction**2], dtype=torch.float64))
        expected = lift.mT @ paths.covariance[b, q, p] @ lift + added
        torch.testing.assert_close(lift.mT @ found.covariance[b, q, p] @ lift, expected, rtol=1e-9, atol=1e-15)
        inverse = torch.linalg.inv(expected)
        size = float(inverse.abs().max())
        torch.testing.assert_close(lift.mT @ found.information[b, q, p] @ lift, inverse, rtol=1e-6, atol=1e-9 * size)
        # nothing along the direction itself
        along = torch.cat([torch.zeros(1).double(), paths.direction[b, q, p]])
        assert (found.covariance[b, q, p] @ along).abs().max() < 1e-12
        assert (found.information[b, q, p] @ along).abs().max() < 1e-9 * size


def test_only_the_uncertainty_of_present_paths_changes(paths):
    found = inflated(paths, 0.1, 0.01)
    for name in ("range_m", "direction", "gain", "mask"):
        assert torch.equal(getattr(found, name), getattr(paths, name))
    absent = ~paths.mask
    assert absent.any()
    assert (found.covariance[absent] == 0).all()
    assert (found.information[absent] == 0).all()


def test_no_error_changes_nothing(paths):
    for name, before, after in zip(paths._fields, paths, inflated(paths, 0.0, 0.0), strict=True):
        assert torch.equal(before, after), name
