"""The choice between candidates against loops over scenes."""

import pytest
import torch

from sensing.coarse.candidates import REPEAT_M, Candidates, best_distinct, decide, merge
from sensing.coarse.least_squares import Solution

COUNT = (3, 9, 1, 6)


def candidates(seed=0):
    """Some candidates of four scenes, at a few places each, so that repeats and rivals occur."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.arange(len(COUNT)).repeat_interleave(torch.tensor(COUNT))
    n = len(scene)
    ue = torch.randint(0, 4, (n, 3), generator=generator).double() * torch.tensor([1.0, 0.0, 0.0])
    ue = ue + 0.05 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    zero = torch.zeros(n, 4, 3, dtype=torch.float64)
    spread = 0.02 + 0.4 * torch.rand(n, generator=generator, dtype=torch.float64)
    information = torch.diag_embed((3.0 / spread.square())[:, None].expand(n, 7))
    solution = Solution(ue, zero[..., 0], zero, zero[:, 0, 0], information, zero[..., None].expand(n, 4, 3, 3))
    path = torch.randint(0, 5, (n, 4, 4), generator=generator)
    evidence = 8.0 * torch.randn(n, generator=generator, dtype=torch.float64)
    return Candidates(scene, path, path[:, 0], solution, evidence), spread


@pytest.mark.parametrize(("gap", "most"), [(5.0, None), (20.0, None), (1e9, None), (1e9, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_distinct_ones_against_a_loop(gap, most, seed):
    trial, _ = candidates(seed)
    place, evidence, expected, repeats = trial.solution.ue_position, trial.evidence, [], 0
    for scene in range(len(COUNT)):
        rows = (trial.scene == scene).nonzero().flatten().tolist()
        rows.sort(key=lambda row: -float(evidence[row]))
        kept = []
        for number, row in enumerate(rows):
            repeat = any((place[row] - place[other]).norm() < REPEAT_M for other in rows[:number])
            repeats += repeat
            if not repeat and evidence[row] > evidence[rows[0]] - gap:
                kept.append(row)
        expected += sorted(kept[:most])
    assert repeats > 0
    assert best_distinct(evidence, place, trial.scene, len(COUNT), gap, most).tolist() == expected


@pytest.mark.parametrize(("gap", "deviations"), [(6.0, 4.0), (30.0, 6.0)])
@pytest.mark.parametrize("seed", range(4))
def test_best_and_rival_against_a_loop(gap, deviations, seed):
    trial, spread = candidates(seed)
    found = decide(trial, len(COUNT), gap, deviations)
    assert 0 < (found.rival != 0).any(-1).sum() < len(COUNT)
    for scene in range(len(COUNT)):
        rows = (trial.scene == scene).nonzero().flatten().tolist()
        best = max(rows, key=lambda row: float(trial.evidence[row]))
        assert torch.equal(found.path[scene], trial.path[best])
        assert torch.equal(found.direct[scene], trial.direct[best])
        assert torch.equal(found.solution.ue_position[scene], trial.solution.ue_position[best])
        assert found.evidence[scene] == trial.evidence[best]
        ways = [trial.solution.ue_position[row] - trial.solution.ue_position[best] for row in rows]
        ways = [
            way
            for way, row in zip(ways, rows, strict=True)
            if way.norm() > deviations * spread[best] and trial.evidence[row] > trial.evidence[best] - gap
        ]
        wanted = max(ways, key=lambda way: float(way.norm()), default=torch.zeros(3, dtype=torch.float64))
        assert torch.equal(found.rival[scene], wanted)


def test_merge_takes_rows_and_pads_the_narrower():
    old, _ = candidates(0)
    new, _ = candidates(1)
    fewer = new.solution._replace(position=new.solution.position[:, :2] + 1.0)
    new = new._replace(path=new.path[:, :2], solution=fewer)
    better = torch.arange(len(old.scene)) % 3 == 0
    for pair in ((new, old), (old, new)):
        found = merge(better, *pair)
        for row, taken in enumerate(better.tolist()):
            source = pair[0] if taken else pair[1]
            width = source.path.shape[1]
            assert torch.equal(found.path[row, :width], source.path[row])
            assert (found.path[row, width:] == -1).all()
            assert torch.equal(found.solution.position[row, :width], source.solution.position[row])
            assert (found.solution.position[row, width:] == 0).all()
            assert found.evidence[row] == source.evidence[row]
            assert torch.equal(found.solution.information[row], source.solution.information[row])
