"""Corrections that depend on the scene, switches of what is learned, and the fallback to classical iterations."""

from functools import partial

import pytest
import torch

from sensing.containers import map_tensors
from sensing.inference.conditioning import LIMIT
from sensing.inference.iteration import COMPONENTS
from sensing.inference.state import column_operator, prepare
from sensing.inference.unrolled import SCHEDULE, Unrolled
from tests.test_unrolled import assert_same, outputs, scramble, start


@pytest.fixture(scope="module")
def two(hall_hard):
    return start(hall_hard, [0, 1])


def test_untrained_conditioned_layers_equal_the_classical_ones_bit_for_bit(hall_hard, two):
    example, geometry, _ = two
    torch.manual_seed(0)
    for settings in ({}, {"guard": False}, {"falling_taper": 8.0}):
        with torch.no_grad():
            classical = Unrolled(3, tied=True, **settings)(example.observation, hall_hard.deployment, geometry)
            unfolded = Unrolled(3, tied=False, condition=True, fallback=True, **settings)(
                example.observation, hall_hard.deployment, geometry
            )
        assert not unfolded.fallback.any()
        for field, other in zip(outputs(classical), outputs(unfolded), strict=True):
            assert field is None or torch.equal(field, other)


def test_the_network_is_learned_and_reads_every_feature(hall_hard, two):
    example, geometry, _ = two
    net = Unrolled(2, tied=False, condition=True, guard=False, cap=0.1)
    refined = net(example.observation, hall_hard.deployment, geometry)
    (refined.final.geometry.ue_position.sum() + refined.final.expectation.mean.abs().square().sum()).backward()
    grad = net.conditioner.outer.weight.grad
    assert torch.isfinite(grad).all()
    assert (grad.abs().sum(-1) > 0).all()  # every correction
    problem, state = prepare(example.observation, hall_hard.deployment, geometry, torch.complex128)
    noisier = problem._replace(noise_var=10.0 * problem.noise_var)
    fewer = state._replace(proposal=geometry._replace(free_mask=torch.zeros_like(geometry.free_mask)))
    fit = torch.ones_like(state.power)
    scramble(net.conditioner)
    given = (state, problem, fit, 0.5)
    changed = [
        (state, noisier, fit, 0.5),
        (fewer, problem, fit, 0.5),
        (state, problem, 3.0 * fit, 0.5),
        (state, problem, fit * torch.tensor([1.0, 1.0, 1.0, 2.0]), 0.5),
        (state, problem, fit, 1.0),
    ]
    with torch.no_grad():
        base = net.conditioner(*given)["lm"]
        assert base.shape == (2,)
        assert all((net.conditioner(*other)["lm"] != base).all() for other in changed)
        net.conditioner.outer.weight.fill_(1e6)
        assert net.conditioner(*given)["lm"].abs().max() <= LIMIT


def test_a_taper_of_its_own_for_every_scene(hall_hard, two):
    """Shifted tapers in one batch equal single scenes with that taper configured."""
    example, geometry, _ = two
    tapers = (2.0, 10.0)
    layer = Unrolled(1).layers[0]
    problem, state = prepare(example.observation, hall_hard.deployment, geometry, torch.complex128)
    shift = {"taper": torch.tensor(tapers, dtype=torch.float64) / 20.0}
    with torch.no_grad():
        both = layer.evaluate(state, problem, shift=shift).accepted
        for i, taper in enumerate(tapers):
            pick = partial(torch.select, dim=0, index=i)
            one, alone = prepare(
                map_tensors(example.observation, pick), hall_hard.deployment, map_tensors(geometry, pick),
                torch.complex128,
            )  # fmt: skip
            single = Unrolled(1, taper=taper).layers[0].evaluate(alone, one).accepted
            assert_same(map_tensors(both.system, pick), single.system, rtol=1e-9, atol=1e-9)
            assert float(both.objective[i]) == pytest.approx(float(single.objective))
            torch.testing.assert_close(both.fit[i], single.fit)


def test_fit_is_the_power_of_the_residual_over_that_of_the_noise(hall_hard, two):
    example, geometry, _ = two
    with torch.no_grad():
        refined = Unrolled(6)(example.observation, hall_hard.deployment, geometry)
    final = refined.final
    model = column_operator(final.geometry, hall_hard.deployment).matvec(final.expectation.mean)
    residual = (example.observation.y - model).abs().square().mean((-2, -1)) / example.observation.noise_var
    torch.testing.assert_close(final.fit, residual)
    assert ((final.fit - 1.0).abs() < 0.1).all()  # found: nothing but noise is left
    with torch.no_grad():
        problem, state = prepare(example.observation, hall_hard.deployment, geometry, torch.complex128)
        objective, fit = Unrolled(1).layers[0].look(state, problem)
        first = Unrolled(1).layers[0].evaluate(state, problem).accepted
    torch.testing.assert_close(objective, first.objective)
    torch.testing.assert_close(fit, first.fit)


@pytest.mark.parametrize("component", [*COMPONENTS, SCHEDULE])
def test_switches_of_what_is_learned(component):
    net = Unrolled(2, tied=False, learned=[component], fallback=True)
    learned = {name.split(".")[-1] for name, p in net.named_parameters() if p.requires_grad}
    assert learned == (set(COMPONENTS[component]) if component != SCHEDULE else {"coarse_to_fine"})
    assert Unrolled(2, tied=False, learned=[]).coarse_to_fine.requires_grad is False
    if component != SCHEDULE:
        names = Unrolled(2, tied=False, learned=[component], condition=True).conditioner.names
        assert names == COMPONENTS[component]


def test_scenes_that_got_worse_are_redone_classically(hall_hard, two):
    """Three times too long steps, unguarded, ruin the objective of a scene: it then equals the classical result."""
    example, geometry, _ = start(hall_hard, range(6))
    wild = {"tied": False, "guard": False, "step": 6.0, "cap": 3.0}
    with torch.no_grad():
        raw = Unrolled(4, **wild)(example.observation, hall_hard.deployment, geometry)
        net = Unrolled(4, fallback=True, **wild)
        guarded = net(example.observation, hall_hard.deployment, geometry)
        problem, state = prepare(example.observation, hall_hard.deployment, geometry, torch.complex128)
        before, _ = net.classical.look(state, problem)
        for _ in range(4):
            state = net.classical(state, problem)
        redone = net.classical.conclude(state, problem).accepted
    worse = raw.final.objective < before - 1.0
    assert worse.any()
    assert torch.equal(guarded.fallback, worse)
    assert (guarded.final.objective >= before - 1.0).all()
    expected = torch.where(worse[:, None], redone.geometry.ue_position, raw.final.geometry.ue_position)
    torch.testing.assert_close(guarded.final.geometry.ue_position, expected, rtol=0, atol=1e-7)
    trained = net(example.observation, hall_hard.deployment, geometry, history=True)
    assert not trained.fallback.any()  # training sees what the layers do
