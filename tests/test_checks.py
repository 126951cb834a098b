"""Every message names the field, what was expected and what came."""

import math

import pytest
import torch

from sensing.checks import check_finite, check_increasing, check_positive, check_rotation, check_shape
from sensing.errors import DomainError, SensingError, ShapeError
from sensing.units import from_db, to_db


def test_check_shape_returns_sizes():
    assert check_shape("y", torch.zeros(2, 3, 4, 5), "* bs ant sc", sc=5) == {"bs": 3, "ant": 4, "sc": 5}
    assert check_shape("y", torch.zeros(4, 5), "ant sc") == {"ant": 4, "sc": 5}
    check_shape("gram", torch.zeros(2, 2), "n n")


@pytest.mark.parametrize(
    ("shape", "spec", "sizes", "parts"),
    [
        ((2, 48), "* bs sc", {"sc": 64}, ["mask", "[* bs sc]", "sc=64", "[2, 48]"]),
        ((2,), "* bs sc", {}, ["mask", "[* bs sc]", "[2]"]),
        ((2, 3, 4), "bs sc", {}, ["[bs sc]", "[2, 3, 4]"]),
        ((2, 3), "n n", {}, ["[n n]", "[2, 3]"]),
        ((5, 3, 4), "* 3 3", {}, ["[* 3 3]", "[5, 3, 4]"]),
    ],
)
def test_shape_errors(shape, spec, sizes, parts):
    with pytest.raises(ShapeError) as error:
        check_shape("mask", torch.zeros(shape), spec, **sizes)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_finite():
    check_finite("y", torch.tensor([1.0 + 2j]))
    bad = torch.zeros(2, 3)
    bad[1, 2] = math.nan
    with pytest.raises(DomainError, match=r"y must be finite, got 1 non-finite values, the first at index \[1, 2\]"):
        check_finite("y", bad)
    with pytest.raises(DomainError, match=r"index \[1, 2\]"):
        check_finite("y", torch.complex(torch.zeros(2, 3), bad))


@pytest.mark.parametrize("value", [0.0, -2.0])
def test_positive(value):
    check_positive("noise_var", torch.tensor([1e-30, 5.0]))
    with pytest.raises(DomainError, match=f"noise_var must be positive, got {value:g}"):
        check_positive("noise_var", torch.tensor([1.0, value]))
    with pytest.raises(DomainError, match="noise_var must be finite"):
        check_positive("noise_var", torch.tensor([math.inf, 1.0]))


def test_increasing():
    check_increasing("pilot_freq", torch.tensor([-1.0, 0.0, 2.0]))
    for values, at in (([0.0, 1.0, 1.0], 2), ([2.0, 1.0, 3.0], 1)):
        with pytest.raises(DomainError, match=f"pilot_freq must be strictly increasing.*at index {at}"):
            check_increasing("pilot_freq", torch.tensor(values))


def test_rotation():
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    check_rotation("bs_rotation", torch.stack([torch.eye(3), quarter]))
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    with pytest.raises(DomainError, match=r"bs_rotation must hold rotations.*det = -1\.000 for station 1"):
        check_rotation("bs_rotation", torch.stack([torch.eye(3), mirror]))
    with pytest.raises(DomainError, match=r"bs_rotation.*\|R\^T R - I\| = 3.*station 1"):
        check_rotation("bs_rotation", torch.stack([torch.eye(3), 2 * torch.eye(3)]))
    with pytest.raises(ShapeError, match="bs_rotation"):
        check_rotation("bs_rotation", torch.eye(2))
    with pytest.raises(DomainError, match="finite"):
        check_rotation("bs_rotation", math.nan * torch.eye(3))


def test_errors_are_builtin_errors_too():
    assert issubclass(ShapeError, SensingError)
    assert issubclass(ShapeError, ValueError)


def test_decibels():
    assert float(from_db(20.0)) == pytest.approx(100.0)
    assert torch.allclose(to_db(from_db(torch.tensor([-7.0, 3.0]))), torch.tensor([-7.0, 3.0]).double())
