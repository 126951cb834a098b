"""Simulate the ranges and directions of `fusion_sample.csv`: paper 3's three stations and 40 targets.

python examples/make_fusion_sample.py [--out examples/fusion_sample.csv]
"""

import argparse
from pathlib import Path

import torch

from sensing.data.station_file import write_stations
from sensing.fusion.domain import hexagon
from sensing.fusion.measurements import StationMeasurements
from sensing.simulation.drops import DropSampler

STATIONS = [[115.47, 0.0, 10.0], [-57.735, 100.0, 10.0], [-57.735, -100.0, 10.0]]


def main() -> None:
    """Write the sample: 30 complete drops, then drops that lack something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("fusion_sample.csv"))
    sampler = DropSampler(STATIONS, hexagon(115.47, 1.5, 2.0), range_std_m=1.0, angle_std_deg=1.0)
    drops = sampler.sample(0, "sample", range(40))
    range_std, angle_std = drops.measured.range_std.clone(), drops.measured.angle_std.clone()
    angle_std[30:33] = torch.inf  # ranges alone
    range_std[33:35] = torch.inf  # directions alone
    angle_std[35:37], range_std[35:37, 2] = torch.inf, torch.inf  # ranges of two stations
    range_std[37, 1:], angle_std[37, 1:] = torch.inf, torch.inf  # one station
    range_std[38, 0] = torch.inf  # one range is missing
    range_m = drops.measured.range_m.clone()
    range_m[39, 1] += 20.0  # a reflection was taken for the line of sight
    measured = StationMeasurements(
        drops.measured.bs_position, range_m, drops.measured.azimuth, drops.measured.elevation, range_std, angle_std
    )
    write_stations(parser.parse_args().out, measured, drops.position)


if __name__ == "__main__":
    main()
