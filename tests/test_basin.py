"""Starts beside the optimum and far off it: what they leave unexplained, and which iterations they get."""

import math

import pytest
import torch

from sensing.bounds.asynchronous import uplink_bound
from sensing.containers import map_tensors
from sensing.errors import ConfigError
from sensing.inference.basin import check_shares, distance, unexplained
from sensing.inference.parts import chosen, joined, put
from sensing.inference.starts import perturbed_start
from sensing.inference.state import State, column_operator, prepare
from sensing.inference.unrolled import Unrolled
from sensing.simulation.sampler import scene_generator

AMPLITUDES = (0.0, 12.0, 1.0, 40.0)
"""Starts of four scenes: two in the noise, one off, one lost."""


@pytest.fixture(scope="module")
def mixed(hall_hard):
    example = hall_hard.simulator.examples("test", range(4), snr_db=10.0)
    bound = uplink_bound(example.scene, example.observation.noise_var, hall_hard.deployment)
    rngs = [scene_generator(0, "test", i, 2) for i in range(4)]
    size = torch.tensor(AMPLITUDES, dtype=torch.float64)
    geometry = perturbed_start(example, hall_hard.deployment, bound.covariance, size, 0, rngs, jitter_m=0.0)
    return example.observation, geometry


def run(net, mixed, hall_hard, where=None, **options):
    observation, geometry = mixed if where is None else (chosen(part, where) for part in mixed)
    with torch.no_grad():
        return net(observation, hall_hard.deployment, geometry, **options)


def test_unexplained_share_by_hand(hall_hard, mixed):
    """Residual of a fitted channel at every station, in a loop."""
    observation, geometry = mixed
    net = Unrolled(1)
    with torch.no_grad():
        refined = net(observation, hall_hard.deployment, geometry)
        final = refined.final
        share = unexplained(refined.problem, final.fit)
        model = column_operator(final.geometry, hall_hard.deployment).matvec(final.expectation.mean)
    for scene in range(4):
        worst = -math.inf
        for y, h, noise in zip(observation.y[scene], model[scene], observation.noise_var[scene], strict=True):
            left, received = (y - h).abs().square().mean(), y.abs().square().mean()
            deviation = noise / math.sqrt(y.numel())  # of the mean power of complex noise
            worst = max(worst, float((left - noise - 4 * deviation) / torch.clamp(received - noise, min=4 * deviation)))
        assert float(share[scene]) == pytest.approx(worst, rel=1e-9)


@pytest.mark.parametrize("snr_db", [-10.0, 20.0])
def test_the_truth_is_near_and_a_lost_start_is_far_at_any_snr(hall_hard, snr_db):
    indices = range(12)
    example = hall_hard.simulator.examples("test", indices, snr_db=snr_db)
    bound = uplink_bound(example.scene, example.observation.noise_var, hall_hard.deployment)
    net = Unrolled(1, near=1, far=[0.03, 0.4])
    for metres, near in ((0.0, True), (1.0, False)):
        rngs = [scene_generator(0, "test", i, 2) for i in indices]
        start = perturbed_start(example, hall_hard.deployment, bound.covariance, 0.0, 0, rngs, jitter_m=metres)
        problem, state = prepare(example.observation, hall_hard.deployment, start, torch.complex128)
        seen = net.look(state, problem)
        assert (seen.near == near).all()
        assert ((seen.distance == 0.0) == near).all()


def test_distance_grows_with_the_logarithm():
    share = torch.tensor([-1.0, 0.0, 0.03, math.sqrt(0.03 * 0.4), 0.4, 5.0, math.nan], dtype=torch.float64)
    found = distance(share, 0.03, 0.4)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0], dtype=torch.float64))


def test_near_scenes_get_classical_iterations_and_the_others_the_layers(hall_hard, mixed):
    settings = {"tied": False, "guard": False, "falling_taper": 8.0}
    net = Unrolled(3, near=2, **settings)
    near = torch.tensor([True, False, True, False])
    together = run(net, mixed, hall_hard)
    assert torch.equal(together.near, near)
    layers = run(Unrolled(3, **settings), mixed, hall_hard)
    classical = run(Unrolled(2), mixed, hall_hard)
    for name in ("ue_position", "offset_m", "node_position"):
        found, by_layers, by_few = (getattr(each.final.geometry, name) for each in (together, layers, classical))
        wide = near.reshape(-1, *[1] * (found.ndim - 1))
        torch.testing.assert_close(found, torch.where(wide, by_few, by_layers), rtol=0, atol=1e-7)
    torch.testing.assert_close(
        together.final.objective, torch.where(near, classical.final.objective, layers.final.objective)
    )
    for where, expected in ((near, classical), (~near, layers)):  # a batch of one kind is not taken apart
        alone = run(net, mixed, hall_hard, where)
        assert bool(alone.near.all()) == bool(near[where].all())
        position = expected.final.geometry.ue_position[where]
        torch.testing.assert_close(alone.final.geometry.ue_position, position, rtol=0, atol=1e-7)
    trained = run(net, mixed, hall_hard, history=True)
    assert not trained.near.any()  # training sees what the layers do
    assert torch.equal(trained.final.geometry.ue_position, layers.final.geometry.ue_position)


def test_near_scenes_do_not_fall_back(hall_hard, mixed):
    """Wild layers ruin the far scenes alone, and only these are redone."""
    net = Unrolled(4, near=2, fallback=True, tied=False, guard=False, step=6.0, cap=3.0)
    found = run(net, mixed, hall_hard)
    assert found.near.tolist() == [True, False, True, False]
    assert not (found.fallback & found.near).any()


def test_the_falling_taper_is_for_far_starts(hall_hard, mixed):
    """A start in the basin ends as without taper, a lost one as with the whole of it, in one batch."""
    far = [0.03, 0.1]
    found = run(Unrolled(3, falling_taper=8.0, far=far, guard=False), mixed, hall_hard)
    none = run(Unrolled(3, guard=False), mixed, hall_hard)
    whole = run(Unrolled(3, falling_taper=8.0, guard=False), mixed, hall_hard)
    users = [each.final.geometry.ue_position for each in (found, none, whole)]
    assert torch.equal(users[0][[0, 2]], users[1][[0, 2]])
    torch.testing.assert_close(users[0][3], users[2][3], rtol=0, atol=1e-9)
    assert (users[1][[0, 2, 3]] - users[2][[0, 2, 3]]).norm(dim=-1).min() > 1e-6  # the taper does act


def test_parts_of_a_batch():
    """Against indexing by hand, over two batch axes."""
    where = torch.tensor([[True, False, True], [False, False, True]])
    first, second = torch.arange(24.0).reshape(2, 3, 4), torch.arange(6).reshape(2, 3)
    whole = State(first, second, second > 2)
    part, rest = chosen(whole, where), chosen(whole, ~where)
    assert part.power.tolist() == [0, 2, 5]
    assert part.proposal.shape == (3, 4)
    for a, b in zip(joined(where, part, rest)[:3], whole[:3], strict=True):
        assert torch.equal(a, b)
    changed = put(whole, where, map_tensors(part, torch.zeros_like))
    assert changed.power.tolist() == [[0, 1, 0], [3, 4, 0]]
    assert torch.equal(whole.power, second)  # the old one stays


def test_impossible_shares_and_counts_are_errors():
    for shares in ([0.1], [0.4, 0.03], [0.0, 0.3], [0.1, math.inf]):
        with pytest.raises(ConfigError, match="far must be two growing shares"):
            check_shares(shares)
        with pytest.raises(ConfigError, match="far must be two growing shares"):
            Unrolled(1, far=shares)
    with pytest.raises(ConfigError, match="near must be >= 0, got -1"):
        Unrolled(1, near=-1)
