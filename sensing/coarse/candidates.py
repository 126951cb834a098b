"""Solutions under trial: those of all scenes along one axis, and how the evidence decides between them."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sensing.coarse.least_squares import Solution
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.rays import take

T = TypeVar("T")

REPEAT_M = 0.2  # user modes closer than this [m] are one
HOPELESS = 40.0  # evidence, in nats, that further associations do not make up for
RIVAL_GAP = 6.0  # evidence, in nats, by which a rival mode may trail
RIVAL_SPREAD = 4.0  # standard deviations of the user beyond which another mode is a rival


class Candidates(NamedTuple):
    """Solutions under trial, those of all scenes along one axis, one scene after the other."""

    scene: Tensor  # [n] int64, never falling
    path: Tensor  # [n cluster bs] member paths, -1 for none
    direct: Tensor  # [n bs] lines of sight, -1 for none
    solution: Solution  # [n ...]
    evidence: Tensor  # [n]


class Located(NamedTuple):
    """The best candidate of every scene."""

    path: Tensor  # [b cluster bs] member paths, -1 for none
    direct: Tensor  # [b bs] lines of sight, -1 for none
    solution: Solution
    evidence: Tensor  # [b]
    rival: Tensor  # [b xyz] from the user to the furthest mode that fits about as well; zero where there is none


def _column(scene: Tensor) -> Tensor:
    """Number of each candidate among those of its scene, [n]."""
    return torch.arange(len(scene), device=scene.device) - torch.searchsorted(scene, scene)


def _table(values: Tensor, scene: Tensor, scenes: int, fill: float) -> Tensor:
    """Values [n ...] of candidates as [scene candidate ...]."""
    table = values.new_full((scenes, int(scene.bincount().max()), *values.shape[1:]), fill)
    table[scene, _column(scene)] = values
    return table


def best_distinct(
    evidence: Tensor, state: Tensor, scene: Tensor, scenes: int, gap: float, most: int | None = None
) -> Tensor:
    """Which candidates are no repeats of a better one and not hopeless; the best of every scene in any case.

    Args:
        evidence: [n] in nats.
        state: [n x] what tells one candidate from another [m].
        scene: [n] scene of each, never falling.
        scenes: their number.
        gap: evidence by which a candidate may trail the best of its scene.
        most: candidates kept of a scene; all when None.

    Returns:
        Their indices, in order.
    """
    ranked, order = _table(evidence, scene, scenes, -torch.inf).sort(dim=1, descending=True, stable=True)
    place = _table(state, scene, scenes, torch.nan)
    place = place.gather(1, order[..., None].expand_as(place))
    repeat = torch.tril((place[:, :, None] - place[:, None]).norm(dim=-1) < REPEAT_M, diagonal=-1).any(-1)
    keep = ~repeat & (ranked > ranked[:, :1] - gap)
    keep[:, 0] = True
    if most is not None:
        keep = keep & (keep.cumsum(1) <= most)
    return torch.zeros_like(keep).scatter(1, order, keep)[scene, _column(scene)].nonzero().squeeze(-1)


def promising(candidates: Candidates, scenes: int, gap: float = HOPELESS) -> Candidates:
    """Those that are no repeats of a better one and not hopeless; the best of every scene in any case."""
    state = torch.cat([candidates.solution.ue_position, candidates.solution.offset_m], -1)
    return take(candidates, best_distinct(candidates.evidence, state, candidates.scene, scenes, gap))


def decide(
    candidates: Candidates, scenes: int, rival_gap: float = RIVAL_GAP, rival_spread: float = RIVAL_SPREAD
) -> Located:
    """The best candidate of every scene, and the way to the furthest that fits about as well.

    Args:
        candidates: at least one of every scene.
        scenes: their number.
        rival_gap: evidence, in nats, by which a rival may trail.
        rival_spread: standard deviations of the best user beyond which another mode is a rival.
    """
    scene, evidence, user = candidates.scene, candidates.evidence, candidates.solution.ue_position
    best, leader = _table(evidence, scene, scenes, -torch.inf).max(1)
    rows = torch.arange(scenes, device=scene.device)
    _, path, direct, solution, _ = take(candidates, torch.searchsorted(scene, rows) + leader)
    rival = way_to_rival(user, evidence, scene, solution, rival_gap, rival_spread)
    return Located(path, direct, solution, best, rival)


def way_to_rival(
    user: Tensor, evidence: Tensor, scene: Tensor, solution: Solution, gap: float, spread: float, least_m: float = 0.0
) -> Tensor:
    """Way [b xyz] from the solution of every scene to the furthest user that fits about as well; zero where none does.

    Args:
        user: candidates [n xyz] [m].
        evidence: theirs, [n] in nats.
        scene: [n] scene of each, never falling.
        solution: of every scene.
        gap: evidence, in nats, by which a rival may trail.
        spread: standard deviations of the solution's user beyond which another one is a rival.
        least_m: least distance of a rival [m].
    """
    scenes = len(solution.ue_position)
    evidence = _table(evidence, scene, scenes, -torch.inf)
    shift = _table(user, scene, scenes, 0.0) - solution.ue_position[:, None]
    away = shift.norm(dim=-1)
    variance = inverse_information(solution.information).diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1).clamp_min(0.0)
    apart = away > (spread * variance.sqrt()).clamp_min(least_m)[:, None]
    rival = apart & (evidence > evidence.amax(1, keepdim=True) - gap)
    way = shift[torch.arange(scenes, device=scene.device), (away * rival).argmax(1)]
    return torch.where(rival.any(-1)[:, None], way, torch.zeros_like(way))


def merge(better: Tensor, new: T, old: T) -> T:
    """Rows of `new` where it is better [n], else of `old`; where one has fewer clusters, it gets absent ones."""

    def choose(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor):
            return type(b)(*map(choose, a, b))
        a, b = _padded(a, b), _padded(b, a)
        return torch.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return choose(new, old)


def _padded(field: Tensor, other: Tensor) -> Tensor:
    """A field [n cluster ...] with as many clusters as another at least: indices -1, else zeros."""
    missing = 0 if field.ndim == 1 else max(other.shape[1] - field.shape[1], 0)
    fill = 0.0 if field.is_floating_point() else -1
    return torch.cat([field, field.new_full((len(field), missing, *field.shape[2:]), fill)], 1) if missing else field
