"""Log-linear pool: densities against quadrature, Newton against automatic differentiation and scipy, exact Chernoff."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.fusion.bayes import Law, log_range_excess, posterior
from sensing.fusion.chernoff import chernoff_weights, pool_moments
from sensing.fusion.domain import box, hexagon
from sensing.fusion.likelihoods import log_likelihood, log_normaliser, log_range_with_bias, log_von_mises_fisher
from sensing.fusion.rules import (
    best_station,
    covariance_intersection,
    equal_weights,
    fixed_range_weight,
    inverse_variance,
)
from sensing.fusion.sampling import draw_samples
from sensing.fusion.solve import solve_position
from sensing.simulation.drops import DropSampler

DOUBLE = torch.float64
STATIONS = [[30.0, 0.0, 10.0], [-15.0, 26.0, 10.0], [-15.0, -26.0, 10.0]]
DOMAIN = hexagon(30.0, 1.5, 0.5)


def drops(count=4, **law):
    return DropSampler(STATIONS, DOMAIN, angle_std_deg=2.0, **law).sample(0, "test", range(count))


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kappa", [1e-3, 0.7, 30.0, 3e5])
def test_von_mises_fisher_is_a_density_on_the_sphere(kappa):
    def density(below):  # 1 - cosine, so that a sharp peak is resolved
        return 2 * math.pi * float(log_von_mises_fisher(*torch.tensor([1 - below, kappa], dtype=DOUBLE)).exp())

    edge = min(2.0, 40 / kappa)
    assert integrate.quad(density, 0, edge)[0] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("std", "largest"), [(1.0, 10.0), (0.5, 0.3), (2.0, 0.0), (0.1, 50.0)])
def test_biased_range_against_quadrature(std, largest):
    excess = np.linspace(-4 * std, largest + 4 * std, 9)
    got = log_range_with_bias(torch.tensor(excess), *torch.tensor([std, largest], dtype=DOUBLE))
    noise = stats.norm(scale=std)
    for e, value in zip(excess, got.exp().tolist(), strict=True):
        if largest == 0:
            assert value == pytest.approx(noise.pdf(e), rel=1e-10)
        else:
            edges = np.clip([e - 9 * std, e, e + 9 * std], 0, largest)
            parts = [integrate.quad(lambda b, e=e: noise.pdf(e - b), *pair)[0] for pair in itertools.pairwise(edges)]
            assert value == pytest.approx(sum(parts) / largest, rel=1e-5)


def test_biased_range_far_out_neither_underflows_nor_loses_its_slope():
    excess = torch.tensor([-300.0, 320.0], dtype=DOUBLE, requires_grad=True)
    value = log_range_with_bias(excess, torch.tensor(1.0, dtype=DOUBLE), torch.tensor(10.0, dtype=DOUBLE))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.allclose(excess.grad, torch.tensor([300.0, -310.0], dtype=DOUBLE), rtol=1e-3)


@pytest.mark.parametrize(("bias", "scale"), [("uniform", 3.0), ("exponential", 2.0), ("delta", 1.5), ("none", 0.0)])
def test_excess_laws_are_densities(bias, scale):
    law = Law(torch.ones(1, 1), torch.ones(1, 1), bias, scale, False, torch.tensor([True]))
    excess = torch.linspace(-12, 60, 200_001, dtype=DOUBLE)
    value = log_range_excess(excess[None, None], torch.full((1, 1, 1), 1.3, dtype=DOUBLE), scale, law).exp()[0, 0]
    assert torch.trapezoid(value, excess) == pytest.approx(1, rel=1e-6)
    mean = {"uniform": scale / 2, "exponential": scale, "delta": scale, "none": 0.0}[bias]
    assert torch.trapezoid(value * excess, excess) == pytest.approx(mean, abs=1e-5)


def test_normalisation_is_over_the_domain_for_both_modalities():
    measured = drops(2).measured
    finer = hexagon(30.0, 1.5, 0.2)
    for domain in (DOMAIN, finer):
        assert len(domain.points) * float(domain.log_cell.exp()) == pytest.approx(1.5 * math.sqrt(3) * 900, rel=0.02)
    coarse = log_normaliser(log_likelihood(measured, DOMAIN.points), DOMAIN)
    fine = log_normaliser(log_likelihood(measured, finer.points), finer)
    assert torch.allclose(coarse, fine, atol=0.03)


def test_moments_against_automatic_differentiation():
    draws = draw_samples(drops(3, bias="uniform", bias_scale_m=5.0).measured, DOMAIN, 500, generator())
    weight = torch.rand(3, 6, dtype=DOUBLE, generator=generator())
    weight = weight / weight.sum(-1, keepdim=True)
    moments = pool_moments(weight, draws.log_density, draws.log_proposal)
    for drop in range(3):

        def log_z(w, drop=drop):
            exponent = draws.log_density[drop] @ w - draws.log_proposal[drop]
            return torch.logsumexp(exponent, 0) - math.log(500)

        slope = torch.func.grad(log_z)(weight[drop])
        curve = torch.func.hessian(log_z)(weight[drop])
        assert torch.allclose(moments.log_z[drop], log_z(weight[drop]), rtol=1e-12)
        assert torch.allclose(moments.gradient[drop], slope, rtol=1e-8)
        assert float((moments.hessian[drop] - curve).abs().max() / curve.abs().max()) < 1e-8


@pytest.mark.parametrize(
    ("means", "stds"), [((0.0, 2.0), (1.0, 1.0)), ((0.0, 3.0), (1.0, 2.5)), ((0.0, 0.5), (0.4, 3.0))]
)
def test_two_gaussians_against_the_exact_chernoff_weight(means, stds):
    x = torch.linspace(-40, 40, 400_001, dtype=DOUBLE)
    density = torch.stack([torch.distributions.Normal(m, s).log_prob(x) for m, s in zip(means, stds, strict=True)], -1)

    def log_z(w):  # closed form: the product of two Gaussians to powers
        a, b = w / stds[0] ** 2, (1 - w) / stds[1] ** 2
        log_power = -w * math.log(stds[0]) - (1 - w) * math.log(stds[1]) - 0.5 * math.log(a + b)
        return log_power - 0.5 * a * b / (a + b) * (means[0] - means[1]) ** 2

    exact = optimize.minimize_scalar(log_z, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-10})
    got = chernoff_weights(density, torch.full_like(x, -math.log(80.0)))
    assert bool(got.converged)
    assert float(got.weight[0]) == pytest.approx(float(exact.x), rel=5e-3)
    assert float(got.log_z) == pytest.approx(float(exact.fun), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("modality", ["toa", "aoa", "hybrid"])
def test_weights_against_scipy(modality):
    measured = drops(3, bias="uniform", bias_scale_m=6.0).measured.only(modality)
    draws = draw_samples(measured, DOMAIN, 800, generator())
    got = chernoff_weights(draws.log_density, draws.log_proposal, measured.members)
    count = int(measured.members[0].sum())
    for drop in range(3):
        kept = measured.members[drop]
        density, proposal = draws.log_density[drop][:, kept].numpy(), draws.log_proposal[drop].numpy()

        def log_z(w, density=density, proposal=proposal):
            return np.logaddexp.reduce(density @ w - proposal) - math.log(len(proposal))

        peer = optimize.minimize(
            log_z, np.full(count, 1 / count), method="SLSQP", bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        assert float(got.log_z[drop]) <= peer.fun + 1e-5
        assert float(got.weight[drop].sum()) == pytest.approx(1)
        assert (got.weight[drop][~kept] == 0).all()
        slope = pool_moments(got.weight[drop], draws.log_density[drop], draws.log_proposal[drop]).gradient[kept]
        used = got.weight[drop][kept] > 1e-3
        assert float(slope[used].max() - slope[used].min()) < 1e-2 * float(slope.abs().max())  # KKT


def test_optimal_pool_is_the_reverse_kl_centre():
    x = torch.linspace(-30, 30, 200_001, dtype=DOUBLE)
    density = torch.stack([torch.distributions.Normal(m, s).log_prob(x) for m, s in ((0.0, 1.0), (4.0, 2.0))], -1)
    weight = chernoff_weights(density, torch.full_like(x, -math.log(60.0)), tolerance=1e-10).weight
    pool = (density @ weight).softmax(0)
    log_pool = pool.log() - math.log(60.0 / 200_000)
    distance = (pool[:, None] * (log_pool[:, None] - density)).nan_to_num(0.0).sum(0)
    assert float(distance[0]) == pytest.approx(float(distance[1]), rel=1e-4)


def test_a_drop_does_not_depend_on_its_batch():
    draws = draw_samples(drops(5, bias="uniform", bias_scale_m=5.0).measured, DOMAIN, 300, generator())
    whole = chernoff_weights(draws.log_density, draws.log_proposal)
    alone = chernoff_weights(draws.log_density[3], draws.log_proposal[3])
    assert torch.allclose(whole.weight[3], alone.weight, rtol=1e-9)
    assert int(whole.iterations[3]) == int(alone.iterations)


def test_identical_members_share_and_one_member_takes_all():
    density = torch.randn(50, 1, dtype=DOUBLE, generator=generator())
    twice = chernoff_weights(density.expand(50, 2), torch.zeros(50, dtype=DOUBLE))
    assert torch.allclose(twice.weight, torch.full((2,), 0.5, dtype=DOUBLE))
    members = torch.tensor([False, True])
    assert chernoff_weights(density.expand(50, 2), torch.zeros(50, dtype=DOUBLE), members).weight.tolist() == [0.0, 1.0]
    with pytest.raises(DomainError, match="member"):
        chernoff_weights(density, torch.zeros(50, dtype=DOUBLE), torch.tensor([False]))
    with pytest.raises(DomainError, match="finite"):
        chernoff_weights(density / 0.0, torch.zeros(50, dtype=DOUBLE))


@pytest.mark.parametrize("proposal", ["pool", "uniform"])
def test_samples_estimate_the_normaliser(proposal):
    """Z of equal weights from samples against the sum over cells; every place has its exact proposal density."""
    measured = drops(2).measured
    draws = draw_samples(measured, DOMAIN, 20_000, generator(), proposal)
    equal = equal_weights(measured)
    got = pool_moments(equal, draws.log_density, draws.log_proposal).log_z
    grid = log_likelihood(measured, DOMAIN.points)
    grid = grid - log_normaliser(grid, DOMAIN)[..., None]
    assert torch.allclose(got, log_normaliser((equal[:, None] @ grid)[:, 0], DOMAIN), atol=0.1)
    assert (draws.position[..., 2] == 1.5).all()


@pytest.mark.parametrize("modality", ["toa", "aoa", "hybrid"])
def test_position_against_scipy(modality):
    sample = drops(4, bias="uniform", bias_scale_m=3.0)
    measured = sample.measured.only(modality)
    weight = torch.rand(4, 2, 3, dtype=DOUBLE, generator=generator()) + 0.1
    bias = torch.rand(4, 3, dtype=DOUBLE, generator=generator())
    got = solve_position(sample.position, measured, weight, bias, steps=30).position
    for drop in range(4):

        def residuals(p, drop=drop):
            place = torch.tensor([*p, 1.5], dtype=DOUBLE)
            offset = place - measured.bs_position
            distance = offset.norm(dim=-1)
            scale = (weight[drop] * measured.precision[drop]).sqrt()
            far = scale[0] * (measured.range_m[drop] - bias[drop] - distance)
            turn = scale[1][:, None] * (measured.direction[drop] - offset / distance[:, None])
            return torch.cat([far, turn.flatten()]).numpy()

        peer = optimize.least_squares(residuals, sample.position[drop, :2].numpy(), xtol=1e-14, ftol=1e-14)
        assert np.abs(got[drop, :2].numpy() - peer.x).max() < 1e-4


def test_equal_weights_are_maximum_likelihood_and_scale_free():
    sample = drops(3)
    equal = equal_weights(sample.measured).unflatten(-1, (2, 3))
    one = solve_position(sample.position, sample.measured, equal)
    many = solve_position(sample.position, sample.measured, 7 * equal)
    assert torch.allclose(one.position, many.position, atol=1e-9)
    assert torch.allclose(7 * one.information, many.information)


def test_rules():
    measured, position = drops(2).measured, torch.tensor([2.0, 3.0, 1.5], dtype=DOUBLE).expand(2, 3)
    for weight in (
        equal_weights(measured), fixed_range_weight(measured, 0.1), inverse_variance(measured, position, [0, 1]),
        covariance_intersection(measured, position, [0, 1]), best_station(measured, position, [0, 1]),
    ):  # fmt: skip
        assert torch.allclose(weight.sum(-1), torch.ones(2, dtype=DOUBLE))
        assert (weight >= 0).all()
    assert torch.allclose(
        fixed_range_weight(measured, 0.1)[:, 0] / fixed_range_weight(measured, 0.1)[:, 3],
        torch.tensor(0.1, dtype=DOUBLE),
    )
    assert (best_station(measured, position, [0, 1]) > 0).sum(-1).tolist() == [2, 2]
    with pytest.raises(DomainError, match="factor"):
        fixed_range_weight(measured, 0.0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_best_station_of_ranges_alone_is_the_sharpest_in_any_order(order):
    task = drops(range_std_m=[2.0, 0.5, 1.0])
    measured = task.measured.only("toa").stations(list(order))
    weight = best_station(measured, task.position, [0, 1])
    assert (weight.argmax(-1) == order.index(1)).all()
    assert (weight.amax(-1) == 1.0).all()


def test_covariance_intersection_against_scipy():
    measured, position = drops(1).measured, torch.tensor([[8.0, -5.0, 1.5]], dtype=DOUBLE)
    got = covariance_intersection(measured, position, [0, 1], steps=4000)[0].numpy()
    each = []
    for b, rng_std, ang_std in zip(
        np.array(STATIONS), measured.range_std[0].numpy(), measured.angle_std[0].numpy(), strict=True
    ):
        offset = position[0].numpy() - b
        r = np.linalg.norm(offset)
        u = offset / r
        each.append((np.outer(u, u)[:2, :2] / rng_std**2, (np.eye(3) - np.outer(u, u))[:2, :2] / (r * ang_std) ** 2))
    informations = np.array([j for j, _ in each] + [j for _, j in each])

    def spread(w):
        return -np.linalg.slogdet(np.tensordot(w, informations, 1))[1]

    peer = optimize.minimize(
        spread, np.full(6, 1 / 6), method="SLSQP", bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12},
    )  # fmt: skip
    assert spread(got) == pytest.approx(peer.fun, abs=1e-4)


@pytest.mark.parametrize(
    ("modality", "bias", "random", "unbiased"),
    [("hybrid", "uniform", False, 0.0), ("toa", "exponential", False, 0.3), ("hybrid", "uniform", True, 0.3)],
)
def test_posterior_mean_against_a_plain_grid(modality, bias, random, unbiased):
    sampler = DropSampler(STATIONS, DOMAIN, angle_std_deg=2.0, bias=bias, bias_scale_m=4.0, random_scale=random)
    sample = sampler.sample(0, "test", range(2))
    measured = sample.measured.only(modality)
    law = Law(sample.range_std, sample.angle_std, bias, 4.0, random, torch.tensor([True] * 3), unbiased)
    got = posterior(measured, DOMAIN, law)
    fine = hexagon(30.0, 1.5, 0.25).points.numpy()
    for drop in range(2):
        log = np.zeros(len(fine))
        scales = np.linspace(0, 4, 41)[1:] - 0.05 if random else np.array([4.0])
        ranges, plain = np.zeros((len(scales), len(fine))), np.zeros(len(fine))
        for i, b in enumerate(np.array(STATIONS)):
            offset = fine - b
            distance = np.linalg.norm(offset, axis=1)
            if modality == "hybrid":
                off = float(measured.azimuth[drop, i]) - np.arctan2(offset[:, 1], offset[:, 0])
                off = (off + np.pi) % (2 * np.pi) - np.pi
                up = float(measured.elevation[drop, i]) - np.arcsin(offset[:, 2] / distance)
                log += stats.norm(scale=np.deg2rad(2)).logpdf(off) + stats.norm(scale=np.deg2rad(2)).logpdf(up)
            excess = float(measured.range_m[drop, i]) - distance
            plain += stats.norm.logpdf(excess)
            for k, scale in enumerate(scales):
                if bias == "uniform":
                    value = (stats.norm.cdf(excess) - stats.norm.cdf(excess - scale)) / scale
                    ranges[k] += np.log(np.maximum(value, 1e-300))
                else:
                    ranges[k] += stats.exponnorm(K=scale).logpdf(excess)
        biased = np.exp(ranges).mean(0)
        log += np.log((1 - unbiased) * biased + unbiased * np.exp(plain) + 1e-300)
        share = np.exp(log - log.max())
        share /= share.sum()
        assert np.abs(share @ fine - got.mean[drop].numpy()).max() < 0.03


def test_drops_follow_their_law_and_their_number():
    sampler = DropSampler(
        STATIONS, DOMAIN, range_std_m=[0.5, 1.0, 3.0], bias="exponential", bias_scale_m=2.0, biased=[1]
    )
    sample = sampler.sample(0, "test", range(4000))
    assert torch.equal(sampler.sample(0, "test", [7]).measured.range_m[0], sample.measured.range_m[7])
    distance = (sample.position[:, None] - sampler.bs_position).norm(dim=-1)
    noise = sample.measured.range_m - distance - sample.bias_m
    for station, std in enumerate((0.5, 1.0, 3.0)):
        assert stats.kstest(noise[:, station].numpy(), stats.norm(scale=std).cdf).pvalue > 1e-3
    assert (sample.bias_m[:, [0, 2]] == 0).all()
    assert stats.kstest(sample.bias_m[:, 1].numpy(), stats.expon(scale=2.0).cdf).pvalue > 1e-3
    mixed = DropSampler(STATIONS, DOMAIN, bias="uniform", bias_scale_m=8.0, random_scale=True).sample(
        0, "test", range(4000)
    )
    assert stats.kstest(mixed.bias_scale_m.numpy(), stats.uniform(scale=8.0).cdf).pvalue > 1e-3
    some = DropSampler(STATIONS, DOMAIN, bias="uniform", bias_scale_m=8.0, random_scale=True, unbiased_share=0.3)
    part = some.sample(0, "test", range(4000))
    without = (part.bias_m == 0).all(-1)
    assert stats.binomtest(int(without.sum()), 4000, 0.3).pvalue > 1e-3
    assert torch.equal(part.bias_m[~without], mixed.bias_m[~without])
    assert torch.equal(part.position, mixed.position)
    with pytest.raises(ConfigError, match=r"unbiased_share must be a probability, got 1\.5"):
        DropSampler(STATIONS, DOMAIN, unbiased_share=1.5)
    shuffled = DropSampler(STATIONS, DOMAIN, range_std_m=[0.5, 1.0, 3.0], shuffle=True).sample(0, "test", range(50))
    assert len(shuffled.range_std[:, 0].unique()) == 3


def good():
    return drops(2).measured


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m._replace(range_std=-m.range_std), DomainError, "range_std must be positive"),
        (lambda m: m._replace(angle_std=0 * m.angle_std), DomainError, "angle_std must be positive"),
        (lambda m: m._replace(elevation=m.elevation + 3), DomainError, "elevation must be within"),
        (lambda m: m._replace(azimuth=m.azimuth * 57.3 + 10), DomainError, "azimuth must be within"),
        (lambda m: m._replace(range_m=m.range_m * torch.nan), DomainError, "range_m must be finite"),
        (lambda m: m._replace(range_std=m.range_std[:, :2]), ShapeError, "range_std"),
        (lambda m: m._replace(range_std=1e-200 * m.range_std), DomainError, "range_std must be from 1e-12 to 1e\\+09"),
        (lambda m: m._replace(angle_std=1e200 * m.angle_std), DomainError, "angle_std must be from 1e-12 to 1e\\+09"),
        (lambda m: m._replace(range_m=1e300 * m.range_m), DomainError, "range_m must be within"),
        (lambda m: m._replace(bs_position=1e300 * m.bs_position), DomainError, "bs_position must be within"),
        (lambda m: m.stations([]), ShapeError, "range_m must hold a drop and a station"),
        (lambda m: m.only("toa").only("aoa"), DomainError, "a range or an angle"),
        (lambda m: m.only("both"), ConfigError, "modality"),
    ],
)
def test_bad_measurements(change, error, message):
    with pytest.raises(error, match=message):
        change(good()).validate()


@pytest.mark.parametrize(
    "make",
    [
        lambda: box([0, 0, 0], [0, 0, 0]),
        lambda: box([0, 0, 1], [1, 1, 0]),
        lambda: box([0, 0, 0], [1e4, 1e4, 0], 0.1),
        lambda: box([0, 0, 0], [1, 1, 0], 0.0),
        lambda: hexagon(-1.0, 0.0),
        lambda: draw_samples(good(), DOMAIN, 0, generator()),
        lambda: draw_samples(good(), DOMAIN, 5, generator(), "best"),
        lambda: DropSampler(STATIONS, DOMAIN, bias="gamma"),
        lambda: DropSampler(STATIONS, DOMAIN, range_std_m=0.0),
        lambda: DropSampler(STATIONS, DOMAIN, bias="uniform", bias_scale_m=-1.0),
        lambda: DropSampler(STATIONS, DOMAIN, biased=[3]),
    ],
)
def test_bad_settings(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("count", [1, 5, 100, 3000])
def test_few_samples_and_sharp_members_give_weights_all_the_same(count):
    """A Hessian of less rank than members, and log-densities of a hundred thousand."""
    for law in ({}, {"range_std_m": 0.01, "bias": "uniform", "bias_scale_m": 10.0}):
        measured = drops(6, **law).measured
        draws = draw_samples(measured, DOMAIN, count, generator(), "uniform")
        got = chernoff_weights(draws.log_density, draws.log_proposal)
        assert (got.weight >= 0).all()
        assert torch.allclose(got.weight.sum(-1), torch.ones(6, dtype=DOUBLE))
        there = pool_moments(got.weight, draws.log_density, draws.log_proposal).log_z
        assert torch.allclose(there, got.log_z, atol=1e-5)
        for member in range(6):  # not worse than any corner or the middle
            corner = torch.eye(6, dtype=DOUBLE)[member].expand(6, 6)
            assert (there <= pool_moments(corner, draws.log_density, draws.log_proposal).log_z + 1e-5).all()
        assert (
            there <= pool_moments(equal_weights(measured), draws.log_density, draws.log_proposal).log_z + 1e-5
        ).all()


def test_thinned_start_leads_to_the_same_weights(monkeypatch):
    draws = draw_samples(drops(6, bias="uniform", bias_scale_m=5.0).measured, DOMAIN, 4000, generator())
    thinned = chernoff_weights(draws.log_density, draws.log_proposal)
    monkeypatch.setattr("sensing.fusion.chernoff.FEWEST", 10**9)
    whole = chernoff_weights(draws.log_density, draws.log_proposal)
    assert torch.allclose(thinned.weight, whole.weight, atol=1e-3)
    assert torch.allclose(thinned.log_z, whole.log_z, atol=1e-6)
    assert float(thinned.iterations.double().mean()) < float(whole.iterations.double().mean())
