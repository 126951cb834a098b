"""Clock offset differences between stations by voting over ray pairs.

All true pairs of two stations share one offset difference; accidental crossings scatter over the whole delay range. The
vote for a value x is the log-likelihood ratio of a mixture,

    V_qp(x) = sum_h log( 1 + odds * ray_ratio_h * span * N(wrap(difference_h - x); 0, var_h) )

and the stations are aligned one after the other, from several seeds, so that the total vote over all pairs plus the log
prior of the offsets is largest. Independent N(0, s^2) offsets, known up to a common constant, cost
`sum_{p<q} wrap(D_p - D_q)^2 / (2 n s^2)` over the n stations aligned: nothing for free clocks, and for clocks that are
nearly right what tells few true crossings from many accidental ones at low SNR.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sensing.coarse.pairs import RayPairs, wrap


class Alignment(NamedTuple):
    """Clock offsets relative to station 0, best hypothesis first."""

    offset_m: Tensor  # [* hypothesis bs] c (delta_q - delta_0) [m]
    score: Tensor  # [* hypothesis] total vote
    aligned: Tensor  # [* hypothesis bs] bool: at least one pair voted for the station's offset


def _vote(residual: Tensor, variance: Tensor, ray_log_ratio: Tensor, span: Tensor, log_odds: float) -> Tensor:
    """`log(1 + odds * ray ratio * span * N(residual; 0, variance))`, elementwise; a pair gives at most 30 nats."""
    density = -0.5 * residual.square() / variance - 0.5 * torch.log(2.0 * torch.pi * variance) + torch.log(span)
    return torch.nn.functional.softplus((density + ray_log_ratio + log_odds).clamp(max=30.0))


def _log_vote(value: Tensor, pairs: RayPairs, span: Tensor, ambiguity: Tensor, log_odds: float) -> Tensor:
    """Vote of every pair for values [* h pair]; zero for masked pairs."""
    residual = wrap(pairs.offset_difference[:, None, :] - value, ambiguity)
    vote = _vote(residual, pairs.offset_variance[:, None, :], pairs.ray_log_ratio[:, None, :], span, log_odds)
    return torch.where(pairs.mask[:, None, :], vote, torch.zeros_like(vote))


def align_stations(
    pairs: RayPairs,
    num_bs: int,
    ambiguity: Tensor,
    span: Tensor,
    offset_std_m: Tensor | float = torch.inf,
    hypotheses: int = 3,
    seeds: int = 8,
    proposals: int = 32,
    log_odds: float = -2.0,
) -> Alignment:
    """Offset differences of all stations to station 0.

    Args:
        pairs: plausible ray pairs [b pair].
        num_bs: number of stations.
        ambiguity: [] range ambiguity [m], inf if none.
        span: [] width over which accidental differences spread [m].
        offset_std_m: [] standard deviation s of the offsets' prior [m].
        hypotheses: distinct solutions returned.
        seeds: pairs of stations and values from which the alignment is grown.
        proposals: best supported values that may join a further station.
        log_odds: prior log odds that a gated pair is a true one.

    Returns:
        Alignment with `hypotheses` rows; equal rows where fewer exist.
    """
    batch, size = pairs.mask.shape
    device = pairs.mask.device
    variance = torch.as_tensor(offset_std_m, dtype=pairs.offset_difference.dtype, device=device).square()
    # how well every pair's own difference is supported by the other pairs of the same two stations
    same = (pairs.station[:, :, None] == pairs.station[:, None, :]).all(-1)
    own = pairs.offset_difference[:, :, None].expand(-1, -1, size)
    support = (_log_vote(own, pairs, span, ambiguity, log_odds) * same).sum(-1)  # [b pair]
    # a pair's own error counts too, or known clocks (s = 0) would forbid every pair
    support = support - 0.5 * wrap(pairs.offset_difference, ambiguity).square() / (
        2.0 * variance + pairs.offset_variance
    )
    support = torch.where(pairs.mask, support, torch.full_like(support, -torch.inf))
    seeds = min(seeds, size)
    peak_score, peak = _distinct_peaks(support, pairs, same, ambiguity, min(max(proposals, seeds), size))
    seed_score, seed = peak_score[:, :seeds], peak[:, :seeds]
    rows = torch.arange(batch, device=device)[:, None]
    first, second = pairs.station[rows, seed].unbind(-1)  # [b seed]
    offset = torch.zeros(batch, seeds, num_bs, dtype=support.dtype, device=device)
    offset.scatter_(2, first[..., None], pairs.offset_difference[rows, seed][..., None])
    known = torch.nn.functional.one_hot(first, num_bs).bool() | torch.nn.functional.one_hot(second, num_bs).bool()
    scenes = torch.arange(batch, device=device)[:, None, None]
    seed_axis = torch.arange(seeds, device=device)[None, :, None]
    a, b = pairs.station[rows, peak].unbind(-1)  # [b proposal]
    value_ab = pairs.offset_difference[rows, peak][:, None]
    spread = 2.0 * variance + pairs.offset_variance[rows, peak][:, None]
    proposed = torch.isfinite(peak_score)[:, None]
    aligned = known & torch.isfinite(seed_score)[..., None]
    for _ in range(num_bs - 2):
        known_a, known_b = (known[scenes, seed_axis, index[:, None, :]] for index in (a, b))
        extends = (known_a ^ known_b) & proposed
        # the pair proposes an offset for its unknown station
        offset_a, offset_b = (offset[scenes, seed_axis, index[:, None, :]] for index in (a, b))
        proposal = torch.where(known_a, offset_a - value_ab, offset_b + value_ab)
        new = torch.where(known_a, b[:, None, :].expand_as(known_a), a[:, None, :].expand_as(known_a))
        # vote of all pairs between that station and the aligned ones for the proposal, [b seed proposal pair]
        vote = _proposal_votes(proposal, new, offset, known, pairs, span, ambiguity, log_odds)
        apart = wrap(proposal[..., None] - offset[:, :, None], ambiguity).square() * known[:, :, None]
        vote = vote - apart.sum(-1) / (spread * (known.sum(-1, keepdim=True) + 1.0))
        vote = torch.where(extends, vote, torch.full_like(vote, -torch.inf))
        best_vote, best = vote.max(-1)
        found = torch.isfinite(best_vote)
        station = torch.where(found, new.gather(-1, best[..., None]).squeeze(-1), (~known).int().argmax(-1))
        value = torch.where(found, proposal.gather(-1, best[..., None]).squeeze(-1), torch.zeros_like(best_vote))
        joins = torch.nn.functional.one_hot(station, num_bs).bool()
        offset = torch.where(joins & ~known.all(-1)[..., None], value[..., None], offset)
        known = known | joins
        aligned = aligned | (joins & found[..., None])
    offset = wrap(offset - offset[..., :1], ambiguity)
    offset, score = _polish(offset, pairs, span, ambiguity, log_odds, variance)
    return _best_distinct(offset, score, aligned, pairs, ambiguity, hypotheses)


def _distinct_peaks(
    support: Tensor, pairs: RayPairs, same: Tensor, ambiguity: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The `count` best supported pairs, one for each station pair and value."""
    near = wrap(pairs.offset_difference[:, :, None] - pairs.offset_difference[:, None, :], ambiguity).square() < 9.0 * (
        pairs.offset_variance[:, :, None] + pairs.offset_variance[:, None, :]
    )
    better = support[:, None, :] > support[:, :, None]
    dominated = (near & same & better).any(-1)
    return torch.where(dominated, support - 1e6, support).topk(count, dim=-1)


def _proposal_votes(
    proposal: Tensor,
    new: Tensor,
    offset: Tensor,
    known: Tensor,
    pairs: RayPairs,
    span: Tensor,
    ambiguity: Tensor,
    log_odds: float,
) -> Tensor:
    """Votes [b seed proposal] of the pairs that join each proposal's station with aligned ones."""
    batch, seeds, _ = proposal.shape
    scenes = torch.arange(batch, device=proposal.device)[:, None, None]
    seed_axis = torch.arange(seeds, device=proposal.device)[None, :, None]
    a, b = (pairs.station[..., side][:, None, :] for side in (0, 1))  # [b 1 pair]
    known_a, known_b = known[scenes, seed_axis, a], known[scenes, seed_axis, b]
    offset_a, offset_b = offset[scenes, seed_axis, a], offset[scenes, seed_axis, b]
    implied = torch.where(
        known_a, offset_a - pairs.offset_difference[:, None], offset_b + pairs.offset_difference[:, None]
    )
    joined = torch.where(known_a, b, a)  # the unknown station of each voting pair
    votes = (known_a ^ known_b) & pairs.mask[:, None, :]
    residual = wrap(proposal[..., :, None] - implied[..., None, :], ambiguity)
    ray_log_ratio, variance = pairs.ray_log_ratio[:, None, None, :], pairs.offset_variance[:, None, None, :]
    vote = _vote(residual, variance, ray_log_ratio, span, log_odds)
    counts = votes[..., None, :] & (new[..., :, None] == joined[..., None, :])
    return torch.where(counts, vote, torch.zeros_like(vote)).sum(-1)


def _polish(
    offset: Tensor, pairs: RayPairs, span: Tensor, ambiguity: Tensor, log_odds: float, prior_variance: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted least squares of all offsets over the pairs that support them (two reweightings), and the score."""
    num_bs = offset.shape[-1]
    # differences alone are known: the prior's precision is the projector off the common offset, over s^2
    prior = torch.eye(num_bs, dtype=offset.dtype, device=offset.device) - 1.0 / num_bs
    prior = prior / prior_variance.clamp_min(pairs.offset_variance.new_tensor(1e-6))
    score = torch.zeros(offset.shape[:-1], dtype=offset.dtype, device=offset.device)
    for sweep in range(3):
        index_a, index_b = (pairs.station[..., side][:, None].expand(-1, offset.shape[1], -1) for side in (0, 1))
        predicted = offset.gather(2, index_a) - offset.gather(2, index_b)
        vote = _log_vote(predicted, pairs, span, ambiguity, log_odds)
        apart = wrap(offset[..., :, None] - offset[..., None, :], ambiguity).square().sum((-2, -1))
        score = vote.sum(-1) - apart / (4.0 * num_bs * prior_variance.clamp_min(1e-6))
        if sweep == 2:
            break
        # responsibility of the "true pair" component, 1 - exp(-vote)
        weight = -torch.expm1(-vote) / pairs.offset_variance[:, None]
        residual = wrap(pairs.offset_difference[:, None] - predicted, ambiguity)
        incidence = torch.nn.functional.one_hot(pairs.station[..., 0], num_bs) - torch.nn.functional.one_hot(
            pairs.station[..., 1], num_bs
        )
        incidence = incidence.to(offset.dtype)[:, None]
        normal = torch.einsum(
            "bsh,bshi,bshj->bsij",
            weight,
            incidence.expand(*weight.shape, num_bs),
            incidence.expand(*weight.shape, num_bs),
        )
        right = torch.einsum("bsh,bsh,bshi->bsi", weight, residual, incidence.expand(*weight.shape, num_bs))
        normal, right = normal + prior, right - offset @ prior
        largest = normal.diagonal(dim1=-2, dim2=-1).amax(-1)
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))  # without votes nothing moves
        anchor = torch.zeros(num_bs, num_bs, dtype=offset.dtype, device=offset.device)
        anchor[0, 0] = 1.0
        eye = torch.eye(num_bs, dtype=offset.dtype, device=offset.device)
        system = normal + scale[..., None, None] * (anchor + 1e-9 * eye)
        offset = offset + torch.linalg.solve_ex(system, right)[0]
        offset = offset - offset[..., :1]
    return offset, score


def _best_distinct(
    offset: Tensor, score: Tensor, aligned: Tensor, pairs: RayPairs, ambiguity: Tensor, count: int
) -> Alignment:
    """Sort by score and keep solutions that differ by more than a usual pair's standard deviation."""
    order = score.argsort(dim=-1, descending=True)
    offset = offset.gather(1, order[..., None].expand_as(offset))
    aligned = aligned.gather(1, order[..., None].expand_as(aligned))
    score = score.gather(1, order)
    gap = wrap(offset[:, :, None] - offset[:, None, :], ambiguity).abs().amax(-1)
    usual = torch.where(pairs.mask, pairs.offset_variance, torch.nan).nanmedian(-1).values.nan_to_num(1.0)
    repeat = torch.tril(gap <= usual.sqrt()[:, None, None], diagonal=-1).any(-1)
    rank = torch.where(repeat, torch.full_like(score, -torch.inf), score)
    best, chosen = rank.topk(min(count, rank.shape[-1]), dim=-1)
    chosen = torch.where(torch.isfinite(best), chosen, torch.zeros_like(chosen))
    rows = torch.arange(len(offset), device=offset.device)[:, None]
    return Alignment(wrap(offset[rows, chosen], ambiguity), score[rows, chosen], aligned[rows, chosen])
