"""Structured operators against dense matrices, finite differences and a dense projection."""

import pytest
import torch

from sensing.channel import scene_paths
from sensing.geometry import tangent_basis
from sensing.operators.khatri_rao import extended_operator, path_information, path_operator


@pytest.fixture(scope="module")
def case(tiny):
    """Ranges, directions, mask, gains and an observation of two scenes."""
    example = tiny.simulator.examples("train", range(2))
    paths = scene_paths(example.scene, tiny.deployment)
    range_m = paths.delay * 299_792_458.0
    return tiny.deployment, range_m, paths.direction, paths.mask, paths.gain * paths.mask, example.observation


def dense(operator):
    """[* bs ant*sc path] by an explicit product of each column."""
    phi = operator.steering[..., :, None, :] * operator.delay[..., None, :, :]
    return phi.flatten(-3, -2)


def dense_extended(operator):
    """[* bs ant*sc path 4]: column, derivatives with respect to range, t1, t2."""
    s, d = operator.steering, operator.delay
    pairs = [(s[..., 0], d[..., 0]), (s[..., 0], d[..., 1]), (s[..., 1], d[..., 0]), (s[..., 2], d[..., 0])]
    return torch.stack([(a[..., :, None, :] * b[..., None, :, :]).flatten(-3, -2) for a, b in pairs], -1)


def test_products_equal_the_dense_matrix(case):
    deployment, range_m, direction, mask, gain, observation = case
    operator = path_operator(range_m, direction, deployment, mask)
    phi, y = dense(operator), observation.y.flatten(-2)
    assert torch.allclose(operator.matvec(gain).flatten(-2), (phi @ gain[..., None])[..., 0])
    assert torch.allclose(operator.rmatvec(observation.y), (phi.mH @ y[..., None])[..., 0])
    assert torch.allclose(operator.gram(), phi.mH @ phi)


def test_rmatvec_is_the_adjoint(case):
    deployment, range_m, direction, mask, gain, observation = case
    operator = path_operator(range_m, direction, deployment, mask)
    left = (observation.y.conj() * operator.matvec(gain)).sum((-2, -1))
    right = (operator.rmatvec(observation.y).conj() * gain).sum(-1)
    assert torch.allclose(left, right)


def test_masked_columns_are_zero_and_columns_have_norm_ant_sc(case):
    deployment, range_m, direction, mask, *_ = case
    norm = path_operator(range_m, direction, deployment, mask).gram().diagonal(dim1=-2, dim2=-1).real
    assert torch.allclose(norm, 120.0 * mask.double())


def test_extended_products_equal_the_dense_matrix(case):
    deployment, range_m, direction, mask, _, observation = case
    operator = extended_operator(range_m, direction, deployment, mask)
    phi = dense_extended(operator)
    flat = phi.flatten(-2)
    assert torch.allclose(operator.gram().flatten(-2).flatten(-3, -2), flat.mH @ flat)
    y = observation.y.flatten(-2)[..., None]
    assert torch.allclose(operator.rmatvec(observation.y).flatten(-2), (flat.mH @ y)[..., 0])
    plain = path_operator(range_m, direction, deployment, mask)
    assert torch.equal(operator.plain.steering, plain.steering)
    assert torch.equal(operator.plain.delay, plain.delay)


def test_derivatives_equal_finite_differences(case):
    deployment, range_m, direction, mask, *_ = case
    analytic = dense_extended(extended_operator(range_m, direction, deployment, mask))
    basis, step = tangent_basis(direction), 1e-5

    def column(shift, t1, t2):
        # a response is defined for any vector, so the direction may leave the sphere to second order
        moved = direction + t1 * basis[..., 0] + t2 * basis[..., 1]
        return dense(path_operator(range_m + shift, moved, deployment, mask))

    for kind, unit in enumerate(torch.eye(3).tolist(), start=1):
        forward, backward = column(*(step * x for x in unit)), column(*(-step * x for x in unit))
        numeric = (forward - backward) / (2 * step)
        assert (numeric - analytic[..., kind]).abs().max() < 1e-7 * analytic[..., kind].abs().max().clamp(min=1)


def test_a_given_basis_is_used(case):
    deployment, range_m, direction, mask, *_ = case
    basis = tangent_basis(direction).flip(-1)
    swapped = extended_operator(range_m, direction, deployment, mask, basis)
    plain = extended_operator(range_m, direction, deployment, mask)
    assert torch.equal(swapped.steering[..., [0, 2, 1]], plain.steering)


@pytest.mark.parametrize("precision", [0.0, 1.7])
def test_path_information_equals_a_dense_projection(case, precision):
    """By the real Jacobian over (psi, Re gain, Im gain) and a Schur complement with a Gaussian prior on the gains."""
    deployment, range_m, direction, mask, gain, observation = case
    operator = extended_operator(range_m, direction, deployment, mask)
    got = path_information(operator.gram(), gain, observation.noise_var, precision)
    phi = dense_extended(operator)
    for i in range(2):
        for q in range(3):
            on = mask[i, q].nonzero().flatten()
            noise = float(observation.noise_var[i, q])
            columns = phi[i, q][:, on]
            d_psi = (columns[..., 1:] * gain[i, q, on][:, None]).flatten(-2)
            jacobian = torch.cat([d_psi, columns[..., 0], 1j * columns[..., 0]], -1)
            jacobian = torch.cat([jacobian.real, jacobian.imag])
            full = 2 / noise * jacobian.T @ jacobian
            n = 3 * len(on)
            full[n:, n:] += 2 * precision * torch.eye(2 * len(on))  # CN(0, 1 / P): 2 P per real part
            wanted = full[:n, :n] - full[:n, n:] @ torch.linalg.solve(full[n:, n:], full[n:, :n])
            block = got[i, q][on][:, :, on].reshape(n, n)
            assert (block - wanted).abs().max() < 1e-9 * wanted.abs().max()
            off = (~mask[i, q]).nonzero().flatten()
            assert (got[i, q][off] == 0).all()
            assert (got[i, q][:, :, off] == 0).all()


def test_path_information_survives_coincident_paths(case):
    deployment, range_m, direction, _, _, observation = case
    range_m, direction = range_m[..., :1].repeat(1, 1, 2), direction[..., :1, :].repeat(1, 1, 2, 1)
    operator = extended_operator(range_m, direction, deployment)
    gain = torch.ones(2, 3, 2, dtype=torch.complex128)
    assert torch.isfinite(path_information(operator.gram(), gain, observation.noise_var)).all()


def test_complex64_operator(case):
    deployment, range_m, direction, mask, *_ = case
    single = extended_operator(range_m, direction, deployment, mask, dtype=torch.complex64)
    double = extended_operator(range_m, direction, deployment, mask)
    assert single.steering.dtype == single.delay.dtype == torch.complex64
    assert torch.allclose(single.gram().to(torch.complex128), double.gram(), rtol=1e-4, atol=1e-2)
