"""The unrolled iterations: neutral corrections, symmetries, gradients, and that they reach the bound."""

from functools import partial

import pytest
import torch
from torch.func import functional_call

from sensing.bounds.asynchronous import uplink_bound
from sensing.containers import Geometry, map_tensors
from sensing.errors import ConfigError
from sensing.inference.iteration import Iteration
from sensing.inference.outcome import to_estimate
from sensing.inference.starts import perturbed_start
from sensing.inference.state import prepare
from sensing.inference.unrolled import Unrolled
from sensing.simulation.sampler import scene_generator


def start(setup, indices, snr_db=10.0, amplitude=3.0, ghosts=1):
    example = setup.simulator.examples("test", indices, snr_db=snr_db)
    bound = uplink_bound(example.scene, example.observation.noise_var, setup.deployment)
    rngs = [scene_generator(0, "test", i, 2) for i in indices]
    return example, perturbed_start(example, setup.deployment, bound.covariance, amplitude, ghosts, rngs), bound


@pytest.fixture(scope="module")
def two(hall_hard):
    return start(hall_hard, [0, 1])


def scramble(net, size=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(size * torch.randn((), generator=generator, dtype=parameter.dtype))
    return net


def outputs(refined):
    return to_estimate(refined.final, refined.problem)


def assert_same(a, b, **tolerance):
    for name, x, y in zip(a._fields, a, b, strict=True):
        if x is not None:
            torch.testing.assert_close(x, y, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_untrained_untied_equals_tied_bit_for_bit(hall_hard, two):
    example, geometry, _ = two
    with torch.no_grad():
        tied = outputs(Unrolled(3, tied=True)(example.observation, hall_hard.deployment, geometry))
        untied = outputs(Unrolled(3, tied=False)(example.observation, hall_hard.deployment, geometry))
        listed = outputs(Unrolled(3, tied=False, step=[1.0] * 3)(example.observation, hall_hard.deployment, geometry))
    for field, other, third in zip(tied, untied, listed, strict=True):
        assert field is None or (torch.equal(field, other) and torch.equal(field, third))


def test_every_correction_acts(hall_hard, two):
    """A correction that changes nothing could not be learned."""
    example, geometry, _ = two
    net = Unrolled(2, tied=True, cap=0.1)  # a cap that binds
    refined = net(example.observation, hall_hard.deployment, geometry)
    (refined.final.geometry.ue_position.sum() + refined.final.expectation.mean.abs().square().sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad) & (parameter.grad != 0), name


@pytest.mark.parametrize("kind", ["gauss_newton", "gradient"])
def test_scaling_observation_and_noise(hall_hard, two, kind):
    example, geometry, _ = two
    net = scramble(Unrolled(2, kind=kind, condition=kind == "gauss_newton"), 0.01)
    observation = example.observation
    scaled = observation._replace(y=1e-5 * observation.y, noise_var=1e-10 * observation.noise_var)
    with torch.no_grad():
        a = outputs(net(observation, hall_hard.deployment, geometry))
        b = outputs(net(scaled, hall_hard.deployment, geometry))
    b = b._replace(channel=1e5 * b.channel, gain=1e5 * b.gain)
    assert_same(a, b, rtol=1e-5, atol=1e-7)


def test_batch_equals_singles(hall_hard, two):
    example, geometry, _ = two
    net = scramble(Unrolled(2, tied=False, condition=True))
    with torch.no_grad():
        both = outputs(net(example.observation, hall_hard.deployment, geometry))
        for pick in (partial(torch.select, dim=0, index=i) for i in range(2)):
            single = net(map_tensors(example.observation, pick), hall_hard.deployment, map_tensors(geometry, pick))
            assert_same(map_tensors(both, pick), outputs(single), rtol=1e-6, atol=1e-8)


def test_order_of_stations_and_nodes_does_not_matter(hall_hard, two):
    example, geometry, _ = two
    deployment = hall_hard.deployment
    net = scramble(Unrolled(2, tied=False, condition=True))
    q = torch.tensor([2, 0, 3, 1])
    k = torch.randperm(geometry.node_mask.shape[-1], generator=torch.Generator().manual_seed(0))
    turned = deployment._replace(bs_position=deployment.bs_position[q], bs_rotation=deployment.bs_rotation[q])
    observation = example.observation._replace(
        y=example.observation.y[:, q], noise_var=example.observation.noise_var[:, q]
    )
    mixed = Geometry(
        ue_position=geometry.ue_position,
        offset_m=geometry.offset_m[:, q],
        node_position=geometry.node_position[:, k],
        node_mask=geometry.node_mask[:, k],
        member=geometry.member[:, q][:, :, k],
        free_range_m=geometry.free_range_m[:, q],
        free_direction=geometry.free_direction[:, q],
        free_mask=geometry.free_mask[:, q],
    )
    with torch.no_grad():
        a = outputs(net(example.observation, deployment, geometry))
        b = outputs(net(observation, turned, mixed))
    nodes = len(k)
    torch.testing.assert_close(a.ue_position, b.ue_position, rtol=0, atol=1e-7)
    torch.testing.assert_close(a.clock_offset[:, q], b.clock_offset, rtol=0, atol=1e-15)
    torch.testing.assert_close(a.scatterer_position[:, k], b.scatterer_position[:, :nodes], rtol=0, atol=1e-6)
    torch.testing.assert_close(a.channel[:, q], b.channel, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.support[:, q][:, :, k], b.support[..., :nodes], rtol=0, atol=1e-6)


def test_gradcheck_of_one_layer(tiny):
    example, geometry, _ = start(tiny, [0, 1], snr_db=0.0, amplitude=1.0)
    layer = scramble(Iteration(guard=False, taper=5.0))  # away from zero, where it is cut off
    names = [name for name, _ in layer.named_parameters()]

    def proposal(*values):
        problem, state = prepare(example.observation, tiny.deployment, geometry, torch.complex128)
        state = functional_call(layer, dict(zip(names, values, strict=True)), (state, problem))
        g = state.proposal
        return g.ue_position, g.offset_m, g.node_position, g.free_range_m, g.free_direction, state.power

    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(proposal, values, eps=1e-5, rtol=1e-4, atol=1e-7)


def test_no_nan_gradient_with_padding_and_an_empty_station(hall_hard, two):
    example, geometry, _ = two
    node_mask, free_mask = geometry.node_mask.clone(), geometry.free_mask.clone()
    node_mask[0], free_mask[0], free_mask[1, 2] = False, False, False
    geometry = geometry._replace(node_mask=node_mask, free_mask=free_mask, member=geometry.member & node_mask[:, None])
    position = geometry.ue_position.clone().requires_grad_()
    net = Unrolled(2, tied=False)
    refined = net(example.observation, hall_hard.deployment, geometry._replace(ue_position=position), history=True)
    estimate = outputs(refined)
    error = sum((e.geometry.ue_position - example.scene.ue_position).square().sum() for e in refined.history)
    (
        error
        + (estimate.channel - example.channel).abs().square().sum()
        + estimate.covariance.diagonal(dim1=-2, dim2=-1).log().sum()
    ).backward()
    assert torch.isfinite(position.grad).all()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad) for parameter in net.parameters())
    # a scene without any column: nothing moves but towards the priors, and the covariance says so
    assert (estimate.channel[0] == 0).all()
    assert estimate.covariance[0, 0, 0] > 1e4
    assert torch.isfinite(estimate.covariance).all()


def test_without_free_paths_or_nodes(hall_hard, two):
    example, geometry, _ = two
    no_free = geometry._replace(
        free_range_m=geometry.free_range_m[..., :0],
        free_direction=geometry.free_direction[..., :0, :],
        free_mask=geometry.free_mask[..., :0],
    )
    no_node = geometry._replace(
        node_position=geometry.node_position[:, :0],
        node_mask=geometry.node_mask[:, :0],
        member=geometry.member[..., :0],
    )
    for reduced in (no_free, no_node):
        estimate = outputs(Unrolled(2)(example.observation, hall_hard.deployment, reduced))
        assert all(
            field is None or torch.isfinite(torch.view_as_real(field) if field.is_complex() else field).all()
            for field in estimate
        )


def test_guard_never_lowers_the_objective(hall_hard, two):
    example, geometry, _ = two
    with torch.no_grad():
        wild = Unrolled(6, step=6.0, cap=3.0, tolerance=1e-9)
        history = wild(example.observation, hall_hard.deployment, geometry, history=True)
    objective = torch.stack([e.objective for e in history.history])
    assert (objective.diff(dim=0) >= -1e-6).all()
    assert (history.rejected > 0).any()


def test_reaches_the_bound_from_a_perturbed_start(hall_hard):
    example, geometry, bound = start(hall_hard, range(24))
    with torch.no_grad():
        refined = Unrolled(8, polish=2)(example.observation, hall_hard.deployment, geometry)
        estimate = outputs(refined)
    error = estimate.ue_position - example.scene.ue_position
    ratio = error.norm(dim=-1) / bound.ue_position_m
    assert (ratio < 3).double().mean() >= 0.95
    assert ratio.square().mean().sqrt() < 1.3
    # the covariance reported is the bound's at the estimate, and the errors are consistent with it
    reported = estimate.covariance[:, :3, :3]
    spread = reported.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt() / bound.ue_position_m
    assert 0.8 < spread.median() < 1.25
    mahalanobis = (error * torch.linalg.solve(reported, error)).sum(-1)
    assert 1.0 < mahalanobis.mean() < 6.0  # 3 expected
    nmse = (estimate.channel - example.channel).abs().square().sum() / example.channel.abs().square().sum()
    assert nmse < 10**-3.2
    # ghosts are switched off, real nodes are not: node -1 of each scene is a ghost
    assert (estimate.scatterer_mask[:, geometry.node_mask.shape[-1] - 1]).double().mean() < 0.2


def test_taper_widens_the_basin(hall_hard):
    """From far starts, trusting the inner pilots first rescues scenes whose delays are off by a main lobe."""
    example, geometry, _ = start(hall_hard, range(32), amplitude=12.0)
    energy = example.channel.abs().square().sum((-3, -2, -1))

    def nmse(taper):
        with torch.no_grad():
            refined = Unrolled(6, tied=False, taper=taper)(example.observation, hall_hard.deployment, geometry)
        estimate = outputs(refined).channel
        return ((estimate - example.channel).abs().square().sum((-3, -2, -1)) / energy).mean()

    assert nmse([8.0, 8.0, 4.0, 0.0, 0.0, 0.0]) < nmse([0.0] * 6)


def test_coarse_to_fine_falls_to_zero_and_equals_a_list_of_tapers(hall_hard, two):
    example, geometry, _ = two
    net = Unrolled(4, tied=False)
    assert [net.schedule(step).item() for step in range(4)] == [0.0] * 4
    with torch.no_grad():
        net.coarse_to_fine.fill_(0.3)
    falling = [net.schedule(step).item() for step in range(6)]
    assert falling == pytest.approx([6.0, 4.0, 2.0, 0.0, 0.0, 0.0])  # nothing is left for polishing iterations
    by_hand = Unrolled(4, tied=False, taper=falling[:4])
    a, b = (each(example.observation, hall_hard.deployment, geometry) for each in (net, by_hand))
    assert_same(outputs(a), outputs(b))


def test_single_precision_products_give_the_same(hall_hard, two):
    example, geometry, bound = two
    with torch.no_grad():
        a = Unrolled(4)(example.observation, hall_hard.deployment, geometry).final.geometry.ue_position
        b = Unrolled(4, dtype="complex64")(
            example.observation, hall_hard.deployment, geometry
        ).final.geometry.ue_position
    assert ((a - b).norm(dim=-1) < 0.05 * bound.ue_position_m).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "newton"},
        {"inner": 0},
        {"step": 0.0},
        {"activity": 1.0},
        {"missing": 2.0},
        {"step": [1.0, 2.0]},
        {"num_iterations": 0},
        {"dtype": "float"},
        {"learned": ["steps"]},
        {"learned": ["schedule"], "condition": True},
        {"falling_taper": -1.0},
        {"memory": "some"},
        {"memory": "truncated", "window": 0},
        {"memory": "implicit", "tied": False},
    ],
)
def test_impossible_settings_are_errors(settings):
    with pytest.raises(ConfigError):
        Unrolled(**({"num_iterations": 3} | settings))
