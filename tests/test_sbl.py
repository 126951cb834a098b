"""Sparse Bayesian learning against dense data-space formulas and closed forms."""

import math

import pytest
import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.inference.sbl import Settings, SparseBayes, sparse_bayes

SCENES, STATIONS, ROWS, COLUMNS = 3, 2, 24, 40
NOISE = 0.05


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Dictionaries [scene bs row col] with unequal column norms, and sparse observations [scene bs row] with noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.complex128, generator=generator)

    phi = normal(SCENES, STATIONS, ROWS, COLUMNS) * torch.linspace(0.5, 2, COLUMNS, dtype=torch.float64)
    support = torch.rand(SCENES, 1, COLUMNS, generator=generator) < 0.1
    gain = normal(SCENES, STATIONS, COLUMNS) * support
    return phi, (phi @ gain[..., None])[..., 0] + math.sqrt(NOISE) * normal(SCENES, STATIONS, ROWS)


def solve(phi: Tensor, y: Tensor, noise_var: float = NOISE, **settings) -> SparseBayes:
    matched = (phi.mH @ y[..., None])[..., 0]
    noise = torch.full(y.shape[:-1], noise_var, dtype=torch.float64)
    return sparse_bayes(phi.mH @ phi, matched, y.abs().square().sum(-1), noise, y.shape[-1], Settings(**settings))


def start(phi: Tensor, y: Tensor, shared: bool) -> Tensor:
    """Equal variances that explain the energy of the observation."""
    energy = y.abs().square().sum(-1) / phi.abs().square().sum((-2, -1))
    energy = energy.mean(-1, keepdim=True).expand(energy.shape) if shared else energy
    return energy[..., None].expand(*energy.shape, phi.shape[-1]).clone()


def data_space(phi: Tensor, y: Tensor, variance: Tensor, noise: Tensor):
    """Posterior mean and variance, `z = phi^H C^-1 phi` and the exact log density, from C = Phi V Phi^H + s2 I."""
    c = (phi * variance[..., None, :]) @ phi.mH + noise[..., None, None] * torch.eye(phi.shape[-2])
    inverse = torch.linalg.inv(c)
    z = (phi.conj() * (inverse @ phi)).sum(-2).real
    mean = variance * (phi.mH @ (inverse @ y[..., None]))[..., 0]
    quadratic = (y.conj() * (inverse @ y[..., None])[..., 0]).sum(-1).real
    density = -quadratic - torch.linalg.slogdet(c)[1] - y.shape[-1] * math.log(math.pi)
    return mean, variance - variance.square() * z, z, density.sum(-1)


def literal(phi: Tensor, y: Tensor, update: str, shared: bool, sparsity: float, count: int, learn_noise: bool = False):
    """The updates of the module's docstring, written on C."""
    variance, noise = start(phi, y, shared), torch.full(y.shape[:-1], NOISE, dtype=torch.float64)
    for _ in range(count):
        mean, spread, z, _ = data_space(phi, y, variance, noise)

        def pool(values: Tensor) -> Tensor:
            return values.sum(-2, keepdim=True).expand(values.shape) if shared else values

        share, energy = z * variance, mean.abs().square()
        if update == "em":
            new = pool(energy + spread) / ((STATIONS if shared else 1) + sparsity)
        elif update == "mackay":
            new = pool(energy) / (pool(share) + sparsity)
        else:
            new = (-sparsity + (sparsity**2 + 4 * pool(z) * pool(energy)).sqrt()) / (2 * pool(z))
        if learn_noise:
            misfit = (y - (phi @ mean[..., None])[..., 0]).abs().square().sum(-1)
            if update == "mackay":
                noise = misfit / (y.shape[-1] - share.sum(-1))
            else:
                noise = (misfit + ((phi * spread_matrix(phi, variance, noise)).sum((-2, -1))).real) / y.shape[-1]
        variance = new
    return variance, noise


def spread_matrix(phi: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """`conj(Phi Sigma)` for tr(Phi Sigma Phi^H), with the dense posterior covariance."""
    precision = phi.mH @ phi / noise[..., None, None] + torch.diag_embed((1 / variance).to(phi.dtype))
    return (phi @ torch.linalg.inv(precision)).conj()


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("update", ["em", "mackay", "convex"])
def test_updates_equal_the_dense_data_space_ones(update, shared, sparsity):
    phi, y = problem()
    found = solve(phi, y, update=update, shared=shared, sparsity=sparsity, prune=0.0, iterations=6, tolerance=0.0)
    variance, _ = literal(phi, y, update, shared, sparsity, 6)
    torch.testing.assert_close(found.variance, variance, rtol=1e-7, atol=1e-12)
    mean, spread, _, density = data_space(phi, y, variance, torch.tensor(NOISE, dtype=torch.float64).expand(3, 2))
    torch.testing.assert_close(found.mean, mean, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(variance * (1 - found.determined), spread, rtol=1e-7, atol=1e-10)
    constant = STATIONS * ROWS * math.log(math.pi)
    torch.testing.assert_close(found.log_evidence - constant, density, rtol=1e-9, atol=1e-9)
    assert found.iterations.tolist() == [6] * SCENES


@pytest.mark.parametrize("update", ["em", "mackay", "convex"])
def test_learned_noise_equals_the_dense_one(update):
    phi, y = problem()
    found = solve(phi, y, update=update, learn_noise=True, prune=0.0, sparsity=0.0, iterations=4, tolerance=0.0)
    variance, noise = literal(phi, y, update, False, 0.0, 4, learn_noise=True)
    torch.testing.assert_close(found.noise_var, noise, rtol=1e-7, atol=0)
    torch.testing.assert_close(found.variance, variance, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
@pytest.mark.parametrize("update", ["em", "convex"])
def test_the_evidence_never_falls(update, sparsity, shared):
    phi, y = problem(1)
    last = torch.full((SCENES,), -math.inf, dtype=torch.float64)
    settings = {"update": update, "shared": shared, "sparsity": sparsity, "prune": 0.0, "tolerance": 0.0}
    for iterations in (1, 2, 3, 4) if sparsity else (1, 2, 3, 5, 8, 13, 21):
        found = solve(phi, y, iterations=iterations, **settings)
        variances = found.variance[:, :1] if shared else found.variance
        posterior = found.log_evidence - sparsity * variances.log().sum((-2, -1))
        assert bool((posterior >= last - 1e-9).all())
        assert torch.isfinite(posterior).all()
        last = posterior


@pytest.mark.parametrize("update", ["em", "mackay", "convex"])
def test_orthogonal_columns_have_their_closed_form(update):
    """Of |phi|^2 = p and no hyperprior the evidence is largest at v = max(|phi^H y|^2 / p^2 - s2 / p, 0)."""
    generator = torch.Generator().manual_seed(2)
    phi = torch.linalg.qr(torch.randn(1, 1, 20, 20, dtype=torch.complex128, generator=generator))[0][..., :12] * 3.0
    y = torch.randn(1, 1, 20, dtype=torch.complex128, generator=generator)
    found = solve(phi, y, 0.6, update=update, sparsity=0.0, prune=1e-9, iterations=2000, tolerance=1e-13)
    wanted = ((phi.mH @ y[..., None])[..., 0].abs().square() / 81 - 0.6 / 9).clamp_min(0.0)
    assert 0 < int((wanted > 0).sum()) < 12
    torch.testing.assert_close(found.variance, wanted, rtol=2e-3, atol=1e-4)


def test_sparse_gains_are_found_and_the_noise_with_them():
    phi, y = problem()
    found = solve(phi, y, noise_var=1.0, learn_noise=True, update="mackay", iterations=300, tolerance=1e-6)
    estimate = (phi @ found.mean[..., None])[..., 0]
    assert float(found.noise_var.mean()) == pytest.approx(NOISE, rel=0.35)
    assert int((found.variance > 0).sum(-1).max()) < ROWS / 2
    assert float((estimate - y).abs().square().mean()) < 1.5 * NOISE


def test_shared_variances_have_a_common_support():
    phi, y = problem()
    found = solve(phi, y, shared=True)
    torch.testing.assert_close(found.variance[:, 0], found.variance[:, 1], rtol=0, atol=0)
    assert 0 < int((found.variance > 0).sum()) < found.variance.numel() / 2


@pytest.mark.parametrize("shared", [False, True])
def test_a_scene_depends_on_no_other_and_padding_changes_nothing(shared):
    phi, y = problem()
    together = solve(phi, y, shared=shared)
    assert len(set(together.iterations.tolist())) > 1
    padded = torch.cat([phi[..., :7], torch.zeros_like(phi[..., :5]), phi[..., 7:]], -1)
    for i in range(SCENES):
        alone = solve(padded[i : i + 1], y[i : i + 1], shared=shared)
        assert not alone.variance[..., 7:12].any()
        kept = torch.cat([alone.mean[..., :7], alone.mean[..., 12:]], -1)
        torch.testing.assert_close(kept[0], together.mean[i], rtol=1e-8, atol=1e-10)
        assert int(alone.iterations) == int(together.iterations[i])


def test_nothing_received_gives_nothing():
    phi, y = problem()
    found = solve(phi, 0.0 * y)
    assert not found.mean.any()
    assert not found.variance.any()
    assert torch.isfinite(found.log_evidence).all()


@pytest.mark.parametrize("bad", [{"update": "newton"}, {"iterations": 0}, {"sparsity": -1.0}, {"tolerance": math.nan}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=r"update|iterations"):
        Settings(**bad).validate()
