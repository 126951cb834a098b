"""Fusion methods by name: from measurements to positions, the pooled ones through the same samples.

`equal` and `optimal` are paper 3's: weights, then the best sample and, if asked for, Gauss-Newton steps from there on.
The other rules take the equally weighted position for the place where they compare information. `learned` and
`learned_weights` are networks; `bayes` is the limit.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.errors import ConfigError
from sensing.fusion.bayes import Law, posterior
from sensing.fusion.chernoff import chernoff_weights
from sensing.fusion.domain import Domain
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.modes import FusionFlag, judged
from sensing.fusion.rules import (
    best_station,
    covariance_intersection,
    equal_weights,
    fixed_range_weight,
    inverse_variance,
)
from sensing.fusion.sampling import Samples, draw_samples
from sensing.fusion.solve import solve_position

METHODS = (
    "equal",
    "optimal",
    "inverse_variance",
    "covariance_intersection",
    "best_station",
    "fixed_range_weight",
    "learned_weights",
    "learned",
    "bayes",
)

LEARNED = ("learned_weights", "learned")
"""With weights alone, and with bias corrections too."""


class Pooling(NamedTuple):
    """How pools are sampled and solved."""

    domain: Domain
    num_samples: int = 10_000
    proposal: str = "pool"
    refine: bool = False
    range_factor: float = 1.0  # of `fixed_range_weight`
    networks: Mapping[str, LearnedFusion] = MappingProxyType({})  # of the learned methods


class Fused(NamedTuple):
    """Positions, the weights that led to them, and what is to be known of them."""

    position: Tensor  # [drop xyz] in the domain [m]
    weight: Tensor | None = None  # [drop member]; None: the method has none
    mirror: Tensor | None = None  # [drop xyz] second mode where flagged, else the position [m]
    flags: Tensor | None = None  # [drop] int64, of `sensing.fusion.modes.FusionFlag`; None: no pool
    log_z: Tensor | None = None  # [drop] of optimal weights; the generalised Chernoff information is its negative
    iterations: Tensor | None = None  # [drop] int64 passes over the samples, of optimal weights


def check_methods(names: Sequence[str]) -> list[str]:
    """The names; raises ConfigError for an unknown one, none, or a duplicate."""
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(f"methods must be out of {list(METHODS)}, each once, got {list(names)}")
    return list(names)


def fuse(
    names: Sequence[str],
    measured: StationMeasurements,
    pooling: Pooling,
    generator: torch.Generator,
    law: Law | None = None,
) -> dict[str, Fused]:
    """Positions by several methods.

    Args:
        names: out of `METHODS`.
        measured: [drop bs].
        pooling: domain and samples.
        generator: of the samples.
        law: of the measurements, which `bayes` needs.

    Returns:
        The positions by method.
    """
    check_methods(names)
    samples = draw_samples(measured.validate(), pooling.domain, pooling.num_samples, generator, pooling.proposal)
    equal = _sampled(equal_weights(measured), samples, measured, pooling)
    found: dict[str, Fused] = {}
    for name in names:
        if name == "equal":
            found[name] = equal
        elif name == "optimal":
            best = chernoff_weights(samples.log_density, samples.log_proposal, measured.members)
            fused = _sampled(best.weight, samples, measured, pooling, best.converged)
            found[name] = fused._replace(log_z=best.log_z, iterations=best.iterations)
        elif name in LEARNED:
            if name not in pooling.networks:
                raise ConfigError(f"{name} needs its network, got networks of {sorted(pooling.networks)}")
            with torch.no_grad():
                learned = pooling.networks[name](measured, pooling.domain)
            found[name] = Fused(learned.position, learned.weight.flatten(-2), learned.mirror, learned.flags)
        elif name == "bayes":
            if law is None:
                raise ConfigError("bayes needs the law of the measurements, got None")
            found[name] = Fused(posterior(measured, pooling.domain, law).mean)
        else:
            weight = _rule(name, pooling)(measured, equal.position, pooling.domain.unknown)
            found[name] = solve(weight, equal.position, measured, pooling.domain)
    return found


def solve(weight: Tensor, start: Tensor, measured: StationMeasurements, domain: Domain) -> Fused:
    """Most likely position of a pool near a start, inside the domain; weight [drop member], start [drop xyz]."""
    relative = _relative(weight)
    position = solve_position(start, measured, relative, None, domain.unknown).position
    return _fused(position, weight, relative, measured, domain)


def _relative(weight: Tensor) -> Tensor:
    """Weights [drop 2 bs] over the largest: the member trusted most keeps its deviation."""
    return (weight / weight.amax(-1, keepdim=True)).unflatten(-1, (2, -1))


def _fused(
    position: Tensor,
    weight: Tensor,
    relative: Tensor,
    measured: StationMeasurements,
    domain: Domain,
    sampled: bool = False,
) -> Fused:
    """Positions of a pool, judged."""
    verdict = judged(position, measured, relative, None, domain, sampled)
    return Fused(verdict.position, weight, verdict.mirror, verdict.flags)


def _sampled(
    weight: Tensor,
    samples: Samples,
    measured: StationMeasurements,
    pooling: Pooling,
    converged: Tensor | None = None,
) -> Fused:
    """Equation 14: the sample with the largest pooled density, and from there on uphill."""
    level = torch.einsum("...sm,...m->...s", samples.log_density, weight)
    index = level.argmax(-1)[..., None, None].expand(*level.shape[:-1], 1, 3)
    best = samples.position.gather(-2, index)[..., 0, :]
    if pooling.refine:
        fused = solve(weight, best, measured, pooling.domain)
    else:
        fused = _fused(best, weight, _relative(weight), measured, pooling.domain, sampled=True)
    if converged is None or fused.flags is None:
        return fused
    return fused._replace(flags=fused.flags | torch.where(converged, 0, FusionFlag.NOT_CONVERGED))


def _rule(name: str, pooling: Pooling) -> Callable[[StationMeasurements, Tensor, list[int]], Tensor]:
    if name == "fixed_range_weight":
        return lambda measured, position, unknown: fixed_range_weight(measured, pooling.range_factor)
    rules = {
        "inverse_variance": inverse_variance,
        "covariance_intersection": covariance_intersection,
        "best_station": best_station,
    }
    return rules[name]
