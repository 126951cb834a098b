"""The scenes of the rows without a peer: the default hall and its harder variant with six shared scatterers."""

from sensing import arrays, ofdm
from sensing.simulation import SceneSampler, Simulator, build_deployment


def hall(num_shared: int = 6) -> Simulator:
    """Four stations in the corners of 40 x 40 m, 8 x 8 antennas, 64 pilots over 123 MHz."""
    deployment = build_deployment(
        [[0, 0, 6], [40, 0, 6], [40, 40, 6], [0, 40, 6]],
        arrays.upa(8, 8),
        ofdm.pilot_frequencies(1024, 120e3, 16),
        28e9,
        1 / 122.88e6,
        target=[20, 20, 4],
        region=[[0, 0, 0], [40, 40, 8]],
    )
    return Simulator(deployment, SceneSampler([[3, 3, 1], [37, 37, 2]], [[1, 1, 0.5], [39, 39, 7.5]], num_shared, 2))
