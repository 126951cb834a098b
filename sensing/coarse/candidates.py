"""Solutions under trial: those of all scenes along one axis, and how the evidence decides between them."""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.least_squares import Solution, inverse_information
from sensing.coarse.repair import take

REPEAT_M = 0.2  # user modes closer than this [m] are one
HOPELESS = 40.0  # evidence, in nats, that further associations do not make up for
RIVAL_GAP = 6.0  # evidence, in nats, by which a rival mode may trail


class Candidates(NamedTuple):
    """Solutions under trial, those of all scenes along one axis."""

    place: Tensor  # [n] int64: scene times the candidates of a scene, plus the candidate
    path: Tensor  # [n cluster bs]
    solution: Solution  # [n ...]
    evidence: Tensor  # [n]


class Located(NamedTuple):
    """The best candidate of every scene."""

    path: Tensor  # [b cluster bs] member paths, -1 for none
    solution: Solution
    rival: Tensor  # [b xyz] from the user to the furthest mode that fits about as well; zero where there is none
    evidence: Tensor  # [b]


def table(values: Tensor, place: Tensor, scenes: int, num: int, fill: float) -> Tensor:
    """Values [n ...] of candidates as [scene candidate ...]."""
    table = values.new_full((scenes * num, *values.shape[1:]), fill)
    return table.index_copy(0, place, values).unflatten(0, (scenes, num))


def promising(candidates: Candidates, scenes: int, num: int, gap: float = HOPELESS) -> Candidates:
    """Candidates that are no repeats of a better one and not hopeless; the best of every scene in any case."""
    evidence = table(candidates.evidence, candidates.place, scenes, num, -torch.inf)
    state = torch.cat([candidates.solution.ue_position, candidates.solution.offset_m], -1)
    state = table(state, candidates.place, scenes, num, torch.nan)
    best, leader = evidence.max(1)
    order = evidence.argsort(dim=1, descending=True, stable=True)
    ranked = state.gather(1, order[..., None].expand_as(state))
    near = (ranked[:, :, None] - ranked[:, None]).norm(dim=-1) < REPEAT_M
    repeat = torch.zeros_like(near[..., 0]).scatter(1, order, torch.tril(near, diagonal=-1).any(-1))
    keep = ~repeat & (evidence > best[:, None] - gap)
    keep = keep | torch.nn.functional.one_hot(leader, num).bool()
    rows = keep.flatten()[candidates.place].nonzero().squeeze(-1)
    return pick(candidates, rows)


def pick(candidates: Candidates, rows: Tensor) -> Candidates:
    """Some of the candidates."""
    place, path, solution, evidence = candidates
    return Candidates(place[rows], path[rows], take(solution, rows), evidence[rows])


def decide(candidates: Candidates, scenes: int, num: int) -> Located:
    """The best candidate of every scene, and the way to the furthest that fits about as well [b xyz]."""
    row = table(torch.arange(len(candidates.place), device=candidates.place.device), candidates.place, scenes, num, 0)
    evidence = table(candidates.evidence, candidates.place, scenes, num, -torch.inf)
    user = table(candidates.solution.ue_position, candidates.place, scenes, num, 0.0)
    best, leader = evidence.max(1)
    chosen = pick(candidates, row.gather(1, leader[:, None]).squeeze(1))
    shift = user - chosen.solution.ue_position[:, None]
    away = shift.norm(dim=-1)
    spread = inverse_information(chosen.solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1).clamp_min(0.0)
    rival = (away > 4.0 * spread.sqrt()[:, None]) & (evidence > best[:, None] - RIVAL_GAP)
    furthest = (away * rival).argmax(1)
    shift = shift[torch.arange(scenes, device=away.device), furthest]
    return Located(
        chosen.path, chosen.solution, torch.where(rival.any(-1)[:, None], shift, torch.zeros_like(shift)), best
    )
