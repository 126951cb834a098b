"""Algorithm 1 against exhaustive search on small graphs and on rays that truly meet."""

from itertools import combinations, product

import pytest
import torch

from sensing.coarse import cliques as cliques_module
from sensing.coarse.cliques import all_cliques, cluster_rays, ray_graph
from sensing.coarse.triangulation import triangulate
from sensing.containers import PathEstimates, map_tensors
from tests.conftest import build
from tests.reference.oracle import detect


def random_graph(scenes, stations, count, density, seed):
    graph = torch.zeros(scenes, stations, count, stations, count, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for p, q in combinations(range(stations), 2):
        edges = torch.rand(scenes, count, count, generator=generator) < density
        graph[:, p, :, q], graph[:, q, :, p] = edges, edges.mT
    return graph


def brute_force(graph, min_views):
    """Cliques of one scene by trying every choice of no ray or one ray per station."""
    stations, count = graph.shape[:2]
    found = set()
    for choice in product(range(-1, count), repeat=stations):
        rays = [(q, path) for q, path in enumerate(choice) if path >= 0]
        if len(rays) >= min_views and all(graph[p, i, q, j] for (p, i), (q, j) in combinations(rays, 2)):
            found.add(choice)
    return found


@pytest.mark.parametrize(("stations", "density", "min_views"), [(3, 0.3, 2), (3, 0.6, 3), (4, 0.5, 2), (4, 0.5, 4)])
def test_all_cliques_are_found_once(stations, density, min_views):
    graph = random_graph(3, stations, 4, density, seed=stations)
    cliques = all_cliques(graph, min_views)
    for scene in range(3):
        found = [tuple(path) for path in cliques.path[cliques.scene == scene].tolist()]
        assert len(found) == len(set(found))
        assert set(found) == brute_force(graph[scene], min_views)


def slow_algorithm(paths, deployment, threshold, min_views, box):
    """Algorithm 1 of one scene by loops: best clique, remove its rays, build all cliques anew."""
    graph = ray_graph(PathEstimates(*(field[None] for field in paths)), deployment, threshold)[0]
    low, high = box[0] - 0.1 * (box[1] - box[0]), box[1] + 0.1 * (box[1] - box[0])
    taken = []
    while True:
        ranked = []
        for choice in brute_force(graph, min_views):
            rays = [(q, path) for q, path in enumerate(choice) if path >= 0]
            origin = torch.stack([deployment.bs_position[q] for q, _ in rays])
            direction = torch.stack([paths.direction[q, path] for q, path in rays])
            point = triangulate(origin, direction, range_weighted=True)
            if (point.ray_length > 0).all() and (point.position > low).all() and (point.position < high).all():
                ranked.append((-len(rays), float(point.residual), choice))
        if not ranked:
            return taken
        best = min(ranked)[2]
        taken.append(best)
        for q, path in enumerate(best):
            if path >= 0:
                graph[q, path], graph[:, :, q, path] = False, False


@pytest.mark.parametrize("min_views", [2, 3])
def test_greedy_order_is_that_of_the_algorithm(hall, min_views):
    example = hall.simulator.examples("test", range(3), snr_db=5.0)
    paths = map_tensors(detect(example, hall.deployment).paths, lambda field: field[:, :, :5])
    found = cluster_rays(paths, hall.deployment, 1.0, min_views)
    for scene in range(3):
        one = map_tensors(paths, lambda field, scene=scene: field[scene])
        wanted = slow_algorithm(one, hall.deployment, 1.0, min_views, hall.deployment.region)
        taken = found.path[scene][found.mask[scene]].tolist()
        assert [tuple(path) for path in taken] == wanted
        assert len(wanted) > 1


def test_exact_rays_of_high_stations_give_exactly_the_true_scatterers():
    setup = build(8)
    example = setup.simulator.examples("test", range(6), snr_db=60.0)
    oracle = detect(example, setup.deployment, noise=0.0)
    found = cluster_rays(oracle.paths, setup.deployment, 1e-6, min_views=2)
    visible = example.scene.visible
    for scene in range(6):
        shared = {n for n in range(visible.shape[-1]) if visible[scene, :, n].sum() > 1}
        seen = set()
        for slot in found.mask[scene].nonzero().flatten().tolist():
            members = found.path[scene, slot]
            points = {int(oracle.point[scene, q, members[q]]) for q in range(4) if members[q] >= 0}
            assert len(points) == 1
            point = points.pop()
            assert (members >= 0).tolist() == visible[scene, :, point].tolist()
            gap = found.position[scene, slot] - example.scene.scatterer_position[scene, point]
            assert gap.norm() < 1e-5
            seen.add(point)
        assert seen == shared


def test_no_ray_is_used_twice_and_scenes_do_not_mix(hall):
    example = hall.simulator.examples("test", range(4), snr_db=0.0)
    paths = detect(example, hall.deployment).paths
    found = cluster_rays(paths, hall.deployment, 1.5, min_views=2)
    for scene in range(4):
        for q in range(4):
            used = [int(path) for path in found.path[scene, :, q] if path >= 0]
            assert len(used) == len(set(used))
            assert paths.mask[scene, q, used].all()
        alone = cluster_rays(map_tensors(paths, lambda x, i=scene: x[i : i + 1]), hall.deployment, 1.5, min_views=2)
        count = int(alone.mask.sum())
        assert torch.equal(found.path[scene, :count], alone.path[0, :count])
        assert not found.mask[scene, count:].any()
    assert ((found.path >= 0).sum(-1)[found.mask] >= 2).all()


def test_nothing_detected_and_stations_that_look_away(hall):
    example = hall.simulator.examples("test", range(2), snr_db=10.0)
    paths = detect(example, hall.deployment).paths
    nothing = cluster_rays(paths._replace(mask=paths.mask & False), hall.deployment, 0.3)
    assert nothing.path.shape == (2, 1, 4)
    assert not nothing.mask.any()
    # rays turned by half a circle meet, if at all, outside the hall
    away = cluster_rays(paths._replace(direction=paths.direction * torch.tensor([-1.0, -1, 1])), hall.deployment, 0.3)
    assert not away.mask.any()
    assert torch.isfinite(away.position).all()


def test_stations_at_one_point_and_absurd_thresholds_stay_small(hall):
    """All rays of such stations meet, all rays are within a kilometre: neither may cost memory or make clusters."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(2, 4, 24, 3, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    mask = torch.ones(2, 4, 24, dtype=torch.bool)
    blank = torch.zeros(2, 4, 24, 4, 4, dtype=torch.float64)
    paths = PathEstimates(blank[..., 0, 0], direction, blank[..., 0, 0], blank, blank, mask)
    together = hall.deployment._replace(bs_position=hall.deployment.bs_position[:1].expand(4, 3))
    assert not cluster_rays(paths, together, 0.3).mask.any()
    assert ray_graph(paths, hall.deployment, 1e3).sum() < 20  # hardly anything is further away than the threshold
    wide = ray_graph(paths, hall.deployment, 3.0)
    assert torch.equal(wide, wide.permute(0, 3, 4, 1, 2))


def test_of_too_many_edges_the_closest_remain(hall, monkeypatch):
    example = hall.simulator.examples("test", range(2), snr_db=10.0)
    paths = detect(example, hall.deployment).paths
    all_edges = ray_graph(paths, hall.deployment, 2.0)
    monkeypatch.setattr(cliques_module, "EDGES", 30)
    few = ray_graph(paths, hall.deployment, 2.0)
    assert (all_edges.sum((1, 2, 3, 4)) > 60).all()
    assert (few.sum((1, 2, 3, 4)) == 60).all()
    assert not (few & ~all_edges).any()
    sharper = ray_graph(paths, hall.deployment, 0.05)
    monkeypatch.setattr(cliques_module, "EDGES", 10**6)
    assert torch.equal(sharper, ray_graph(paths, hall.deployment, 0.05))
