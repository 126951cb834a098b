"""Samples of the position and the density that they were drawn from: Monte Carlo importance sampling (paper 3, IV-A).

A proposal is piecewise constant on the cells of the domain: a cell is drawn, then a place within it. Its density is
known exactly, so nothing is approximated beyond the sampling itself.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.fusion.domain import Domain
from sensing.fusion.likelihoods import log_likelihood, log_normaliser
from sensing.fusion.measurements import StationMeasurements

UNIFORM_SHARE = 0.02
"""Share of the uniform density in the pool proposal, so that no part of the domain is without samples."""

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
    on_grid = log_likelihood(measured, domain.points)  # [* member cell]
    normaliser = log_normaliser(on_grid, domain)  # [* member]
    batch, cells = on_grid.shape[:-2], on_grid.shape[-1]
    uniform = -math.log(cells)
    if proposal == "uniform":
        index = torch.randint(cells, (*batch, count), generator=generator)
        log_cell_share = torch.full((*batch, count), uniform, dtype=torch.float64)
    else:
        equal = measured.members / measured.members.sum(-1, keepdim=True)
        pool = (equal[..., None, :].double() @ on_grid)[..., 0, :].log_softmax(-1)
        share = (1.0 - UNIFORM_SHARE) * pool.exp() + UNIFORM_SHARE / cells
        flat = share.reshape(-1, cells)
        drawn = torch.rand(len(flat), count, dtype=torch.float64, generator=generator)
        reach = flat.cumsum(-1)
        index = torch.searchsorted(reach, drawn * reach[:, -1:]).clamp(max=cells - 1).reshape(*batch, count)
        log_cell_share = share.gather(-1, index).log()
    inside = torch.rand(*batch, count, 3, dtype=torch.float64, generator=generator) - 0.5
    position = domain.points[index] + inside * domain.cell
    density = log_likelihood(measured, position) - normaliser[..., None]
    return Samples(position, density.mT, log_cell_share - domain.log_cell)
