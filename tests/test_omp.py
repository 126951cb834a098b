"""Orthogonal matching pursuit against a literal loop with dense least squares, and against scikit-learn."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.inference.omp import DenseGram, omp, omp_dictionary
from sensing.operators.khatri_rao import path_operator

ROWS, COLUMNS, BATCH = 30, 70, 5


def problem(kind: torch.dtype = torch.complex128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A dictionary with columns of unequal norm, and sparse observations with noise."""
    generator = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(ROWS, COLUMNS, dtype=kind, generator=generator)
    dictionary = dictionary * torch.linspace(0.5, 2.0, COLUMNS, dtype=torch.float64)
    gain = torch.randn(BATCH, COLUMNS, dtype=kind, generator=generator)
    gain = gain * (torch.rand(BATCH, COLUMNS, generator=generator) < 0.08)
    noise = torch.randn(BATCH, ROWS, dtype=kind, generator=generator)
    return dictionary, gain @ dictionary.T + 0.1 * noise


def literal(dictionary, y, max_atoms, stop_energy=0.0, stop_peak=0.0, rule="omp"):
    """Chosen columns, gains and residual energy of one observation, refitted by dense least squares at every step."""
    phi, y = np.asarray(dictionary), np.asarray(y)
    present = set(np.flatnonzero(np.linalg.norm(phi, axis=0)))
    chosen: list[int] = []
    gain, residual = np.zeros(0, phi.dtype), y
    while len(chosen) < max_atoms and np.vdot(residual, residual).real > stop_energy:
        explained = np.zeros(phi.shape[1])
        for g in present - set(chosen):
            if rule == "omp":
                explained[g] = abs(np.vdot(phi[:, g], residual)) ** 2 / np.vdot(phi[:, g], phi[:, g]).real
            else:
                trial = phi[:, [*chosen, g]]
                left = y - trial @ np.linalg.lstsq(trial, y, rcond=None)[0]
                explained[g] = np.vdot(residual, residual).real - np.vdot(left, left).real
        if explained.max() <= stop_peak:
            break
        chosen.append(int(explained.argmax()))
        gain = np.linalg.lstsq(phi[:, chosen], y, rcond=None)[0]
        residual = y - phi[:, chosen] @ gain
    return chosen, gain, np.vdot(residual, residual).real


@pytest.mark.parametrize("rule", ["omp", "ols"])
@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
@pytest.mark.parametrize(
    "stop", [{"max_atoms": 9}, {"max_atoms": 25, "stop_energy": 0.8}, {"max_atoms": 25, "stop_peak": 0.2}]
)
def test_equals_the_literal_loop(kind, rule, stop):
    dictionary, y = problem(kind)
    found = omp(
        DenseGram(dictionary.mH @ dictionary), y @ dictionary.conj(), y.abs().square().sum(-1), rule=rule, **stop
    )
    counts = []
    for i in range(BATCH):
        chosen, gain, energy = literal(dictionary, y[i], rule=rule, **stop)
        counts.append(len(chosen))
        assert found.column[i].tolist() == chosen + [-1] * (found.column.shape[-1] - len(chosen))
        np.testing.assert_allclose(found.gain[i, : len(chosen)], gain, rtol=1e-9, atol=1e-12)
        assert float(found.residual[i]) == pytest.approx(energy, rel=1e-9)
    assert max(counts) == found.column.shape[-1]
    assert len(set(counts)) > 1 or "stop_energy" not in stop  # the batch stops at different orders


def test_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    dictionary, y = problem(torch.float64)
    dictionary = dictionary / dictionary.norm(dim=0)
    gram, matched = (dictionary.T @ dictionary).numpy(), (dictionary.T @ y.T).numpy()
    gain, _ = omp_dictionary(dictionary, y, 8).scatter(COLUMNS)
    wanted = linear_model.orthogonal_mp_gram(gram, matched, n_nonzero_coefs=8)
    np.testing.assert_allclose(gain.T, wanted, rtol=1e-9, atol=1e-12)
    gain, _ = omp_dictionary(dictionary, y, ROWS, stop_energy=0.5).scatter(COLUMNS)
    norms = y.square().sum(-1).numpy()
    wanted = linear_model.orthogonal_mp_gram(gram, matched, tol=0.5, norms_squared=norms)
    np.testing.assert_allclose(gain.T, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["omp", "ols"])
def test_every_observation_may_have_its_own_gram_and_its_own_thresholds(rule):
    problems = [problem(seed=seed) for seed in (1, 2)]
    gram = torch.stack([phi.mH @ phi for phi, _ in problems])[:, None].expand(-1, BATCH, -1, -1)
    matched = torch.stack([y @ phi.conj() for phi, y in problems])
    energy = torch.stack([y.abs().square().sum(-1) for _, y in problems])
    threshold = torch.linspace(0.3, 3.0, 2 * BATCH, dtype=torch.float64).reshape(2, BATCH)
    found = omp(DenseGram(gram), matched, energy, 25, threshold, rule=rule)
    for i, (phi, y) in enumerate(problems):
        for j in range(BATCH):
            chosen, gain, _ = literal(phi, y[j], 25, float(threshold[i, j]), rule=rule)
            assert [g for g in found.column[i, j].tolist() if g >= 0] == chosen
            np.testing.assert_allclose(found.gain[i, j, : len(chosen)], gain, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("rule", ["omp", "ols"])
def test_dependent_and_empty_columns_are_not_chosen(rule):
    dictionary, y = problem()
    dictionary = torch.cat([dictionary, 3.0 * dictionary, torch.zeros(ROWS, 4, dtype=dictionary.dtype)], -1)
    found = omp_dictionary(dictionary, y, ROWS + 10)
    assert torch.isfinite(torch.view_as_real(found.gain)).all()
    for row in found.column:
        columns = [int(g) for g in row if g >= 0]
        # once the chosen columns span everything, nothing is left to choose
        assert len(columns) <= ROWS
        assert max(columns) < 2 * COLUMNS
        assert len({g % COLUMNS for g in columns}) == len(columns)
    torch.testing.assert_close(found.scatter(dictionary.shape[-1])[0] @ dictionary.T, y, rtol=1e-7, atol=1e-7)


def test_nothing_to_explain_gives_nothing():
    dictionary, y = problem()
    found = omp_dictionary(dictionary, 0.0 * y, 5)
    assert found.column.shape == (BATCH, 0)
    gain, chosen = found.scatter(COLUMNS)
    assert gain.shape == (BATCH, COLUMNS)
    assert not gain.any()
    assert not chosen.any()


def test_structured_operator_equals_its_dense_dictionary(tiny):
    generator = torch.Generator().manual_seed(3)
    direction = torch.nn.functional.normalize(
        tiny.deployment.boresight[:, None, :] + torch.randn(2, 3, 40, 3, generator=generator, dtype=torch.float64),
        dim=-1,
    )
    range_m = 80 * torch.rand(2, 3, 40, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 3, 40, generator=generator) < 0.9
    operator = path_operator(range_m, direction, tiny.deployment, mask)
    y = torch.randn(2, 3, 12, 10, generator=generator, dtype=torch.complex128)
    dense = torch.einsum("...ml,...kl->...mkl", operator.steering, operator.delay).flatten(-3, -2)
    energy = y.abs().square().sum((-2, -1))
    found = omp(operator, operator.rmatvec(y), energy, 12)
    for i in range(2):
        for q in range(3):
            chosen, gain, _ = literal(dense[i, q], y[i, q].flatten(), 12)
            assert found.column[i, q].tolist() == chosen
            np.testing.assert_allclose(found.gain[i, q], gain, rtol=1e-8, atol=1e-11)


def test_an_unknown_rule_is_refused():
    dictionary, y = problem()
    with pytest.raises(ConfigError, match=r"rule must be one of .*got 'mp'"):
        omp(DenseGram(dictionary.mH @ dictionary), y @ dictionary.conj(), y.abs().square().sum(-1), 3, rule="mp")
