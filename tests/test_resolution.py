"""Natural scales against their definitions."""

import pytest
import torch

from sensing.resolution import natural_scales
from tests.conftest import BANDWIDTH
from tests.reference.oracle import C


def test_square_array_of_half_wavelengths(hall):
    """64 of 1024 subcarriers, every 16th: the whole band. Eight antennas, half a wavelength apart, span 3.5 of them."""
    scales = natural_scales(hall.deployment)
    assert float(scales.metre) == pytest.approx(C / BANDWIDTH, rel=1e-9)
    assert float(scales.metre) == pytest.approx(2.4398, abs=1e-4)
    assert float(scales.radian) == pytest.approx(1 / 3.5, rel=1e-9)


def test_the_longest_extent_counts_and_one_radian_is_the_most(hall):
    wide = hall.deployment._replace(antenna_local=hall.deployment.antenna_local * torch.tensor([1.0, 4.0, 1.0]))
    assert float(natural_scales(wide).radian) == pytest.approx(1 / 14, rel=1e-9)
    for antennas in (1, 2):  # no extent; half a wavelength
        few = hall.deployment._replace(antenna_local=hall.deployment.antenna_local[:antennas])
        assert float(natural_scales(few).radian) == 1.0


def test_a_single_pilot_resolves_no_range(hall):
    one = hall.deployment._replace(pilot_freq=hall.deployment.pilot_freq[:1])
    assert all(bool(torch.isfinite(scale)) for scale in natural_scales(one))
