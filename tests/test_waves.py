"""Phasors of plane waves against the plain formula, on lattices and off them."""

import numpy as np
import pytest
import torch

from sensing import arrays, ofdm
from sensing.waves import _lattice, plane_waves


def plain(point, wave):
    return np.exp(1j * np.einsum("...pd,...ld->...pl", point.numpy(), wave.numpy()))


def waves(*shape):
    return 6.0 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


RASTER = ofdm.pilot_frequencies(256, 120e3, 1)[:, None] / 3e6
ROTATION = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).Q
PANEL = torch.einsum("bij,aj->bai", ROTATION, arrays.upa(16, 12))
IRREGULAR = PANEL + 1e-9 * torch.arange(192, dtype=torch.float64)[:, None].square()


@pytest.mark.parametrize(
    ("point", "lattice"),
    [(RASTER, True), (PANEL, True), (IRREGULAR, False), (arrays.upa(3, 4), False), (RASTER[:251], False)],
    ids=["raster", "panel", "irregular", "few", "prime"],
)
def test_equals_the_plain_formula(point, lattice):
    assert (_lattice(point) is not None) == lattice
    wave = waves(5, 2, 7, point.shape[-1])
    np.testing.assert_allclose(plane_waves(point, wave).numpy(), plain(point, wave), rtol=0, atol=1e-13)


def test_gap_in_the_raster_is_no_lattice():
    assert _lattice(torch.cat([RASTER[:100], RASTER[101:229]])) is None


def test_gradient():
    wave = waves(2, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: torch.view_as_real(plane_waves(RASTER, w)), (wave,))


def test_no_path():
    assert plane_waves(RASTER, waves(2, 0, 1)).shape == (2, 256, 0)
