"""Learned log-linear fusion: weights, and bias corrections of the ranges, around the position layer.

Layers alternate between the position of the pool and the weights of its members, like expectation propagation: what a
layer sees of a range is how it fits to all the other information, the cavity, in which it plays no part,

    e_i = d_i - |p_(-i) - b_i|,        s_i^2 = u_i^T J_(-i)^-1 u_i + std_i^2,

its residual there and the standard deviation expected of it. The bias has the truncated Gaussian law that follows from
e_i, s_i and the law of biases; a small network, the same for all stations, learns the moments of it: the weight, and
the bias `e_i g + s_i h`. Unknown parameters of that law show in the other stations' residuals, which reach the network
as messages, pooled by mean and maximum, so that neither the order nor the number of stations matters. Neutral at
zero: all weights one, all corrections zero, and the position that of `solve_position` with equal weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sensing.fusion.domain import Domain
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.modes import OPEN, judged
from sensing.fusion.network import MemberNetwork, bounded_factor
from sensing.fusion.solve import Solution, normal_equations, pose, ridge, solve_position, solve_small
from sensing.fusion.start import start_position

FAINT = 100.0
"""Deviation of a cavity, in deviations of the range, from which on it tells too little to correct anything by."""


class FusedPosition(NamedTuple):
    """Position of a weighted pool."""

    position: Tensor  # [* xyz] [m]
    covariance: Tensor  # [* n n] of the pool, over the unknown coordinates [m^2]; inf on the diagonal where open
    weight: Tensor  # [* 2 bs] of ranges and directions, not normalised; 0: not measured
    bias_m: Tensor  # [* bs] taken off the ranges [m]
    mirror: Tensor  # [* xyz] second mode where flagged, else the position [m]
    flags: Tensor  # [*] int64, of `sensing.fusion.modes.FusionFlag`


class LearnedFusion(nn.Module):
    """Position from stations' measurements with learned weights.

    Args:
        layers: corrections, each with a network of its own.
        hidden: width of the networks.
        steps: Gauss-Newton steps before the first and after each correction.
        limit: largest absolute log weight.
        correct_bias: take learned biases off the ranges; false: learned weights alone.
    """

    NUM_FEATURES = 10

    def __init__(
        self, layers: int = 3, hidden: int = 24, steps: int = 2, limit: float = 6.0, correct_bias: bool = True
    ) -> None:
        super().__init__()
        self.sites = nn.ModuleList(MemberNetwork(self.NUM_FEATURES, hidden, 4) for _ in range(layers))
        self.steps, self.limit, self.correct_bias = steps, limit, correct_bias

    def forward(self, measured: StationMeasurements, domain: Domain, start: Tensor | None = None) -> FusedPosition:
        """Fused positions of a batch of drops, none of which depends on the others.

        Args:
            measured: [* bs], any number of stations, infinite deviations where there is no measurement.
            domain: gives the unknown coordinates and the values of the known ones.
            start: [* xyz] of the position layer [m]; None: from the measurements.

        Returns:
            The position, inside the domain; differentiable in the network and in the measurements, except where the
            most likely position lies outside.

        Raises:
            ShapeError: an axis does not fit.
            DomainError: a measurement is not finite, out of its range, or missing altogether.
        """
        begun = start_position(measured.validate(), domain) if start is None else start
        *_, (solution, weight, bias) = self.iterates(measured, domain, begun)
        verdict = judged(solution.position, measured, weight, bias, domain)
        covariance = _covariance(verdict.information)
        return FusedPosition(verdict.position, covariance, weight, bias, verdict.mirror, verdict.flags)

    def iterates(
        self, measured: StationMeasurements, domain: Domain, start: Tensor
    ) -> list[tuple[Solution, Tensor, Tensor]]:
        """Solution, weights [* 2 bs] and bias [* bs] before the first and after each correction."""
        unknown, direction = domain.unknown, measured.direction
        has = measured.precision > 0
        # as many numbers as unknowns fit exactly, whatever their biases: nothing to correct anything by
        redundant = (has[..., 0, :].sum(-1) + 2 * has[..., 1, :].sum(-1) > len(unknown))[..., None]
        weight, bias = has.to(start.dtype), torch.zeros_like(measured.range_m)
        solution = solve_position(start, measured, weight, bias, unknown, self.steps, direction)
        found = [(solution, weight, bias)]
        for site in self.sites:
            assert isinstance(site, MemberNetwork)
            position = found[-1][0].position
            features, unit, residual, spread = self.features(position, measured, weight, bias, unknown, direction)
            std = torch.where(has[..., 0, :], measured.range_std, 1.0)
            known = 1.0 / (1.0 + (spread / (FAINT * std)).pow(4))
            known = torch.where(redundant, known, 0.0)
            # log weights of range and direction, share of the residual and shift that are bias
            raw = known[..., None] * site.corrections(features, unit, has.any(-2))
            factor = bounded_factor(raw[..., :2], self.limit).mT
            weight = torch.where(has, factor, 0.0)
            if self.correct_bias:
                shift = residual * raw[..., 2] + spread * raw[..., 3]
                bias = torch.where(has[..., 0, :], shift, 0.0)
            solution = solve_position(position, measured, weight, bias, unknown, self.steps, direction)
            found.append((solution, weight, bias))
        return found

    def features(
        self,
        position: Tensor,
        measured: StationMeasurements,
        weight: Tensor,
        bias: Tensor,
        unknown: list[int],
        direction: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a layer sees, [* bs features]; units [* bs xyz], cavity residuals and deviations [* bs] [m].

        The unit of length is 1 m, as biases have a law in metres.
        """
        normal = normal_equations(position, pose(measured, weight, bias, unknown, direction))
        has_range, has_angle = (measured.precision > 0).unbind(-2)
        along = normal.unit[..., unknown]
        strength = weight[..., 0, :] * measured.precision[..., 0, :]
        excess = measured.range_m - bias - normal.distance
        own = strength[..., None, None] * along[..., :, None] * along[..., None, :]
        total = normal.information
        cavity = total[..., None, :, :] - own + ridge(total)[..., None, :, :]
        pull = normal.vector[..., None, :] - (strength * excess)[..., None] * along
        solved = solve_small(cavity, torch.stack([pull, along], -1))
        step, reach = solved.unbind(-1)
        variance = (along * reach).sum(-1).clamp_min(0.0)
        std = torch.where(has_range, measured.range_std, 1.0)
        spread = torch.sqrt(variance + std.square())
        length = torch.linalg.vector_norm(step, dim=-1)
        allowed = normal.distance.amin(-1, keepdim=True)
        step = step * torch.clamp(allowed / torch.where(length > 0, length, 1.0), max=1.0)[..., None]
        there = position[..., None, :].expand(*step.shape[:-1], 3).clone()
        there[..., unknown] = there[..., unknown] + step
        residual = measured.range_m - torch.linalg.vector_norm(there - measured.bs_position, dim=-1)
        angle_std = torch.where(has_angle, measured.angle_std, 1.0)
        direction = measured.direction if direction is None else direction
        miss = torch.linalg.vector_norm(direction - normal.unit, dim=-1) / angle_std
        zero = torch.zeros_like(residual)
        ranges = [torch.asinh(residual / spread), torch.asinh(residual), spread.log(), std.log(), bias / spread]
        across = (angle_std * normal.distance).clamp_min(torch.finfo(angle_std.dtype).tiny)
        angles = [across.log(), torch.log1p(miss)]
        logs = torch.where(weight > 0, weight, 1.0).log()
        stacked = torch.stack(
            [
                *(torch.where(has_range, each, zero) for each in [*ranges, logs[..., 0, :]]),
                *(torch.where(has_angle, each, zero) for each in [*angles, logs[..., 1, :]]),
                has_range.to(zero) - has_angle.to(zero),
            ],
            -1,
        )
        return stacked, normal.unit, residual, spread


def _covariance(information: Tensor) -> Tensor:
    """Inverse [* n n], infinite on the diagonal where a coordinate is open."""
    value, vector = torch.linalg.eigh(information)
    is_open = ~(value[..., 0] > OPEN * value[..., -1])
    safe = torch.where(is_open[..., None], torch.ones_like(value), value)
    covariance = (vector / safe[..., None, :]) @ vector.mT
    return torch.where(is_open[..., None, None], torch.diag_embed(torch.full_like(value, torch.inf)), covariance)
