"""Monte Carlo importance sampling and Newton steps for paper 3's weights: all drops at once against a loop over drops.

The peer is what one writes from the paper's equations in numpy and scipy, drop by drop: densities of the six members in
all cells, normalised; samples of the equally weighted pool; damped Newton steps with a logarithmic barrier that shrinks
from 1e-1 to 1e-7, each on all samples.

The last row is learned fusion against our own optimal weights, both from measurements to positions and in batches that
suit them, with the shipped network.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from benchmarks.frame import Case
from sensing.fusion.chernoff import ChernoffWeights, chernoff_weights
from sensing.fusion.domain import Domain, hexagon
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.methods import Pooling, fuse
from sensing.fusion.sampling import UNIFORM_SHARE, draw_samples
from sensing.learning import FusionLearner
from sensing.simulation.drops import DropSampler

INSTALL = None
STATIONS = [[115.47, 0.0, 10.0], [-57.735, 100.0, 10.0], [-57.735, -100.0, 10.0]]

Floats = NDArray[np.float64]
Found = tuple[Floats, Floats]  # weights [drop member] and ln Z [drop]


def cases(tiny: bool) -> Iterator[Case]:
    """Biased drops in paper 3's hexagon: the weights from given samples, and samples and weights together."""
    drops, count = (3, 6000) if tiny else (256, 10_000)
    domain = hexagon(115.47, 1.5, 8.0 if tiny else 2.0)
    sampler = DropSampler(STATIONS, domain, bias="uniform", bias_scale_m=5.0)
    measured = sampler.sample(0, "test", range(drops)).measured
    given = draw_samples(measured, domain, count, torch.Generator().manual_seed(0))
    size, per = f"{drops} drops, {count} samples, 6 members", (float(drops), "drop")

    def weights() -> ChernoffWeights:
        return chernoff_weights(given.log_density, given.log_proposal)

    def loop() -> Found:
        return minima(zip(given.log_density.numpy(), given.log_proposal.numpy(), strict=True))

    def whole() -> ChernoffWeights:
        draws = draw_samples(measured, domain, count, torch.Generator().manual_seed(0))
        return chernoff_weights(draws.log_density, draws.log_proposal)

    def whole_loop() -> Found:
        rng = np.random.default_rng(0)
        return minima(samples(measured, drop, domain, count, rng) for drop in range(drops))

    name = f"loop in numpy {np.__version__}"
    yield Case("optimal weights", size, weights, loop, name, 1e-3, largest_difference, per=per)
    yield Case(
        "samples and optimal weights", size, whole, whole_loop, name, 0.2, mean_difference, per=per, target=10.0,
        note="the samples differ: error of the mean ln Z",
    )  # fmt: skip
    yield learned_against_optimal(8 if tiny else 2048, sampler, count)


def learned_against_optimal(drops: int, sampler: DropSampler, count: int) -> Case:
    """Positions by learned fusion, all drops at once, and by optimal weights, 256 drops at once."""
    measured, net = sampler.block(0, "test", 0, drops).measured, FusionLearner.load("fusion").fusion
    pooling = Pooling(sampler.domain, count)
    blocks = [StationMeasurements(measured.bs_position, *fields) for fields in zip(*(
        field.split(256) for field in measured[1:]
    ), strict=True)]  # fmt: skip

    @torch.no_grad()
    def learned() -> torch.Tensor:
        return net(measured, sampler.domain).position

    def optimal() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.cat([fuse(["optimal"], block, pooling, generator)["optimal"].position for block in blocks])

    return Case(
        "learned fusion", f"{drops} drops", learned, optimal, f"optimal weights, {count} samples", 5.0,
        lambda ours, theirs: float((ours - theirs).norm(dim=-1).median()), per=(float(drops), "drop"), target=100.0,
        note="other positions: their median distance [m]",
    )  # fmt: skip


def largest_difference(ours: ChernoffWeights, theirs: Found) -> float:
    """The larger of that of the weights, and a hundred times that of ln Z."""
    weight, log_z = (np.abs(a.numpy() - b).max() for a, b in zip(ours[:2], theirs, strict=True))
    return float(max(weight, 100.0 * log_z))


def mean_difference(ours: ChernoffWeights, theirs: Found) -> float:
    """That of ln Z, its mean over drops."""
    return float(abs(ours.log_z.mean() - theirs[1].mean()))


def samples(
    measured: StationMeasurements, drop: int, domain: Domain, count: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Log-densities [sample member] and log-proposals [sample] of one drop."""
    bs, points = measured.bs_position.numpy(), domain.points.numpy()
    ranges, direction = measured.range_m[drop].numpy(), measured.direction[drop].numpy()
    range_std, angle_std = measured.range_std[drop].numpy(), measured.angle_std[drop].numpy()
    area = float(domain.log_cell)

    def log_densities(at: Floats) -> Floats:
        offset = at[:, None] - bs
        distance = np.linalg.norm(offset, axis=-1)
        along = -0.5 * ((ranges - distance) / range_std) ** 2
        across = ((offset * direction).sum(-1) / distance - 1.0) / angle_std**2
        return np.concatenate([along, across], -1)

    grid = log_densities(points)
    normaliser = logsumexp(grid, axis=0) + area
    pool = grid.mean(-1)
    share = (1.0 - UNIFORM_SHARE) * np.exp(pool - logsumexp(pool)) + UNIFORM_SHARE / len(points)
    index = rng.choice(len(points), count, p=share / share.sum())
    at = points[index] + (rng.random((count, 3)) - 0.5) * domain.cell.numpy()
    return log_densities(at) - normaliser, np.log(share[index]) - area


def minima(drops: Iterator[tuple[Floats, Floats]]) -> Found:
    """Weights and ln Z, drop after drop."""
    found = [newton(*drop) for drop in drops]
    return np.stack([weight for weight, _ in found]), np.array([log_z for _, log_z in found])


def newton(density: Floats, proposal: Floats) -> tuple[Floats, float]:
    """Weights of one drop by damped Newton steps with a barrier that shrinks, and ln Z there."""
    count = density.shape[1]
    weight, one = np.full(count, 1.0 / count), np.ones(count)

    def log_z(w: Floats) -> float:
        return float(logsumexp(density @ w - proposal)) - math.log(len(density))

    for barrier in np.logspace(-1, -7, 7):
        for _ in range(100):
            exponent = density @ weight - proposal
            share = np.exp(exponent - logsumexp(exponent))
            mean = share @ density
            hessian = (density * share[:, None]).T @ density - np.outer(mean, mean) + np.diag(barrier / weight**2)
            gradient = mean - barrier / weight
            solved = np.linalg.solve(hessian, np.stack([gradient, one], -1))
            step = solved[:, 1] * (solved[:, 0].sum() / solved[:, 1].sum()) - solved[:, 0]
            decrement = -gradient @ step
            if decrement <= 1e-6:
                break
            length = min(1.0, 0.99 / max(1e-300, float((-step / weight).max())))
            here = log_z(weight) - barrier * np.log(weight).sum()
            while length > 1e-12:
                there = weight + length * step
                if log_z(there) - barrier * np.log(there).sum() <= here - 1e-4 * length * decrement:
                    break
                length *= 0.5
            weight = weight + length * step
    return weight, log_z(weight)
