"""Memory modes: which gradients they give, against plain differentiation."""

import pytest
import torch

from sensing.inference.unrolled import Unrolled
from tests.test_unrolled import scramble, start


def gradients(setup, batch, layers=3, history=False, **settings):
    example, geometry, _ = batch
    torch.manual_seed(0)
    net = scramble(Unrolled(layers, guard=False, **settings), 0.05)
    if settings.get("tied"):
        with torch.no_grad():
            net.coarse_to_fine.zero_()  # a schedule has no fixed point
    refined = net(example.observation, setup.deployment, geometry, history=history)
    points = refined.history if history else [refined.final]
    loss = sum((each.geometry.ue_position - example.scene.ue_position).square().sum() for each in points)
    loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def batch(tiny):
    return start(tiny, [0, 1], snr_db=15.0, amplitude=2.0)


@pytest.mark.parametrize("settings", [{"memory": "checkpoint"}, {"memory": "truncated", "window": 3}])
@pytest.mark.parametrize("history", [False, True])
def test_the_same_gradients_with_less_memory(tiny, batch, settings, history):
    """Recomputed layers, and a window as long as the network, change nothing."""
    full = gradients(tiny, batch, tied=False, condition=True, history=history)
    other = gradients(tiny, batch, tied=False, condition=True, history=history, **settings)
    assert full.keys() == other.keys()
    for name in full:
        torch.testing.assert_close(full[name], other[name], rtol=1e-9, atol=1e-12, msg=name)


def test_truncated_gradients_end_at_the_window(tiny, batch):
    full = gradients(tiny, batch, tied=False)
    cut = gradients(tiny, batch, tied=False, memory="truncated", window=2)
    # layer 2 begins a window: nothing of layers 0 and 1 reaches a loss on the last point
    assert not any("layers.0" in name or "layers.1" in name for name in cut if bool((cut[name] != 0).any()))
    torch.testing.assert_close(cut["layers.2.corrections.step_ue"], full["layers.2.corrections.step_ue"])


def test_with_a_window_of_one_every_layer_answers_for_its_own_proposal(tiny, batch):
    """The loss after layer 0 alone gives layer 0 the gradient that it has in a network cut behind every layer."""
    example, geometry, _ = batch
    net = Unrolled(3, tied=False, guard=False, memory="truncated", window=1)
    history = net(example.observation, tiny.deployment, geometry, history=True).history
    sum((each.geometry.ue_position - example.scene.ue_position).square().sum() for each in history).backward()
    alone = Unrolled(1, tied=False, guard=False)
    first = alone(example.observation, tiny.deployment, geometry).final.geometry.ue_position
    (first - example.scene.ue_position).square().sum().backward()
    for name, parameter in alone.layers[0].corrections.items():
        torch.testing.assert_close(net.layers[0].corrections[name].grad, parameter.grad, msg=name)
        assert net.layers[1].corrections["step_ue"].grad != 0


def test_implicit_gradient_equals_that_of_many_iterations(tiny):
    """What moves the fixed point; that a gradient through sixty iterations gets there has to be seen to."""
    calm = start(tiny, [0, 1], snr_db=25.0, amplitude=0.5, ghosts=0)
    settings = {"layers": 60, "tied": True, "step": 0.7, "missing": 0.5}
    full = gradients(tiny, calm, **settings)
    implicit = gradients(tiny, calm, memory="implicit", **settings)
    for name in ("noise_scale", "visibility", "taper"):
        key = f"layers.0.corrections.{name}"
        assert full[key].abs() > 0
        torch.testing.assert_close(implicit[key], full[key], rtol=2e-3, atol=0.0, msg=key)


def test_modes_are_alike_where_no_gradient_is_recorded(tiny, batch):
    example, geometry, _ = batch
    found = []
    with torch.no_grad():
        for mode in ("full", "checkpoint", "truncated", "implicit"):
            net = scramble(Unrolled(3, memory=mode), 0.05)
            found.append(net(example.observation, tiny.deployment, geometry).final.objective)
    assert all(torch.equal(found[0], other) for other in found[1:])
