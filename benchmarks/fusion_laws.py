"""The shipped fusion networks on laws that they have and have not seen: 90 % errors over those of equal weights.

python -m benchmarks.fusion_laws [--drops 2000]        prints the table of docs/fusion.md
"""

import argparse
import math

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from sensing.fusion.domain import hexagon
from sensing.fusion.learned import LearnedFusion
from sensing.learning import FusionLearner
from sensing.simulation.drops import DropSampler

NETWORKS = ("fusion", "fusion_weights", "fusion_u10", "fusion_weights_u10", "fusion_u5", "fusion_weights_u5")
RADIUS = 200.0 / math.sqrt(3.0)
CORNERS = [[RADIUS * math.cos(k * math.pi / 3), RADIUS * math.sin(k * math.pi / 3), 10.0] for k in range(6)]
THREE = CORNERS[::2]
STATIONS = {1: THREE[:1], 2: THREE[:2], 3: THREE, 4: [*THREE, CORNERS[1]], 6: CORNERS}
DOMAIN = hexagon(RADIUS, height_m=1.5, spacing_m=1.0)
RESAMPLES = 500


def uniform(largest_m: float, **more: object) -> dict[str, object]:
    """Biases uniform from 0."""
    return {"bias": "uniform", "bias_scale_m": largest_m, **more}


UNKNOWN = uniform(10.0, random_scale=True)
CASES = [
    *((f"U(0, {b})", 3, uniform(b), "hybrid") for b in (10, 5, 2, 1)),
    ("U(0, b), b unknown", 3, UNKNOWN, "hybrid"),
    ("no bias", 3, {}, "hybrid"),
    *((f"U(0, {b})", count, uniform(b), "hybrid") for count in (1, 2, 4, 6) for b in (10, 5)),
    *(("no bias", count, {}, "hybrid") for count in (1, 2, 4, 6)),
    *((name, 3, law, "toa") for name, law in (("U(0, 10)", uniform(10.0)), ("no bias", {}))),
    *((name, 2, law, "toa") for name, law in (("U(0, 10)", uniform(10.0)), ("no bias", {}))),
    *(("no bias", count, {}, "aoa") for count in (3, 2)),
    *((f"exponential, mean {b}", 3, {"bias": "exponential", "bias_scale_m": b}, "hybrid") for b in (5.0, 2.5)),
    *((f"delta {b}", 3, {"bias": "delta", "bias_scale_m": b}, "hybrid") for b in (10.0, 5.0, 2.5)),
    *((f"one station of three U(0, {b})", 3, uniform(b, biased=[1]), "hybrid") for b in (10, 5)),
    *((f"two stations of three U(0, {b})", 3, uniform(b, biased=[0, 1]), "hybrid") for b in (10, 5)),
    ("one station of three delta 10", 3, {"bias": "delta", "bias_scale_m": 10.0, "biased": [1]}, "hybrid"),
    ("U(0, 20)", 3, uniform(20.0), "hybrid"),
    ("U(0, 10), sigma 0.5, 1, 3 m", 3, uniform(10.0, range_std_m=[0.5, 1, 3], shuffle=True), "hybrid"),
    ("U(0, 10), 2 degrees", 3, uniform(10.0, angle_std_deg=2.0), "hybrid"),
    ("no bias, sigma 0.5, 1, 3 m", 3, {"range_std_m": [0.5, 1, 3], "shuffle": True}, "hybrid"),
    ("no bias, 2 degrees", 3, {"angle_std_deg": 2.0}, "hybrid"),
    ("no bias, claimed 1 m, are 2 m", 3, {"range_std_m": 2.0, "assumed_range_std_m": 1.0}, "hybrid"),
]


def ratio(error: Tensor, base: Tensor) -> str:
    """Ratio of 90 % errors with its paired interval."""
    index = torch.randint(len(error), (RESAMPLES, len(error)), generator=torch.Generator().manual_seed(0))
    many = error[index].quantile(0.9, dim=1) / base[index].quantile(0.9, dim=1)
    low, high = many.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{float(error.quantile(0.9) / base.quantile(0.9)):.3f} [{low:.3f}, {high:.3f}]"


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drops", type=int, default=2000)
    count = parser.parse_args().drops
    torch.set_num_threads(1)
    networks = {"equal": LearnedFusion()} | {name: FusionLearner.load(name).fusion for name in NETWORKS}
    print(f"| biases | stations | modality | equal, 90 % [m] | {' | '.join(NETWORKS)} |")
    print("|" + "---|" * (4 + len(NETWORKS)))
    for name, stations, law, modality in track(CASES, "laws", console=Console(stderr=True)):
        drops = DropSampler(STATIONS[stations], DOMAIN, **law).sample(0, "test", range(count))
        measured = drops.measured.only(modality)
        error = {key: (net(measured, DOMAIN).position - drops.position).norm(dim=-1) for key, net in networks.items()}
        equal = error.pop("equal")
        cells = [name, str(stations), modality, f"{float(equal.quantile(0.9)):.2f}"]
        print("| " + " | ".join([*cells, *(ratio(each, equal) for each in error.values())]) + " |", flush=True)


if __name__ == "__main__":
    main()
