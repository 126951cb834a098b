"""What iterations hand on, and the products with the observation that they are made of."""

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from sensing.containers import Deployment, Geometry, Observation
from sensing.geometry import bounce_ranges, tangent_basis
from sensing.inference import m_step
from sensing.inference.linearisation import System, location_jacobian, location_system, path_curvature, path_gradient
from sensing.inference.lmmse import log_evidence
from sensing.inference.turbo import Expectation, received_power
from sensing.operators.khatri_rao import PathOperator, extended_operator, whitened
from sensing.resolution import Scales, natural_scales
from sensing.walls import Walls, beyond, user_walls

T = TypeVar("T")


class Evaluation(NamedTuple):
    """The E-step and the normal equations at one geometry."""

    geometry: Geometry
    expectation: Expectation
    system: System  # priors included
    objective: Tensor  # [*] log evidence + log prior, up to a constant
    taper: Tensor  # [*] of the pilots behind all this
    fit: Tensor  # [* bs] power of the residual over that of the noise


class State(NamedTuple):
    """What iterations hand on."""

    proposal: Geometry  # to be evaluated next
    power: Tensor  # [* bs] variance of the gains that are present
    damping: Tensor  # [*] factor on the configured LM damping, at least 1
    accepted: Evaluation | None = None  # best point so far; None before the first E-step
    clipped: Tensor | None = None  # [*] int64, guards of the E-step that acted so far
    rejected: Tensor | None = None  # [*] int64, proposals dropped so far


class Problem(NamedTuple):
    """The observation, prepared once for all iterations."""

    y: Tensor  # [* bs ant sc] whitened, in the precision of the large products
    energy: Tensor  # [* bs sc] of whitened y, summed over antennas
    noise_var: Tensor  # [* bs] float64
    deployment: Deployment
    precision: Tensor  # [theta] or [* theta] of the Gaussian priors
    prior_mean: Tensor  # as precision
    scales: Scales
    walls: Walls  # of the user
    place: Tensor  # [sc] pilots in the band, from -1 to 1
    whitener: Tensor | None = None  # [* bs sc sc] of data, already whitened, and model


def prepare(
    observation: Observation, deployment: Deployment, geometry: Geometry, dtype: torch.dtype
) -> tuple[Problem, State]:
    """Problem and first state of a start geometry.

    Args:
        observation: batch of observations; a scene whose user is known starts there.
        deployment: the stations.
        geometry: where to start.
        dtype: complex type of the products with the observation; all else is double.
    """
    known_user = observation.known_user
    precision, mean = m_step.prior_precision(deployment, geometry.node_mask.shape[-1], known_user)
    if known_user is not None:
        at = torch.where(torch.isfinite(known_user), known_user, geometry.ue_position)
        geometry = geometry._replace(ue_position=at)
    noise_var = observation.noise_var.double()
    first, last = deployment.pilot_freq[0], deployment.pilot_freq[-1]
    place = (2.0 * deployment.pilot_freq - first - last) / torch.where(
        last > first, last - first, torch.ones_like(last)
    )
    scales = natural_scales(deployment)
    y = whitened(observation.y.to(dtype), observation.whitener)
    problem = Problem(
        y,
        (y.real.double().square() + y.imag.double().square()).sum(-2),
        noise_var,
        deployment,
        precision,
        mean,
        scales,
        user_walls(deployment),
        place,
        observation.whitener,
    )
    entries = observation.y.shape[-2] * observation.y.shape[-1]
    energy = observation.y.real.double().square().sum((-2, -1)) + observation.y.imag.double().square().sum((-2, -1))
    count = (geometry.member & geometry.node_mask[..., None, :]).sum(-1) + geometry.free_mask.sum(-1)
    power = received_power(energy, entries, noise_var, count)
    return problem, State(geometry, power, torch.ones_like(geometry.ue_position[..., 0]))


def columns(geometry: Geometry, deployment: Deployment) -> tuple[Tensor, Tensor, Tensor]:
    """Range [* bs col], direction [* bs col xyz] and mask [* bs col] of all columns: located nodes, then free paths."""
    range_m, direction, _, _ = bounce_ranges(
        geometry.node_position, geometry.ue_position, deployment.bs_position, geometry.offset_m
    )
    mask = geometry.node_mask[..., None, :].expand(range_m.shape)
    return (
        torch.cat([range_m, geometry.free_range_m], -1),
        torch.cat([direction, geometry.free_direction], -2),
        torch.cat([mask, geometry.free_mask], -1),
    )


def column_operator(geometry: Geometry, deployment: Deployment) -> PathOperator:
    """Sensing matrix of a geometry, without derivatives."""
    range_m, direction, mask = columns(geometry, deployment)
    return extended_operator(range_m, direction, deployment, mask).plain


def products(geometry: Geometry, problem: Problem, taper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gram [* bs col 4 col 4] and `rmatvec(y)` [* bs col 4] in double, tangents [* bs col xyz 2], mask [* bs col]."""
    range_m, direction, mask = columns(geometry, problem.deployment)
    basis = tangent_basis(direction)
    operator = extended_operator(range_m, direction, problem.deployment, mask, basis, problem.y.dtype)
    operator = operator.whitened(problem.whitener)
    weight = pilot_weight(problem, taper)
    operator = operator._replace(delay=operator.delay * weight[..., None, :, None, None])
    matched = operator.rmatvec(problem.y * weight[..., None, None, :])
    return operator.gram().to(torch.complex128), matched.to(torch.complex128), basis, mask


def pilot_weight(problem: Problem, taper: Tensor) -> Tensor:
    """Amplitude by which a taper [] or [*] scales each pilot of data and model, [* sc]; exactly one at taper zero."""
    return torch.exp(-0.5 * taper[..., None] * problem.place.square()).to(problem.y.real.dtype)


def plain_products(geometry: Geometry, problem: Problem, taper: Tensor) -> tuple[Tensor, Tensor]:
    """Gram [* bs col col] and `rmatvec(y)` [* bs col] without derivatives, in double."""
    operator = column_operator(geometry, problem.deployment).whitened(problem.whitener)
    weight = pilot_weight(problem, taper)
    operator = operator._replace(delay=operator.delay * weight[..., None, :, None])
    return operator.gram(), operator.rmatvec(problem.y.to(operator.delay.dtype) * weight[..., None, None, :])


def fit_of(mean: Tensor, gram: Tensor, matched: Tensor, problem: Problem, taper: Tensor) -> Tensor:
    """Power of the residual over that of the noise, both on pilots of a taper, [* bs].

    `|y - Phi x|^2 = |y|^2 - 2 Re(x^H Phi^H y) + x^H Phi^H Phi x`.
    """
    weight = pilot_weight(problem, taper).double().square()
    energy = (problem.energy * weight[..., None, :]).sum(-1)
    explained = (mean.conj() * (2.0 * matched - (gram @ mean[..., None])[..., 0])).real.sum(-1)
    entries = problem.y.shape[-2] * weight.sum(-1)
    return (energy - explained) / (problem.noise_var * entries[..., None])


def objective_at(evaluation: Evaluation, taper: Tensor, problem: Problem) -> Tensor:
    """Objective of an evaluated point on pilots of another taper, [*]."""
    if bool((evaluation.taper == taper).all()):
        return evaluation.objective
    gram, matched = plain_products(evaluation.geometry, problem, taper)
    evidence = log_evidence(gram, matched, problem.noise_var, evaluation.expectation.deviation).sum(-1)
    return evidence + log_prior(evaluation.geometry, problem)


def log_prior(geometry: Geometry, problem: Problem) -> Tensor:
    """Log density of the Gaussian priors and the walls up to a constant, [*]."""
    distance, wall = beyond(geometry.ue_position, problem.walls)
    gaussian = m_step.log_prior(geometry, problem.precision, problem.prior_mean)
    return gaussian - 0.5 * (wall * distance.square()).sum(-1)


def with_walls(system: System, geometry: Geometry, problem: Problem) -> System:
    """Add gradient and curvature of the walls: for steps, not for the covariance (a law cut off is not narrow)."""
    distance, wall = beyond(geometry.ue_position, problem.walls)
    rest = (0, system.gradient.shape[-1] - 3)
    return system._replace(
        gradient=system.gradient - torch.nn.functional.pad(wall * distance, rest),
        curvature=system.curvature + torch.diag_embed(torch.nn.functional.pad(wall, rest)),
    )


def normal_equations(
    geometry: Geometry,
    posterior: Expectation,
    gram: Tensor,
    matched: Tensor,
    basis: Tensor,
    noise_var: Tensor,
    problem: Problem,
    missing: Tensor | float,
) -> System:
    """Gradient and curvature over (u, c * offsets, nodes; free paths), priors included."""
    gradient = path_gradient(gram, matched, posterior.mean, posterior.covariance, noise_var)
    curvature = path_curvature(gram, posterior.mean, posterior.covariance, noise_var, missing)
    nodes = geometry.node_mask.shape[-1]
    _, direction, station_leg, user_direction = bounce_ranges(
        geometry.node_position, geometry.ue_position, problem.deployment.bs_position, geometry.offset_m
    )
    jacobian = location_jacobian(direction, basis[..., :nodes, :, :], station_leg, user_direction, geometry.node_mask)
    system = location_system(gradient, curvature, jacobian)
    return m_step.with_priors(system, geometry, problem.precision, problem.prior_mean)


def final_system(evaluation: Evaluation, problem: Problem) -> System:
    """Normal equations with the gains eliminated, at the nominal noise: the information that the result reports."""
    gram, matched, basis, _ = products(evaluation.geometry, problem, torch.zeros_like(problem.scales.metre))
    return normal_equations(
        evaluation.geometry, evaluation.expectation, gram, matched, basis, problem.noise_var, problem, 1.0
    )


def select(condition: Tensor, new: T, old: T) -> T:
    """`torch.where` over all tensors of a nested NamedTuple; the condition has the batch axes [*]."""
    if isinstance(new, Tensor):
        assert isinstance(old, Tensor)
        return torch.where(condition.reshape(condition.shape + (1,) * (new.ndim - condition.ndim)), new, old)  # type: ignore
    return type(new)(*(select(condition, a, b) for a, b in zip(new, old, strict=True)))  # type: ignore
