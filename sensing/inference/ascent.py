"""M-step of paper 1: gradient ascent on the EM surrogate with Armijo backtracking.

    Q(theta) = -(1/sigma^2) sum_q { ||y_q - Phi_q(theta) mu_q||^2 + tr(Phi_q Sigma_q Phi_q^H) } + ln p(theta)

with the posterior (mu, Sigma) of the gains at rest (EQUATIONS 1.12). The unknowns are counted in natural lengths,
c / bandwidth and beamwidths, so that metres and radians can share one step size; among metres the gradient is plain.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sensing.containers import Geometry
from sensing.inference import m_step
from sensing.inference.linearisation import System, per_scene
from sensing.inference.state import (
    Evaluation,
    Problem,
    log_prior,
    normal_equations,
    plain_products,
    products,
    with_walls,
)
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
        taper: [*] of the pilots.
    """
    mean, (gram, matched) = posterior.mean, plain_products(geometry, problem, taper)
    moment = mean[..., :, None] * mean[..., None, :].conj() + posterior.covariance
    fit = 2.0 * (mean.conj() * matched).real.sum(-1) - (gram * moment.mT).real.sum((-2, -1))
    return (fit / noise_var).sum(-1) + log_prior(geometry, problem)


class _Line(NamedTuple):
    """Points `geometry + size * (step, free)`."""

    geometry: Geometry
    step: Tensor  # [* theta]
    free: Tensor  # [* bs free]
    slope: Tensor  # [*] derivative of Q along the line
    tangents: Tensor  # [* bs free xyz 2] that the free paths' coordinates refer to

    def at(self, size: Tensor) -> Geometry:
        """The point for step sizes [*]."""
        return m_step.moved(
            self.geometry, size[..., None] * self.step, size[..., None, None] * self.free, self.tangents
        )


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
    noise_var, taper = problem.noise_var * per_scene(noise_scale, problem.noise_var), start.taper
    for round_ in range(rounds):
        if round_ > 0:
            gram, matched, basis, _ = products(geometry, problem, taper)
            system = normal_equations(geometry, posterior, gram, matched, basis, noise_var, problem, 0.0)
            system = with_walls(system, geometry, problem)
        line = _steepest(geometry, system, problem.scales, steps)
        with torch.no_grad():
            size = _first_size(line, system, problem.scales, first)
            size = _backtrack(line, lambda point: surrogate(point, posterior, problem, noise_var, taper), size)
        geometry = line.at(size)
    return geometry


def _steepest(geometry: Geometry, system: System, scales: m_step.Scales, steps: m_step.Steps) -> _Line:
    """Line along the gradient in natural lengths, back in metres and radians."""
    bs, (*batch, theta) = geometry.offset_m.shape[-1], system.gradient.shape
    blocks = ((steps.ue, 3), (steps.offset, bs), (steps.node, theta - 3 - bs))
    factor = torch.cat([value[..., None].expand(*batch, width) for value, width in blocks], -1)
    step = factor * scales.metre.square() * system.gradient
    free = steps.free[..., None, None] * _free_unit(system.free_gradient, scales).square() * system.free_gradient
    slope = (step * system.gradient).sum(-1) + (free * system.free_gradient).sum((-2, -1))
    return _Line(geometry, step, free, slope, m_step.free_tangents(geometry))


def _free_unit(free: Tensor, scales: m_step.Scales) -> Tensor:
    """Natural lengths of (range, t1, t2) of every free path, [free]."""
    return torch.stack([scales.metre, scales.radian, scales.radian]).repeat(free.shape[-1] // 3)


def _first_size(line: _Line, system: System, scales: m_step.Scales, first: Tensor) -> Tensor:
    """First trial, [*]: twice the maximiser of the quadratic model, no longer than `first` natural lengths.

    Larger trials would be halved until they are here anyway.
    """
    step, free = line.step, line.free
    bend = (step[..., None, :] @ system.curvature @ step[..., None]).sum((-2, -1))
    bend = bend + 2.0 * (step * (system.cross @ free[..., None])[..., 0].sum(-2)).sum(-1)
    bend = bend + (free[..., None, :] @ system.free_curvature @ free[..., None]).sum((-3, -2, -1))
    far = (free / _free_unit(free, scales)).abs().amax((-2, -1))
    longest = torch.maximum((step / scales.metre).abs().amax(-1), far)
    size = torch.where(longest > 0, first / torch.where(longest > 0, longest, torch.ones_like(longest)), 0.0)
    model = 2.0 * line.slope / torch.where(bend > 0, bend, torch.ones_like(bend))
    return torch.where(bend > 0, torch.minimum(size, model), size)


def _backtrack(line: _Line, value: Callable[[Geometry], Tensor], size: Tensor) -> Tensor:
    """Largest of the halved step sizes that Armijo's rule accepts, [*]; zero where there is none."""
    start, accepted, searching = value(line.geometry), torch.zeros_like(size), size > 0
    for _ in range(HALVINGS):
        rises = value(line.at(size)) >= start + SUFFICIENT * size * line.slope
        accepted = torch.where(searching & rises, size, accepted)
        searching = searching & ~rises
        if not bool(searching.any()):
            break
        size = torch.where(searching, 0.5 * size, size)
    return accepted
