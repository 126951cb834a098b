"""The benchmark behind docs/paper1.md counts right."""

import torch

from benchmarks.hall import hall
from benchmarks.paper_claims import origin, purity
from tests.reference.oracle import detect


def test_origin_of_paths_is_the_scatterer_that_made_them():
    simulator = hall(8)
    example = simulator.examples("test", range(4), snr_db=15.0)
    oracle = detect(example, simulator.deployment)
    found = origin(oracle.paths, example, simulator.deployment)
    assert (found == oracle.point)[oracle.paths.mask].double().mean() > 0.98
    assert (found[~oracle.paths.mask] == -1).all()
    # a reach of a few metres does not name another scatterer
    assert (origin(oracle.paths, example, simulator.deployment, 4.0) == found)[found >= 0].double().mean() > 0.98
    ghost = oracle.paths._replace(range_m=oracle.paths.range_m + 60.0)
    assert (origin(ghost, example, simulator.deployment) == -1).double().mean() > 0.95


def test_purity_counts_mixed_and_ghostly_clusters():
    point = torch.tensor([[[5, 7, -1], [7, 5, -1], [5, -1, 7]]])
    path = torch.tensor([[[0, 1, 0], [1, 1, -1], [2, -1, 1], [1, 0, 2], [0, -1, -1]]])
    # 5 everywhere; 7 with 5; two ghosts; 7 everywhere; seen by one station
    assert purity(path, point) == (2, 4)
