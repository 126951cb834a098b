"""Samples of the position and the density that they were drawn from: Monte Carlo importance sampling (paper 3, IV-A).

A proposal is piecewise constant on the cells of the domain: a cell is drawn, then a place within it. Its density is
known exactly, so nothing is approximated beyond the sampling itself. Cells of the pool are drawn systematically, at
equal distances of their distribution function from a random start: every sample has the density of the proposal, and
cells get their shares of the samples to within one.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.fusion.domain import Domain
from sensing.fusion.likelihoods import NEGLIGIBLE, log_likelihood, log_normaliser
from sensing.fusion.measurements import StationMeasurements

UNIFORM_SHARE = 0.02
"""Share of the uniform density in the pool proposal, so that no part of the domain is without samples."""

BLOCK = 1_000_000
"""Log-densities of one modality that are computed at once: more take longer, as memory must be had anew."""

PROPOSALS = ("pool", "uniform")


class Samples(NamedTuple):
    """Samples and what the optimisation of the weights needs."""

    position: Tensor  # [* sample xyz] [m]
    log_density: Tensor  # [* sample member] normalised log-densities of the members
    log_proposal: Tensor  # [* sample]


def draw_samples(
    measured: StationMeasurements,
    domain: Domain,
    count: int,
    generator: torch.Generator,
    proposal: str = "pool",
) -> Samples:
    """Draw positions from a proposal and evaluate the members there.

    Args:
        measured: [*] drops.
        domain: on which the members are normalised.
        count: samples per drop.
        generator: of the draws; drops are drawn one after the other, so a drop's samples depend on its place in the
            batch.
        proposal: `pool`, the equally weighted pool with 2 % of uniform, or `uniform`.

    Returns:
        The samples.

    Raises:
        ConfigError: an unknown proposal, or no samples.
    """
    if proposal not in PROPOSALS:
        raise ConfigError(f"proposal must be one of {list(PROPOSALS)}, got {proposal!r}")
    if count < 1:
        raise ConfigError(f"the number of samples must be at least 1, got {count}")
    blocks = [_draw(part, domain, count, generator, proposal) for part in _blocks(measured, count)]
    batch = measured.range_m.shape[:-1]
    position, density, log_proposal = map(torch.cat, zip(*blocks, strict=True))
    shape = (*batch, -1, count)
    return Samples(position.reshape(shape).mT, density.reshape(shape).mT, log_proposal.reshape(*batch, count))


def _blocks(measured: StationMeasurements, count: int) -> list[StationMeasurements]:
    """The drops in blocks of bounded size."""
    stations = measured.range_m.shape[-1]
    shared = measured.bs_position.ndim == 2
    where = measured.bs_position if shared else measured.bs_position.reshape(-1, stations, 3)
    fields = [field.reshape(-1, stations) for field in measured[1:]]
    size = max(1, BLOCK // (stations * count))
    blocks = zip(*(field.split(size) for field in fields), strict=True)
    return [
        StationMeasurements(where if shared else where[i * size : (i + 1) * size], *block)
        for i, block in enumerate(blocks)
    ]


def _draw(
    measured: StationMeasurements, domain: Domain, count: int, generator: torch.Generator, proposal: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions [drop xyz sample], log-densities [drop member sample] and log-proposals [drop sample]."""
    on_grid = log_likelihood(measured, domain.points)  # [drop member cell]
    drops, _, cells = on_grid.shape
    normaliser = log_normaliser(on_grid, domain)
    if proposal == "uniform":
        index = torch.randint(cells, (drops, count), generator=generator)
        log_share = torch.full((drops, count), -math.log(cells), dtype=torch.float64)
    else:
        equal = measured.members.double() / measured.members.sum(-1, keepdim=True)
        pool = (equal[:, None] @ on_grid)[:, 0]
        share = pool.sub_(pool.amax(-1, keepdim=True)).clamp_(min=NEGLIGIBLE).exp_()
        share.mul_((1.0 - UNIFORM_SHARE) / share.sum(-1, keepdim=True)).add_(UNIFORM_SHARE / cells)
        index = _systematic(share, torch.rand(drops, 1, dtype=torch.float64, generator=generator), count)
        log_share = share.log_().gather(-1, index)
    position = torch.stack([axis.expand(drops, -1).gather(-1, index) for axis in domain.points.T], 1)
    for i in domain.unknown:
        inside = torch.rand(drops, count, dtype=torch.float64, generator=generator).sub_(0.5)
        position[:, i].addcmul_(inside, domain.cell[i])
    density = log_likelihood(measured, position.mT).sub_(normaliser[..., None])
    return position, density, log_share.sub_(domain.log_cell)


def _systematic(share: Tensor, start: Tensor, count: int) -> Tensor:
    """Cells [drop sample] in rising order, by their shares [drop cell]; start [drop 1] in 0 to 1."""
    reach = share.cumsum(-1)
    upto = (reach * (count / reach[:, -1:])).sub_(start).ceil_().long()  # samples s with s + start below
    upto[:, -1] = count
    drawn = upto.diff(dim=-1, prepend=torch.zeros_like(upto[:, :1])).flatten()
    cell = torch.arange(share.shape[-1]).repeat(len(share))
    return cell.repeat_interleave(drawn).unflatten(0, (len(share), count))
