"""The hall of benchmarks and tests, that of `conf/scene/hall.yaml`; with six shared scatterers that of `hall_hard`."""

from typing import Any

from sensing import arrays, ofdm
from sensing.simulation import SceneSampler, Simulator, build_deployment

BANDWIDTH = 122.88e6


def hall(
    num_shared: int = 6, clock_offset_std: float = 1.0 / BANDWIDTH, height: float = 8.0, seed: int = 0, **law: Any
) -> Simulator:
    """Four stations in the corners of 40 x 40 m at 3/4 of the height, 8 x 8 antennas, 64 pilots over 123 MHz.

    Args:
        num_shared: scatterers that several stations can see.
        clock_offset_std: standard deviation of the clock offsets [s].
        height: of the hall [m].
        seed: of its scenes.
        law: further arguments of `SceneSampler`.
    """
    deployment = build_deployment(
        [[x, y, 0.75 * height] for x, y in ((0, 0), (40, 0), (40, 40), (0, 40))],
        arrays.upa(8, 8),
        ofdm.pilot_frequencies(1024, 120e3, 16),
        28e9,
        clock_offset_std,
        target=[20, 20, 0.5 * height],
        region=[[0, 0, 0], [40, 40, height]],
    )
    law = {"num_shared": num_shared, "num_specific": 2} | law
    points = [[1, 1, 0.5], [39, 39, height - 0.5]]
    return Simulator(deployment, SceneSampler([[3, 3, 1], [37, 37, 2]], points, **law), seed=seed)
