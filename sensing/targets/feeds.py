"""What a fusion centre gets of the radar's echoes: ranges and directions of the receiving stations."""

import torch

from sensing.checks import check_finite, check_shape
from sensing.errors import DomainError
from sensing.fusion.feeds import line_axis, station_measurements
from sensing.fusion.measurements import StationMeasurements
from sensing.radar.network import RadarNetwork
from sensing.targets.echoes import EchoEstimates


def echo_measurements(
    echoes: EchoEstimates, network: RadarNetwork, height_m: float | None = None
) -> StationMeasurements:
    """Ranges and directions of a target from the echoes of every link.

    The way of a monostatic link is twice the range, in deviation too. The way of a link between two stations is
    no distance from either: such a link gives the direction from its receiver alone. Ways are known modulo the
    network's ambiguity, and taken as they are.

    Args:
        echoes: [* link] estimates, by `EchoEstimator`.
        network: the stations.
        height_m: known height of the target, which completes the directions of a line of antennas; None: unknown.

    Returns:
        Measurements [* link], a "station" for each link at its receiver; deviations infinite where there is no echo.

    Raises:
        ShapeError, DomainError: an argument does not fit.
    """
    check_shape("echoes.range_m", echoes.range_m, "* link", link=len(network.links))
    for name, field in echoes._asdict().items():
        check_finite(f"echoes.{name}", field)
    if height_m is not None and not abs(height_m) < float("inf"):
        raise DomainError(f"height_m must be a number of metres or None, got {height_m}")
    # ways in ranges; the Doppler's information is apart from the rest, and left out
    keep, scale = [0, 2, 3, 4], echoes.information.new_tensor([2.0, 1.0, 1.0, 1.0])
    information = echoes.information[..., keep, :][..., :, keep] * scale[:, None] * scale
    own = network.links[:, 0] == network.links[:, 1]
    return station_measurements(
        network.receivers.bs_position,
        0.5 * echoes.range_m,
        echoes.direction,
        information,
        echoes.mask,
        torch.where(own, 0.0, torch.inf).to(echoes.range_m),
        height_m,
        line_axis(network.receivers),
    )
