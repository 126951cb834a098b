"""Soft walls: nothing inside, a quadratic beyond, in the coarse fit and in the refinement alike."""

import torch
from scipy.optimize import least_squares

from sensing.channel import scene_paths
from sensing.coarse.least_squares import solve_location
from sensing.coarse.measurements import cluster_measurements
from sensing.containers import Geometry
from sensing.inference import state as inference_state
from sensing.inference.unrolled import Unrolled
from sensing.walls import beyond, user_walls
from tests.reference.oracle import C, detect, members


def test_distance_beyond_by_hand(hall):
    walls = user_walls(hall.deployment)  # 40 x 40 x 8 m, softness 5 per cent
    position = torch.tensor([[20.0, 30.0, 5.0], [42.0, -1.0, 8.8], [0.0, 40.0, 8.0]], dtype=torch.float64)
    distance, wall = beyond(position, walls)
    assert torch.allclose(distance, torch.tensor([[0, 0, 0], [2, -1, 0.8], [0, 0, 0]], dtype=torch.float64))
    expected = torch.tensor([[0, 0, 0], [1 / 4, 1 / 4, 1 / 0.16], [0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(wall, expected)


def test_no_region_no_walls(hall):
    walls = user_walls(hall.deployment._replace(region=None))
    assert not beyond(torch.full((2, 3), 1e6, dtype=torch.float64), walls)[1].any()


def shrunk(deployment, user):
    """The deployment with a region that ends 0.7 m below the user."""
    return deployment._replace(region=torch.stack([deployment.region[0], torch.cat([deployment.region[1, :2], user])]))


def test_solution_at_a_wall_minimises_the_walled_cost(hall):
    """Against scipy, which gets the wall as further residuals."""
    example = hall.simulator.examples("test", [1], 0.0)
    oracle = detect(example, hall.deployment)
    path, point = members(oracle)
    scene = example.scene
    deployment = shrunk(hall.deployment, scene.ue_position[0, 2:] - 0.7)
    data = cluster_measurements(path, oracle.paths)
    start = scene.ue_position, C * scene.clock_offset, scene.scatterer_position[:, point[0].clamp_min(0)]
    free = solve_location(data, *start, hall.deployment, tolerance=1e-10)
    held = solve_location(data, *start, deployment, tolerance=1e-10)
    top = float(deployment.region[1, 2])
    assert float(free.ue_position[0, 2]) > top
    assert top < float(held.ue_position[0, 2]) < float(free.ue_position[0, 2])

    def height(z):
        """Cost without the wall at a height, all else optimal: a stiff height prior pins it."""
        low, high = z - 1e-3, z + 1e-3
        pinned = hall.deployment._replace(ue_height_range=torch.tensor([low, high], dtype=torch.float64))
        return float(solve_location(data, *start, pinned, tolerance=1e-10).cost[0])

    softness = 0.05 * top
    best = least_squares(
        lambda z: [height(float(z[0])) ** 0.5, max(0.0, float(z[0]) - top) / softness], [top + 0.1], diff_step=1e-3
    )
    assert abs(float(best.x[0]) - float(held.ue_position[0, 2])) < 0.02
    # the walls tell nothing about the errors: the information is that of the paths at this place
    there = solve_location(data, held.ue_position, held.offset_m, held.position, hall.deployment, steps=0)
    assert torch.allclose(held.information, there.information, rtol=1e-6, atol=1e-3)


def test_refinement_feels_the_walls(hall):
    """Gradient and objective of the walls belong together, and inside nothing changes."""
    example = hall.simulator.examples("test", [1], 10.0)
    scene = example.scene
    paths = scene_paths(scene, hall.deployment)
    geometry = Geometry(
        scene.ue_position,
        C * scene.clock_offset,
        scene.scatterer_position,
        torch.ones_like(scene.scatterer_position[..., 0], dtype=torch.bool),
        scene.visible,
        C * paths.delay[..., :1],
        paths.direction[..., :1, :],
        torch.zeros_like(scene.visible[..., :1]),
    )
    deployment = shrunk(hall.deployment, scene.ue_position[0, 2:] - 0.7)
    inside, _ = inference_state.prepare(example.observation, hall.deployment, geometry, torch.complex128)
    outside, _ = inference_state.prepare(example.observation, deployment, geometry, torch.complex128)
    assert inference_state.log_prior(geometry, outside) < inference_state.log_prior(geometry, inside)

    def objective(user):
        return inference_state.log_prior(geometry._replace(ue_position=user), outside)[0]

    user = scene.ue_position.clone().requires_grad_()
    slope = torch.autograd.grad(objective(user), user)[0]
    moved = geometry._replace(ue_position=scene.ue_position)
    system = Unrolled().evaluate_at(example.observation, deployment, moved).system
    plain = Unrolled().evaluate_at(example.observation, hall.deployment, moved).system
    assert torch.allclose(system.gradient[..., :3] - plain.gradient[..., :3], slope)
    assert torch.equal(system.gradient[..., 3:], plain.gradient[..., 3:])
