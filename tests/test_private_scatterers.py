"""Scatterers of one station: the closed form against the scenes that made the paths."""

import pytest
import torch

from sensing.coarse.private_scatterers import private_scatterers
from tests.conftest import build
from tests.reference.oracle import C, detect


@pytest.mark.parametrize("offset_over_bandwidth", [1.0, 100.0])
def test_exact_paths_lead_to_their_scatterers(offset_over_bandwidth):
    setup = build(4, offset_over_bandwidth / 122.88e6)
    example = setup.simulator.examples("test", range(5), snr_db=60.0)
    oracle = detect(example, setup.deployment, noise=0.0)
    ue, offset = example.scene.ue_position, C * example.scene.clock_offset
    found = private_scatterers(oracle.paths, oracle.paths.mask, ue, offset, setup.deployment)
    assert torch.equal(found.mask, oracle.paths.mask)
    truth = example.scene.scatterer_position[torch.arange(5)[:, None, None], oracle.point.clamp_min(0)]
    assert (found.position - truth)[found.mask].norm(dim=-1).max() < 1e-6


def test_what_no_single_bounce_explains_is_left_out(hall):
    example = hall.simulator.examples("test", range(2), snr_db=60.0)
    paths = detect(example, hall.deployment, noise=0.0).paths
    ue, offset = example.scene.ue_position, C * example.scene.clock_offset
    direct = (ue[:, None] - hall.deployment.bs_position).norm(dim=-1)[..., None]
    for range_m in (direct - 0.5, direct + 120.0):  # shorter than the straight way; a bounce far outside
        wrong = paths._replace(range_m=(range_m + offset[..., None]).expand_as(paths.range_m))
        found = private_scatterers(wrong, paths.mask, ue, offset, hall.deployment)
        assert not found.mask.any()
        assert torch.isfinite(found.position).all()
    some = paths.mask.clone()
    some[:, 0] = False
    assert torch.equal(private_scatterers(paths, some, ue, offset, hall.deployment).mask, some)
