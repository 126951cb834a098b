"""Learned fusion weights: neutral, blind to order and padding, reachable by gradients."""

import pytest
import torch

from sensing.coarse.localization import CoarseLocalizer
from sensing.containers import PathEstimates
from sensing.fusion.weights import FusionWeights
from tests.reference.oracle import detect


@pytest.fixture(scope="module")
def paths(hall):
    return detect(hall.simulator.examples("test", range(3), snr_db=15.0), hall.deployment).paths


def scrambled(messages=False):
    net, generator = FusionWeights(messages=messages), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return net


def take(paths, station=slice(None), path=slice(None)):
    return PathEstimates(*(field[:, station][:, :, path] for field in paths))


BOTH = pytest.mark.parametrize("messages", [False, True])


@BOTH
def test_untrained_weights_are_exactly_one(paths, messages):
    assert (FusionWeights(messages=messages)(paths) == 1.0).all()


def test_messages_reach_the_other_stations_and_nothing_else_does(paths):
    louder = paths._replace(covariance=paths.covariance.clone(), information=paths.information.clone())
    louder.information[:, 0] *= 100.0
    louder.covariance[:, 0] /= 100.0
    mask = paths.mask[:, 1:]
    for messages in (False, True):
        net = scrambled(messages)
        change = (net(louder) - net(paths))[:, 1:][mask].abs()
        assert bool((change > 1e-6).any()) == messages


@pytest.mark.parametrize("stations", [1, 2, 3])
def test_messages_by_a_plain_loop(paths, stations):
    few, net = take(paths, slice(0, stations)), scrambled(messages=True)
    got, features = net(few), net.features(few)
    scene = 0
    members = [tuple(place) for place in few.mask[scene].nonzero().tolist()]
    for own in members:
        heard = []
        for other in members:
            if other != own:
                cosine = few.direction[scene][own] @ few.direction[scene][other]
                sent, received = net.sender(features[scene][other]), net.receiver(features[scene][own])
                heard.append(torch.tanh(sent + received + cosine * net.angle.weight[:, 0]))
        heard = torch.stack(heard)
        inputs = torch.cat([features[scene][own], heard.mean(0), heard.amax(0)])
        raw = net.outer(torch.tanh(net.inner(inputs)))
        assert torch.allclose(got[scene][own], torch.exp(3.0 * torch.tanh(raw / 3.0)), rtol=1e-10)


def test_every_feature_acts_and_the_limit_holds(paths):
    features = FusionWeights().features(paths)
    assert features.shape == (*paths.mask.shape, 4)
    assert (features[paths.mask].std(0) > 0).all()
    assert (features[~paths.mask] == 0).all()
    net = scrambled()
    assert net(paths)[paths.mask].std() > 0.01
    with torch.no_grad():
        net.outer.bias.fill_(100.0)
    assert torch.allclose(net(paths), torch.tensor(3.0, dtype=torch.float64).exp(), rtol=1e-6)


@BOTH
def test_order_of_stations_and_paths_does_not_matter(paths, messages):
    net, generator = scrambled(messages), torch.Generator().manual_seed(1)
    station = torch.randperm(paths.mask.shape[1], generator=generator)
    path = torch.randperm(paths.mask.shape[2], generator=generator)
    expected = net(paths)[:, station][:, :, path]
    assert torch.allclose(net(take(paths, station, path)), expected, rtol=1e-12)


@BOTH
def test_padding_and_scale_of_the_observation_do_not_matter(paths, messages):
    net = scrambled(messages)
    padded = PathEstimates(*(torch.cat([field, torch.zeros_like(field[:, :, :2])], 2) for field in paths))
    mask = paths.mask
    assert torch.allclose(net(padded)[:, :, : mask.shape[2]][mask], net(paths)[mask], rtol=1e-12)
    louder = paths._replace(gain=1e-5 * paths.gain)
    assert torch.allclose(net(louder)[mask], net(paths)[mask], rtol=1e-9)


@BOTH
def test_an_empty_station_and_a_lone_path_are_finite(paths, messages):
    mask = paths.mask.clone()
    mask[0, 1] = False
    mask[0, 2, 1:] = False
    few = PathEstimates(*(field * mask.reshape(*mask.shape, *[1] * (field.ndim - 3)) for field in paths))
    net = scrambled(messages)
    weights = net(few)
    weights.sum().backward()
    assert torch.isfinite(weights).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_gradient_flows_from_the_user_to_the_weights(hall, paths):
    net = FusionWeights()
    location = CoarseLocalizer(net)(paths, hall.deployment)
    location.geometry.ue_position.square().sum().backward()
    assert net.outer.weight.grad.abs().max() > 0
    assert net.outer.bias.grad.abs().max() > 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_gradient_of_the_user_against_finite_differences(hall, paths):
    """Through the whole coarse stage, whose association does not change with a small step."""
    direction = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64)

    def user(bias):
        net = FusionWeights()
        with torch.no_grad():
            net.outer.bias.copy_(torch.tensor(bias))
        location = CoarseLocalizer(net)(paths, hall.deployment)
        return net, (location.geometry.ue_position @ direction).sum()

    net, value = user([0.0, 0.0])
    value.backward()
    for i in range(2):
        bump = [0.1 * (i == j) for j in range(2)]
        slope = (user(bump)[1] - user([-x for x in bump])[1]).detach() / 0.2
        # the step stops within a hundredth of a standard deviation; residual curvature is left out of the derivative
        assert float(slope) == pytest.approx(float(net.outer.bias.grad[i]), rel=0.25, abs=2e-3)


@BOTH
def test_neutral_weights_change_nothing(hall, paths, messages):
    with torch.no_grad():
        plain, fused = (
            CoarseLocalizer(net)(paths, hall.deployment) for net in (None, FusionWeights(messages=messages))
        )
    trained = CoarseLocalizer(FusionWeights(messages=messages))(paths, hall.deployment)
    for other in (fused, trained):
        assert all(torch.equal(a, b) for a, b in zip(plain.geometry, other.geometry, strict=True))
        assert torch.equal(plain.flags, other.flags)
