"""Local clouds: where the neighbours are, and merging against a loop."""

import pytest
import torch

from sensing.errors import ConfigError
from sensing.inference.clouds import NEIGHBOURS, merge, neighbourhood, spread
from tests.test_m_step import random_geometry


@pytest.mark.parametrize("count", NEIGHBOURS)
def test_neighbourhoods_are_symmetric_and_of_their_size(count):
    places = neighbourhood(count)
    assert places.shape == (count, 3)
    assert len({tuple(place) for place in places.tolist()}) == count
    assert (0.0, 0.0, 0.0) not in {tuple(place) for place in places.tolist()}
    assert (places.sum(0) == 0).all()


def test_unknown_neighbourhood_is_refused():
    with pytest.raises(ConfigError, match="neighbours must be one of 0, 6, 8, 14, 26, got 7"):
        neighbourhood(7)


def test_spread_surrounds_every_node(tiny):
    geometry = random_geometry(tiny.deployment, nodes=3, scenes=2)
    grid = spread(geometry, 0.5, 6)
    assert grid.node_position.shape == (2, 21, 3)
    assert torch.equal(grid.node_position[:, :3], geometry.node_position)
    assert torch.equal(grid.node_mask, geometry.node_mask.repeat(1, 7))
    gap = (grid.node_position[:, 3:].unflatten(1, (6, 3)) - geometry.node_position[:, None]).norm(dim=-1)
    torch.testing.assert_close(gap, torch.full_like(gap, 0.5))
    assert torch.equal(grid.member[..., :3], geometry.member)
    assert not grid.member[..., 3:].any()  # counting members still counts detected paths
    assert spread(geometry, 0.5, 0) is geometry


def slow_merge(position, mask, strength, distance):
    """Nodes that remain, and which node swallowed which, of one scene."""
    owner = {}
    for node in sorted(range(len(mask)), key=lambda i: (-strength[i], i)):
        if not mask[node] or node in owner:
            continue
        for other in range(len(mask)):
            near = sum((a - b) ** 2 for a, b in zip(position[node], position[other], strict=True)) < distance**2
            if other != node and mask[other] and other not in owner and near:
                owner[other] = node
        owner[node] = node
    return owner


def test_merge_against_a_loop(tiny):
    generator = torch.Generator().manual_seed(3)
    geometry = random_geometry(tiny.deployment, nodes=30, scenes=4, seed=1)
    geometry = geometry._replace(
        node_position=4.0 * torch.rand(4, 30, 3, generator=generator, dtype=torch.float64),
        member=(torch.rand(4, 3, 30, generator=generator) < 0.3) & geometry.node_mask[:, None],
    )
    strength = torch.rand(4, 30, generator=generator, dtype=torch.float64)
    found = merge(geometry, strength, 1.0)
    merged = 0
    for i in range(4):
        args = geometry.node_position[i].tolist(), geometry.node_mask[i].tolist(), strength[i].tolist()
        owner = slow_merge(*args, 1.0)
        remains = {node for node, by in owner.items() if node == by}
        assert set(found.node_mask[i].nonzero().flatten().tolist()) == remains
        member = torch.zeros(3, 30, dtype=torch.bool)
        for node, by in owner.items():
            member[:, by] |= geometry.member[i, :, node]
        assert torch.equal(found.member[i], member)
        merged += len(owner) - len(remains)
    assert merged > 10
    again = merge(found, strength, 1.0)
    assert torch.equal(again.node_mask, found.node_mask)
    gap = torch.cdist(found.node_position, found.node_position) + 9.0 * torch.eye(30)
    both = found.node_mask[:, :, None] & found.node_mask[:, None]
    assert gap[both].min() >= 1.0
