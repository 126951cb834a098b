"""Which clusters are echoes of others: scatterers, their later copies and their mirror images."""

import pytest
import torch

from sensing.coarse.clusters import Clusters
from sensing.coarse.echoes import echoes

STD = 0.05
POINT = [10.0, 20.0, 3.0]
WALL = 42.0
ORIGINAL = (*POINT, 18.0)


def clusters(rows, present=None):
    """Clusters at (x, y, z, excess) with isotropic errors."""
    rows = torch.as_tensor(rows, dtype=torch.float64)
    rows = rows[None] if rows.ndim == 2 else rows
    count = rows.shape[1]
    return Clusters(
        path=torch.zeros(len(rows), count, 4, dtype=torch.int64),
        position=rows[..., :3],
        excess=rows[..., 3],
        covariance=(STD**2 * torch.eye(4, dtype=torch.float64)).expand(len(rows), count, 4, 4),
        log_ratio=torch.ones(len(rows), count, dtype=torch.float64),
        mask=torch.ones(len(rows), count, dtype=torch.bool) if present is None else torch.tensor(present),
    )


LATER = (*POINT, 23.0)  # the user's leg bounced once more
IN_WALL = (2 * WALL - 10.0, 20.0, 3.0, 18.0)  # the station's leg bounced at the wall x = 42
IN_SKEW_WALL = (20.0 + 40.0, 10.0 + 40.0, 3.0, 18.0)  # at the wall x + y = 70
IN_GROUND = (10.0, 20.0, -3.0, 18.0)  # at the ground
UNRELATED = (25.0, 12.0, 5.0, 11.0)


def test_only_the_echoes_are_marked(hall):
    rows = [ORIGINAL, LATER, IN_WALL, IN_SKEW_WALL, IN_GROUND, UNRELATED]
    assert echoes(clusters(rows), hall.deployment)[0].tolist() == [False, True, True, True, True, False]
    for seed in range(3):  # in any order
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
        found = echoes(clusters([rows[i] for i in order]), hall.deployment)[0].tolist()
        assert found == [i in (1, 2, 3, 4) for i in order]


def test_an_echo_needs_its_original(hall):
    for echo in (LATER, IN_WALL, IN_SKEW_WALL, IN_GROUND):
        assert not echoes(clusters([echo, UNRELATED]), hall.deployment).any()
        found = echoes(clusters([ORIGINAL, echo], [[False, True]]), hall.deployment)
        assert not found.any()
        assert echoes(clusters([ORIGINAL, echo]), hall.deployment).tolist() == [[False, True]]


@pytest.mark.parametrize(
    "other",
    [
        (84.0 - 10.0, 20.0, 3.0, 19.0),  # another excess
        (84.0 - 10.0, 20.0, 4.0, 18.0),  # another height, another place
        (10.0, 21.0, -3.0, 18.0),  # not below
        (10.5, 20.0, 3.0, 23.0),  # later, but beside it
        (*POINT, 18.1),  # twice the same, to within errors
    ],
)
def test_near_misses_are_no_echoes(hall, other):
    assert not echoes(clusters([ORIGINAL, other]), hall.deployment).any()


def test_vague_models_forgive_what_exact_ones_do_not(hall):
    """An image half a metre off its height is one only where the model errs by as much."""
    rows = clusters([ORIGINAL, (74.0, 20.0, 3.5, 18.0)])
    assert not echoes(rows, hall.deployment).any()
    assert echoes(rows, hall.deployment, slack_m=0.3).tolist() == [[False, True]]


def test_excesses_wrap(hall):
    """Later is meant modulo the range ambiguity."""
    period = float(hall.deployment.range_ambiguity)
    late = (*POINT, 23.0 - period)
    assert echoes(clusters([ORIGINAL, late]), hall.deployment).tolist() == [[False, True]]
    same = (74.0, 20.0, 3.0, 18.0 - period)
    assert echoes(clusters([ORIGINAL, same]), hall.deployment).tolist() == [[False, True]]


def test_scenes_are_judged_alone(hall):
    scenes = [[ORIGINAL, LATER, UNRELATED], [UNRELATED, LATER, ORIGINAL], [LATER, UNRELATED, IN_GROUND]]
    found = echoes(clusters(scenes), hall.deployment)
    # in the last scene the later copy has lost its original, and the image has another excess
    assert found.tolist() == [[False, True, False], [False, True, False], [False, False, False]]
    for b, scene in enumerate(scenes):
        assert torch.equal(echoes(clusters(scene), hall.deployment)[0], found[b])
