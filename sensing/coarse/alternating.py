"""User and clock offsets from triangulated scatterers, in turns (paper 1, Algorithm 2).

    F(u, delta) = sum_{m,q} e_mq^2 + w sum_q (c delta_q)^2,   e_mq = |s_m - u| + |s_m - b_q| + c delta_q - range_mq

The user moves along the negative gradient with Armijo backtracking while the offsets rest; the offsets follow in closed
form while the user rests. The paper has no prior (w = 0); with one, w = sigma_e^2 / (c sigma)^2.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.pairs import region_box, wrap
from sensing.containers import Deployment
from sensing.geometry import direction_and_range
from sensing.units import SPEED_OF_LIGHT

SUFFICIENT = 1e-4  # Armijo: share of the linear prediction by which F must fall
SHORTEST = 2.0**-40  # a step shorter than this part of the first trial is no step


class UserFix(NamedTuple):
    """Where the alternation ended."""

    ue_position: Tensor  # [* xyz] [m]
    offset_m: Tensor  # [* bs] c times the clock offset [m], the representative nearest to zero
    cost: Tensor  # [*] F [m^2]
    rounds: Tensor  # [*] int64, gradient steps taken


class _Ranges(NamedTuple):
    """Shared scatterers and what their paths measured."""

    scatterer: Tensor  # [* m xyz] [m]
    remainder: Tensor  # [* m bs] measured range less the station's leg [m]
    mask: Tensor  # [* m bs]
    weight: Tensor  # [] of the squared offsets
    ambiguity: Tensor  # []


def locate_alternating(
    scatterer: Tensor,
    range_m: Tensor,
    mask: Tensor,
    deployment: Deployment,
    start: Tensor | None = None,
    prior: bool = False,
    range_std_m: float = 0.3,
    rounds: int = 500,
    first_step_m: float = 1.0,
    tolerance: float = 1e-9,
) -> UserFix:
    """Alternate gradient steps of the user and closed forms of the offsets.

    Args:
        scatterer: [b m xyz] positions of the shared scatterers [m].
        range_m: [b m bs] measured path lengths, offsets included [m].
        mask: [b m bs] bool, which station measured which scatterer.
        deployment: stations, region (its centre is the default start) and the offsets' prior.
        start: [b xyz] where the user starts; the offsets start at zero, the mean of their prior.
        prior: use the Gaussian prior of the offsets; as published there is none.
        range_std_m: standard deviation of a residual e [m], which balances the prior.
        rounds: most alternations.
        first_step_m: length of the first trial step [m]; later ones start from twice the last accepted step size.
        tolerance: a scene rests when F falls by less than this share.

    Returns:
        UserFix; a scene without measurements stays at its start with zero offsets.
    """
    leg = (scatterer[..., :, None, :] - deployment.bs_position).norm(dim=-1)
    weight = range_m.new_zeros(())
    if prior:
        weight = (range_std_m / (SPEED_OF_LIGHT * deployment.clock_offset_std).clamp_min(1e-6)).square()
    data = _Ranges(scatterer, range_m - leg, mask, weight, deployment.range_ambiguity)
    centre = region_box(deployment).mean(0)
    ue = centre.expand(len(scatterer), 3).clone() if start is None else start.clone()
    offset = range_m.new_zeros(len(scatterer), len(deployment.bs_position))
    cost, gradient = _cost(ue, offset, data)
    slope = gradient.norm(dim=-1)
    size = first_step_m / slope.where(slope > 0, torch.ones_like(slope))
    active, taken = slope > 0, torch.zeros_like(slope, dtype=torch.int64)
    for _ in range(rounds):
        if not bool(active.any()):
            break
        new, size, moved = _descend(ue, offset, cost, gradient, size, active, data)
        clocks = best_offsets(new, data.scatterer, data.remainder, mask, weight, data.ambiguity)
        clocks = torch.where(active[:, None], clocks, offset)
        new_cost, new_gradient = _cost(new, clocks, data)
        falls = cost - new_cost > tolerance * cost
        ue, offset, cost, gradient = new, clocks, new_cost, new_gradient
        taken, active = taken + (active & moved), active & falls
        size = torch.where(active, 2.0 * size, size)
    return UserFix(ue, wrap(offset, deployment.range_ambiguity), cost, taken)


def best_offsets(
    ue: Tensor, scatterer: Tensor, remainder: Tensor, mask: Tensor, weight: Tensor, ambiguity: Tensor
) -> Tensor:
    """Closed form `c delta_q = sum_m (range_mq - |s_m - b_q| - |s_m - u|) / (count_q + w)`, [b bs] [m].

    Lengths are known modulo the ambiguity, so the mean is taken around the direction of the mean phasor.

    Args:
        ue: [b xyz] [m].
        scatterer: [b m xyz] [m].
        remainder: [b m bs] measured range less the station's leg [m].
        mask: [b m bs] bool.
        weight: [] w; zero as published.
        ambiguity: [] [m], inf where there is none.
    """
    single = (remainder - (scatterer - ue[:, None]).norm(dim=-1)[..., None]) * mask
    count = mask.sum(-2)
    centre = torch.zeros_like(count, dtype=single.dtype)
    if bool(torch.isfinite(ambiguity)):
        turn = 2.0 * torch.pi * single / ambiguity
        centre = torch.atan2((turn.sin() * mask).sum(-2), (turn.cos() * mask).sum(-2)) * ambiguity / (2.0 * torch.pi)
    total = centre * count + (wrap(single - centre[..., None, :], ambiguity) * mask).sum(-2)
    weighted = count + weight
    return total / weighted.where(weighted > 0, torch.ones_like(weighted))


def _cost(ue: Tensor, offset: Tensor, data: _Ranges) -> tuple[Tensor, Tensor]:
    """F [b] and its derivative by the user [b xyz]."""
    away, leg = direction_and_range(ue[:, None], data.scatterer)
    residual = wrap(leg[..., None] + offset[..., None, :] - data.remainder, data.ambiguity) * data.mask
    cost = residual.square().sum((-2, -1)) + data.weight * offset.square().sum(-1)
    return cost, 2.0 * (residual.sum(-1)[..., None] * away).sum(-2)


def _descend(
    ue: Tensor, offset: Tensor, cost: Tensor, gradient: Tensor, size: Tensor, active: Tensor, data: _Ranges
) -> tuple[Tensor, Tensor, Tensor]:
    """One gradient step of the user: position, step size and whether there was a step."""
    slope2, shortest = gradient.square().sum(-1), SHORTEST * size
    searching, accepted = active & (slope2 > 0), torch.zeros_like(active)
    while bool(searching.any()):
        trial = ue - size[:, None] * gradient
        good = searching & (_cost(trial, offset, data)[0] <= cost - SUFFICIENT * size * slope2)
        accepted = accepted | good
        searching = searching & ~good & (size > shortest)
        size = torch.where(searching, 0.5 * size, size)
    return torch.where(accepted[:, None], ue - size[:, None] * gradient, ue), size, accepted
