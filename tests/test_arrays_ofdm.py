"""Array and delay responses against loops, and their conventions."""

import cmath
import math

import pytest
import torch

from sensing import arrays, ofdm
from sensing.errors import ConfigError, DomainError, ShapeError
from tests.reference import slow


def test_upa_positions():
    array = arrays.upa(3, 2, 0.5)
    assert array.shape == (6, 3)
    assert array.dtype == torch.float64
    assert (array[:, 0] == 0).all()
    assert array.mean(0).abs().max() < 1e-15
    for iy in range(3):
        for iz in range(2):
            assert array[iy * 2 + iz].tolist() == [0.0, (iy - 1) * 0.5, (iz - 0.5) * 0.5]
    assert torch.equal(arrays.ula(5), arrays.upa(5, 1))


def test_upa_response_is_a_kronecker_product():
    direction = torch.tensor([[[0.6, 0.48, 0.64]]], dtype=torch.float64)
    got = arrays.response(direction, arrays.upa(4, 3)[None], torch.tensor(1.0, dtype=torch.float64))[0, :, 0]
    a_y = [cmath.exp(1j * math.pi * (i - 1.5) * 0.48) for i in range(4)]
    a_z = [cmath.exp(1j * math.pi * (i - 1.0) * 0.64) for i in range(3)]
    wanted = torch.tensor([y * z for y in a_y for z in a_z], dtype=torch.complex128)
    assert (got - wanted).abs().max() < 1e-14


def test_response_equals_a_loop(tiny):
    deployment = tiny.deployment
    direction = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = direction / direction.norm(dim=-1, keepdim=True)
    got = arrays.response(direction, deployment.antenna_global, deployment.wavelength)
    for q in range(3):
        for n in range(4):
            wanted = slow.array_response(
                direction[q, n].tolist(),
                deployment.antenna_local.tolist(),
                deployment.bs_rotation[q].tolist(),
                slow.C / float(deployment.carrier_hz),
            )
            assert (got[q, :, n] - torch.tensor(wanted, dtype=torch.complex128)).abs().max() < 1e-12


def test_pilot_grid():
    freq = ofdm.pilot_frequencies(1024, 120e3, 16)
    assert len(freq) == 64
    assert float(freq.diff().unique()) == 16 * 120e3
    assert abs(float(freq.mean())) < 1e-6
    assert len(ofdm.pilot_frequencies(10, 1.0, 3)) == 4, "subcarriers 0, 3, 6, 9"


def test_delay_response_equals_a_loop():
    freq, length = ofdm.pilot_frequencies(8, 1e6, 1), torch.tensor([0.0, 12.5, -3.0, 400.0], dtype=torch.float64)
    got = ofdm.response(length, freq)
    for k in range(8):
        for n in range(4):
            wanted = cmath.exp(-2j * math.pi * float(freq[k]) * float(length[n]) / slow.C)
            assert abs(complex(got[k, n]) - wanted) < 1e-12


def test_delay_response_is_periodic_in_the_range_ambiguity(hall):
    freq, period = hall.deployment.pilot_freq, hall.deployment.range_ambiguity
    length = torch.tensor([17.0], dtype=torch.float64)
    ratio = ofdm.response(length + period, freq) / ofdm.response(length, freq)
    assert (ratio - ratio[0]).abs().max() < 1e-9, "equal up to a common phase, which the gain absorbs"


@pytest.mark.parametrize("bad", [(0, 4), (4, 0)])
def test_bad_arrays(bad):
    with pytest.raises(ConfigError, match="num_y"):
        arrays.upa(*bad)
    with pytest.raises(ConfigError, match="spacing"):
        arrays.ula(4, 0.0)
    with pytest.raises(ShapeError, match="array positions"):
        arrays.elements([[0.0, 1.0]])
    with pytest.raises(DomainError, match="array positions"):
        arrays.elements([[0.0, 1.0, float("nan")]])


@pytest.mark.parametrize("bad", [(0, 1.0, 1), (8, 0.0, 1), (8, 1.0, 0), (8, 1.0, 9)])
def test_bad_pilots(bad):
    with pytest.raises(ConfigError, match="pilot_step"):
        ofdm.pilot_frequencies(*bad)
