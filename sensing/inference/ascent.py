"""M-step of paper 1: gradient ascent on the EM surrogate with Armijo backtracking.

    Q(theta) = -(1/sigma^2) sum_q { ||y_q - Phi_q(theta) mu_q||^2 + tr(Phi_q Sigma_q Phi_q^H) } + ln p(theta)

with the posterior (mu, Sigma) of the gains at rest (EQUATIONS 1.12). The unknowns are counted in natural lengths,
c / bandwidth and beamwidths, so that metres and radians can share one step size; among metres the gradient is plain.
"""

import torch
from torch import Tensor

from sensing.containers import Geometry
from sensing.inference import m_step
from sensing.inference.linearisation import System
from sensing.inference.state import Evaluation, Problem, column_operator, normal_equations, pilot_weight, products
from sensing.inference.turbo import Expectation

SUFFICIENT = 1e-4
"""Armijo: share of the linear prediction by which Q must rise."""

HALVINGS = 40
"""Trials of one line search; afterwards the scene stands still."""


def surrogate(geometry: Geometry, posterior: Expectation, problem: Problem, noise_var: Tensor, taper: Tensor) -> Tensor:
    """Q at a geometry for given posterior gains, up to a constant, [*].

    Args:
        geometry: the point theta.
        posterior: mean and covariance of the gains.
        problem: the observation and the priors.
        noise_var: [* bs] noise variance that the E-step assumed.
        taper: [*] of the pilots, the same for all scenes.
    """
    operator, weight = column_operator(geometry, problem.deployment), pilot_weight(problem, taper.reshape(-1)[0])
    operator = operator._replace(delay=operator.delay * weight[:, None])
    matched = operator.rmatvec(problem.y.to(operator.delay.dtype) * weight)
    mean, gram = posterior.mean, operator.gram()
    moment = mean[..., :, None] * mean[..., None, :].conj() + posterior.covariance
    fit = 2.0 * (mean.conj() * matched).real.sum(-1) - (gram * moment.mT).real.sum((-2, -1))
    return (fit / noise_var).sum(-1) + m_step.log_prior(geometry, problem.precision, problem.prior_mean)


def ascend(
    start: Evaluation, problem: Problem, noise_scale: Tensor, steps: m_step.Steps, first: Tensor, rounds: int
) -> Geometry:
    """Gradient steps from an evaluated point, its posterior gains at rest.

    Args:
        start: where the E-step was taken.
        problem: the observation and the priors.
        noise_scale: factor on the noise variance that the E-step assumed.
        steps: factor on the gradient of each block, one as published.
        first: [*] most natural lengths by which a coordinate moves at the first trial.
        rounds: gradient steps.

    Returns:
        The last point; Q never falls on the way. The step size is found without recording gradients.
    """
    geometry, posterior, system = start.geometry, start.expectation, start.system
    noise_var, taper = problem.noise_var * noise_scale, start.taper
    for round_ in range(rounds):
        if round_ > 0:
            gram, matched, basis, _ = products(geometry, problem, taper.reshape(-1)[0])
            system = normal_equations(geometry, posterior, gram, matched, basis, noise_var, problem, 0.0)
        step, free = _direction(system, geometry.offset_m.shape[-1], problem.scales, steps)
        slope, tangents = (
            (step * system.gradient).sum(-1) + (free * system.free_gradient).sum((-2, -1)),
            m_step.free_tangents(geometry),
        )
        with torch.no_grad():
            size = _first_size(system, step, free, slope, problem.scales, first)
            size = _backtrack(geometry, posterior, problem, noise_var, taper, step, free, slope, tangents, size)
        geometry = m_step.moved(geometry, size[..., None] * step, size[..., None, None] * free, tangents)
    return geometry


def _direction(system: System, bs: int, scales: m_step.Scales, steps: m_step.Steps) -> tuple[Tensor, Tensor]:
    """Gradient in natural lengths, back in metres and radians: of theta and of the free paths."""
    batch, theta = system.gradient.shape[:-1], system.gradient.shape[-1]
    blocks = ((steps.ue, 3), (steps.offset, bs), (steps.node, theta - 3 - bs))
    factor = torch.cat([value[..., None].expand(*batch, width) for value, width in blocks], -1)
    unit = _free_unit(system.free_gradient, scales).square()
    return (
        factor * scales.metre.square() * system.gradient,
        steps.free[..., None, None] * unit * system.free_gradient,
    )


def _free_unit(free: Tensor, scales: m_step.Scales) -> Tensor:
    """Natural lengths of (range, t1, t2) of every free path, [free]."""
    return torch.stack([scales.metre, scales.radian, scales.radian]).repeat(free.shape[-1] // 3)


def _first_size(
    system: System, step: Tensor, free: Tensor, slope: Tensor, scales: m_step.Scales, first: Tensor
) -> Tensor:
    """First trial, [*]: twice the maximiser of the quadratic model, no longer than `first` natural lengths.

    Larger trials would be halved until they are here anyway.
    """
    bend = (step[..., None, :] @ system.curvature @ step[..., None]).sum((-2, -1))
    mixed = (system.cross @ free[..., None])[..., 0].sum(-2)
    bend = bend + 2.0 * (step * mixed).sum(-1)
    bend = bend + (free[..., None, :] @ system.free_curvature @ free[..., None]).sum((-3, -2, -1))
    longest = torch.maximum(
        (step / scales.metre).abs().amax(-1), (free / _free_unit(free, scales)).abs().amax((-2, -1))
    )
    size = torch.where(longest > 0, first / torch.where(longest > 0, longest, torch.ones_like(longest)), 0.0)
    model = 2.0 * slope / torch.where(bend > 0, bend, torch.ones_like(bend))
    return torch.where(bend > 0, torch.minimum(size, model), size)


def _backtrack(
    geometry: Geometry,
    posterior: Expectation,
    problem: Problem,
    noise_var: Tensor,
    taper: Tensor,
    step: Tensor,
    free: Tensor,
    slope: Tensor,
    tangents: Tensor,
    size: Tensor,
) -> Tensor:
    """Largest of the halved step sizes that Armijo's rule accepts, [*]; zero where there is none."""
    value, accepted, searching = (
        surrogate(geometry, posterior, problem, noise_var, taper),
        torch.zeros_like(size),
        size > 0,
    )
    for _ in range(HALVINGS):
        trial = m_step.moved(geometry, size[..., None] * step, size[..., None, None] * free, tangents)
        rises = surrogate(trial, posterior, problem, noise_var, taper) >= value + SUFFICIENT * size * slope
        accepted = torch.where(searching & rises, size, accepted)
        searching = searching & ~rises
        if not bool(searching.any()):
            break
        size = torch.where(searching, 0.5 * size, size)
    return accepted
