"""GOSPA of batched scenes against Stone Soup's metric generator, one scene after the other as its interface asks."""

import datetime
from collections.abc import Iterator

import torch

from benchmarks.frame import Case, installed
from sensing.metrics import gospa

INSTALL = "pip install stonesoup"
CUTOFF, ORDER = 2.0, 2.0


def cases(tiny: bool) -> Iterator[Case]:
    """Ten true and up to twelve estimated points per scene, a third of them far off; 100 scenes and one."""
    for scenes, points, nodes in ((3, 4, 5),) if tiny else ((100, 10, 12), (1, 10, 12), (100, 30, 36)):
        generator = torch.Generator().manual_seed(0)
        true = 40.0 * torch.rand(scenes, points, 3, dtype=torch.float64, generator=generator)
        extra = 40.0 * torch.rand(scenes, nodes - points, 3, dtype=torch.float64, generator=generator)
        noise = torch.randn(scenes, points, 3, dtype=torch.float64, generator=generator)
        estimated = torch.cat([true + noise, extra], -2)
        node_mask = torch.rand(scenes, nodes, generator=generator) < 0.9
        point_mask = torch.rand(scenes, points, generator=generator) < 0.9

        def ours(data: tuple[torch.Tensor, ...] = (estimated, node_mask, true, point_mask)) -> torch.Tensor:
            return gospa(*data, cutoff=CUTOFF, order=ORDER)

        name = installed("stonesoup")
        yield Case(
            what="GOSPA, float64",
            size=f"{scenes} scenes, {nodes} estimates, {points} points",
            ours=ours,
            peer=_stonesoup(estimated, node_mask, true, point_mask) if name else None,
            peer_name=name,
            per=(scenes, "scene"),
            target=10.0,
            note="the peer's states are built beforehand and not timed",
        )


def _stonesoup(estimated: torch.Tensor, node_mask: torch.Tensor, true: torch.Tensor, point_mask: torch.Tensor):
    from stonesoup.metricgenerator.ospametric import GOSPAMetric
    from stonesoup.types.state import State

    now = datetime.datetime(2020, 1, 1)
    metric = GOSPAMetric(p=ORDER, c=CUTOFF)
    pairs = [
        ([State(x, now) for x in e[m].numpy()], [State(x, now) for x in t[v].numpy()])
        for e, m, t, v in zip(estimated, node_mask, true, point_mask, strict=True)
    ]

    def run() -> torch.Tensor:
        values = [metric.compute_gospa_metric(found, truth)[0].value["distance"] for found, truth in pairs]
        return torch.tensor(values, dtype=torch.float64)

    return run
