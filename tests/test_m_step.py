"""Gradient, curvature and solve of the M-step against autograd and dense matrices."""

import pytest
import torch

from sensing.containers import Geometry
from sensing.inference import m_step
from sensing.inference.state import columns, normal_equations, prepare, products
from sensing.inference.turbo import Expectation
from sensing.operators.khatri_rao import path_operator
from sensing.simulation.sampler import scene_generator


def random_geometry(deployment, nodes=3, free=2, seed=0, scenes=1):
    """Nodes and free paths anywhere, the last of each masked out in the first station or scene."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, 3, generator=rng, dtype=torch.float64)

    bs = len(deployment.bs_position)
    low, high = torch.tensor([4.0, 4, 0.5], dtype=torch.float64), torch.tensor([36.0, 36, 7.5], dtype=torch.float64)
    direction = torch.nn.functional.normalize(
        uniform(low, high, scenes, bs, free) - deployment.bs_position[:, None], dim=-1
    )
    node_mask = torch.ones(scenes, nodes, dtype=torch.bool)
    free_mask = torch.ones(scenes, bs, free, dtype=torch.bool)
    node_mask[:, -1], free_mask[:, 0, -1] = False, False
    return Geometry(
        ue_position=uniform(low, high, scenes),
        offset_m=torch.randn(scenes, bs, generator=rng, dtype=torch.float64),
        node_position=uniform(low, high, scenes, nodes),
        node_mask=node_mask,
        member=node_mask[:, None].expand(scenes, bs, nodes),
        free_range_m=uniform(low, high, scenes, bs, free)[..., 0] + 30.0,
        free_direction=direction,
        free_mask=free_mask,
    )


@pytest.fixture(scope="module")
def case(tiny):
    """A geometry, an arbitrary Gaussian posterior of the gains, and an observation that fits neither."""
    deployment = tiny.deployment._replace(ue_height_range=torch.tensor([1.0, 2.0], dtype=torch.float64))
    example = tiny.simulator.examples("test", [0], snr_db=10.0)
    geometry = random_geometry(deployment)
    problem, _ = prepare(example.observation, deployment, geometry, torch.complex128)
    gram, matched, basis, mask = products(geometry, problem, torch.zeros(()).double())
    rng = torch.Generator().manual_seed(5)
    mean = torch.randn(mask.shape, generator=rng, dtype=torch.complex128) * mask
    root = 0.3 * torch.randn(*mask.shape, 3, generator=rng, dtype=torch.complex128) * mask[..., None]
    zero = torch.zeros(1, dtype=torch.float64)
    posterior = Expectation(mean.real, zero, mean, root @ root.mH, problem.noise_var, zero, mean.real, zero.long())
    return geometry, problem, posterior, root, (gram, matched, basis)


def dense_matrix(geometry, problem, step, free):
    """Phi [bs ant*sc col] after a step, formed column by column from the plain operator."""
    moved = m_step.moved(geometry, step, free, m_step.free_tangents(geometry))
    range_m, direction, mask = columns(moved, problem.deployment)
    factors = path_operator(range_m, direction, problem.deployment, mask)
    return (factors.steering[..., :, None, :] * factors.delay[..., None, :, :]).flatten(-3, -2)[0], moved


def zero_step(geometry):
    bs, free = geometry.free_mask.shape[-2:]
    return torch.zeros(1, 3 + bs + 3 * geometry.node_mask.shape[-1]).double(), torch.zeros(1, bs, 3 * free).double()


def test_gradient_equals_autograd_of_the_surrogate(case):
    geometry, problem, posterior, _, (gram, matched, basis) = case
    step, free = (x.requires_grad_() for x in zero_step(geometry))
    phi, moved = dense_matrix(geometry, problem, step, free)
    y = problem.y[0].flatten(-2)
    misfit = (y - (phi @ posterior.mean[0, ..., None])[..., 0]).abs().square().sum(-1)
    spread = torch.einsum("qil,qlk,qik->q", phi, posterior.covariance[0], phi.conj()).real
    surrogate = -((misfit + spread) / problem.noise_var[0]).sum()
    offset, sigma = moved.offset_m[0], 299_792_458.0 * problem.deployment.clock_offset_std
    surrogate = surrogate - (offset**2).sum() / (2 * sigma**2) - (moved.ue_position[0, 2] - 1.5) ** 2 / (2 / 12)
    expected = torch.autograd.grad(surrogate, (step, free))
    system = normal_equations(geometry, posterior, gram, matched, basis, problem.noise_var, problem, 0.0)
    torch.testing.assert_close(system.gradient, expected[0], rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(system.free_gradient, expected[1], rtol=1e-9, atol=1e-8)


def dense_curvature(case, missing):
    """Curvature over (theta, free of station 0, 1, ...) from the Jacobians of Phi x, station by station."""
    geometry, problem, posterior, root, _ = case
    step, free = zero_step(geometry)
    size, (bs, width) = step.numel(), free.shape[1:]

    def mean_field(x):
        def field(flat):
            phi, _ = dense_matrix(geometry, problem, flat[None, :size], flat[None, size:].unflatten(-1, (bs, width)))
            return torch.view_as_real((phi @ x[..., None])[..., 0])

        return torch.view_as_complex(
            torch.autograd.functional.jacobian(
                field, torch.zeros(size + bs * width).double(), vectorize=True, strategy="forward-mode"
            )
            .movedim(2, 3)
            .contiguous()
        )

    total = torch.zeros(size + bs * width, size + bs * width).double()
    phi, _ = dense_matrix(geometry, problem, step, free)
    weight = 2.0 / problem.noise_var[0][:, None, None]
    slope = mean_field(posterior.mean[0])
    total += (weight * (slope.mH @ slope).real).sum(0)
    projected = phi.mH @ slope
    absorbed = projected.mH @ posterior.covariance[0] @ projected / problem.noise_var[0][:, None, None]
    total -= missing * (weight * absorbed.real).sum(0)
    for k in range(root.shape[-1]):
        slope = mean_field(root[0, ..., k])
        total += (1.0 - missing) * (weight * (slope.mH @ slope).real).sum(0)
    total[:size, :size] += torch.diag(problem.precision)
    return total


def bordered(system):
    """The System as one dense matrix and right-hand side."""
    size, (bs, width) = system.gradient.shape[-1], system.free_gradient.shape[-2:]
    matrix = torch.zeros(size + bs * width, size + bs * width).double()
    matrix[:size, :size] = system.curvature[0]
    for q in range(bs):
        at = slice(size + q * width, size + (q + 1) * width)
        matrix[:size, at], matrix[at, :size] = system.cross[0, q], system.cross[0, q].mT
        matrix[at, at] = system.free_curvature[0, q]
    return matrix, torch.cat([system.gradient[0], system.free_gradient[0].flatten()])


@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
def test_curvature_equals_dense_information(case, missing):
    geometry, problem, posterior, _, (gram, matched, basis) = case
    system = normal_equations(geometry, posterior, gram, matched, basis, problem.noise_var, problem, missing)
    expected = dense_curvature(case, missing)
    matrix, _ = bordered(system)
    torch.testing.assert_close(matrix, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


def test_elimination_equals_the_dense_solve(case):
    geometry, problem, posterior, _, (gram, matched, basis) = case
    system = normal_equations(geometry, posterior, gram, matched, basis, problem.noise_var, problem, 0.0)
    matrix, rhs = bordered(system)
    metre, radian = problem.scales
    width = torch.ones_like(rhs) * metre
    free = torch.arange(len(rhs)) >= system.gradient.shape[-1]
    width[free] = torch.stack([metre, radian, radian]).repeat(int(free.sum()) // 3)
    matrix = matrix + torch.diag((m_step.TRUST * width) ** -2)
    matrix = matrix + 1e-2 * torch.diag(matrix.diagonal())
    expected = torch.linalg.solve(matrix, rhs)
    factors = m_step.factorise(system, problem.scales, torch.tensor([1e-2]).double())
    step, rest = m_step.solve(factors, system)
    torch.testing.assert_close(torch.cat([step[0], rest[0].flatten()]), expected, rtol=1e-7, atol=1e-10)
    assert not factors.failed.any()


def test_masked_and_unsupported_unknowns_stand_still(case):
    geometry, problem, posterior, _, (gram, matched, basis) = case
    silent = posterior._replace(mean=posterior.mean.clone(), covariance=posterior.covariance.clone())
    silent.mean[..., 1], silent.covariance[..., 1, :], silent.covariance[..., :, 1] = 0, 0, 0
    system = normal_equations(geometry, silent, gram, matched, basis, problem.noise_var, problem, 0.0)
    step, free = m_step.solve(m_step.factorise(system, problem.scales, torch.zeros(1).double()), system)
    moved = m_step.moved(geometry, step, free, m_step.free_tangents(geometry))
    torch.testing.assert_close(moved.node_position[:, 1:], geometry.node_position[:, 1:], rtol=0, atol=1e-9)
    assert (moved.free_range_m == geometry.free_range_m)[~geometry.free_mask].all()
    assert torch.isfinite(moved.node_position).all()
    assert (moved.node_position[:, 0] != geometry.node_position[:, 0]).all()


def test_indefinite_scene_falls_back_alone(case):
    geometry, problem, posterior, _, (gram, matched, basis) = case
    system = normal_equations(geometry, posterior, gram, matched, basis, problem.noise_var, problem, 0.0)
    good = m_step.factorise(system, problem.scales, torch.zeros(1).double())
    both = type(system)(*(torch.cat([x, x]) for x in system))
    both.curvature[1, 0, 1] = both.curvature[1, 1, 0] = 1e6 * both.curvature[1, 0, 0].abs()
    factors = m_step.factorise(both, problem.scales, torch.zeros(2).double())
    assert factors.failed.tolist() == [False, True]
    torch.testing.assert_close(m_step.solve(factors, both)[0][:1], m_step.solve(good, system)[0])


def test_steps_are_capped_in_natural_units(case):
    geometry, problem, *_ = case
    step, free = (1e3 * torch.ones_like(x) for x in zero_step(geometry))
    one = torch.ones(()).double()
    step, free = m_step.capped(step, free, 3, problem.scales, 0.5, m_step.Steps(one, one, one, one))
    limit = 0.5 * float(problem.scales.metre) + 1e-9
    assert step[0, :3].norm() <= limit
    assert step[0, 3:6].abs().max() <= limit
    assert (step[0, 6:].unflatten(-1, (-1, 3)).norm(dim=-1) <= limit).all()
    assert free.unflatten(-1, (-1, 3))[..., 0].abs().max() <= limit


def test_start_is_reproducible_whatever_the_batch(tiny):
    from sensing.bounds.asynchronous import uplink_bound
    from sensing.inference.starts import perturbed_start

    def start(indices):
        example = tiny.simulator.examples("test", indices, snr_db=10.0)
        covariance = uplink_bound(example.scene, example.observation.noise_var, tiny.deployment).covariance
        rngs = [scene_generator(0, "test", i, 2) for i in indices]
        return perturbed_start(example, tiny.deployment, covariance, 2.0, 1, rngs), example

    (both, example), (single, _) = start([4, 7]), start([7])
    torch.testing.assert_close(both.ue_position[1:], single.ue_position, rtol=1e-9, atol=1e-9)
    assert both.node_mask.sum(-1).tolist() == ((example.scene.visible.sum(-2) >= 2).sum(-1) + 1).tolist()
    free = (example.scene.visible & (example.scene.visible.sum(-2) == 1)[:, None]).sum(-1)
    assert both.free_mask.sum(-1).tolist() == free.tolist()
