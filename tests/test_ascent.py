"""The paper's M-step against dense matrices and autograd, and the line search against its own rule."""

import pytest
import torch

from sensing.containers import map_tensors
from sensing.inference import m_step
from sensing.inference.ascent import SUFFICIENT, ascend, surrogate
from sensing.inference.iteration import Iteration
from sensing.inference.state import prepare
from sensing.inference.unrolled import Unrolled
from tests.test_m_step import case, dense_matrix, zero_step  # noqa: F401
from tests.test_unrolled import start

ONE = torch.ones((), dtype=torch.float64)
STEPS = m_step.Steps(ONE, ONE, ONE, ONE)


def test_surrogate_against_dense_matrices(case):  # noqa: F811
    geometry, problem, posterior, _, _ = case
    values, dense = [], []
    generator = torch.Generator().manual_seed(1)
    for size in (0.0, 0.1, 1.0):
        step, free = (size * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in zero_step(geometry))
        phi, moved = dense_matrix(geometry, problem, step, free)
        values.append(float(surrogate(moved, posterior, problem, problem.noise_var, torch.zeros(1).double())))
        y = problem.y[0].flatten(-2)
        misfit = (y - (phi @ posterior.mean[0, ..., None])[..., 0]).abs().square().sum(-1)
        spread = torch.einsum("qil,qlk,qik->q", phi, posterior.covariance[0], phi.conj()).real
        sigma = 299_792_458.0 * problem.deployment.clock_offset_std
        prior = (moved.offset_m[0] ** 2).sum() / (2 * sigma**2) + (moved.ue_position[0, 2] - 1.5) ** 2 / (2 / 12)
        dense.append(float(-((misfit + spread) / problem.noise_var[0]).sum() - prior))
    for i in (1, 2):  # up to a constant
        assert values[i] - values[0] == pytest.approx(dense[i] - dense[0], rel=1e-9)


@pytest.fixture(scope="module")
def evaluated(hall_hard):
    example, geometry, _ = start(hall_hard, [0, 1, 2], amplitude=3.0)
    layer = Iteration(kind="gradient")
    problem, state = prepare(example.observation, hall_hard.deployment, geometry, torch.complex128)
    with torch.no_grad():
        return layer.evaluate(state, problem).accepted, problem


def value_at(geometry, at, problem):
    return surrogate(geometry, at.expectation, problem, problem.noise_var, at.taper)


def test_direction_is_the_gradient_of_the_surrogate(evaluated):
    """In metres the step of user, offsets and nodes is parallel to what autograd gives."""
    at, problem = evaluated
    leaves = [at.geometry.ue_position, at.geometry.offset_m, at.geometry.node_position]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    names = ("ue_position", "offset_m", "node_position")
    geometry = at.geometry._replace(**dict(zip(names, leaves, strict=True)))
    gradient = torch.autograd.grad(value_at(geometry, at, problem).sum(), leaves)
    with torch.no_grad():
        moved = ascend(at, problem, ONE, STEPS, torch.ones(3).double(), 1)
    before = m_step.stack_theta(at.geometry)
    step = m_step.stack_theta(moved) - before
    wanted = torch.cat([gradient[0], gradient[1], gradient[2].flatten(-2)], -1)
    cosine = (step * wanted).sum(-1) / step.norm(dim=-1) / wanted.norm(dim=-1)
    torch.testing.assert_close(cosine, torch.ones(3).double(), rtol=0, atol=1e-9)


def test_steps_obey_armijo_and_are_not_halved_once_too_often(evaluated):
    at, problem = evaluated
    with torch.no_grad():
        moved = ascend(at, problem, ONE, STEPS, torch.full((3,), 0.5).double(), 1)
        base, after = value_at(at.geometry, at, problem), value_at(moved, at, problem)
        theta, end = m_step.stack_theta(at.geometry), m_step.stack_theta(moved)
        longest = (end - theta).abs().amax(-1) / problem.scales.metre
        assert (longest <= 0.5 + 1e-12).all()
        # the free paths add to the slope: the rise along theta alone is the least that Armijo asks for
        slope = (at.system.gradient * (end - theta)).sum(-1)
        assert (slope > 0).all()
        assert (after - base >= SUFFICIENT * slope).all()
        many = ascend(at, problem, ONE, STEPS, torch.full((3,), 0.5).double(), 6)
        assert (value_at(many, at, problem) > after).all()


def test_a_trial_that_is_too_long_is_halved(evaluated):
    """A curvature that is a thousand times too small asks for leaps; the line search undoes them."""
    at, problem = evaluated
    flat = at.system._replace(
        curvature=1e-3 * at.system.curvature,
        cross=1e-3 * at.system.cross,
        free_curvature=1e-3 * at.system.free_curvature,
    )
    with torch.no_grad():
        first = torch.full((3,), 50.0).double()
        leap = ascend(at._replace(system=flat), problem, ONE, STEPS, first, 1)
        sure = ascend(at, problem, ONE, STEPS, first, 1)
        base = value_at(at.geometry, at, problem)
        assert (value_at(leap, at, problem) > base).all()
        assert (value_at(sure, at, problem) > base).all()


def test_no_scene_depends_on_the_others(evaluated):
    at, problem = evaluated
    first = torch.full((3,), 0.5).double()
    with torch.no_grad():
        whole = ascend(at, problem, ONE, STEPS, first, 2)
        rows = slice(1, 2)
        one = problem._replace(y=problem.y[rows], noise_var=problem.noise_var[rows])
        single = ascend(map_tensors(at, lambda x: x[rows]), one, ONE, STEPS, first[rows], 2)
    for a, b in zip(whole, single, strict=True):
        torch.testing.assert_close(a[rows], b, rtol=1e-9, atol=1e-9)


def test_em_with_the_gradient_climbs(hall_hard):
    example, geometry, bound = start(hall_hard, range(4), amplitude=1.0, ghosts=0)
    with torch.no_grad():
        refined = Unrolled(6, kind="gradient", ascents=2)(
            example.observation, hall_hard.deployment, geometry, history=True
        )
        first = Unrolled(1).evaluate_at(example.observation, hall_hard.deployment, geometry)
    objective = torch.stack([first.objective, *(each.objective for each in refined.history)])
    assert (objective.diff(dim=0) >= -1.0).all()  # the tolerance of the guard
    assert (objective[-1] > objective[0]).all()
    assert torch.isfinite(bound.covariance).any()
