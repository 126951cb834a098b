"""Clock offset differences from true and accidental ray pairs made by hand."""

from itertools import combinations

import pytest
import torch

from sensing.coarse.alignment import align_stations
from sensing.coarse.pairs import RayPairs, ray_pairs, wrap
from tests.reference.oracle import C, detect

SPAN = torch.tensor(60.0, dtype=torch.float64)
STD = 0.2


def pairs_with(offset, true=5, false=20, ambiguity=float("inf"), seed=0):
    """`true` pairs of each two stations that agree with the offsets [bs], `false` ones anywhere."""
    generator = torch.Generator().manual_seed(seed)
    station, value = [], []
    for a, b in combinations(range(len(offset)), 2):
        right = offset[a] - offset[b] + STD * torch.randn(true, generator=generator, dtype=torch.float64)
        wrong = float(SPAN) * (torch.rand(false, generator=generator, dtype=torch.float64) - 0.5)
        value.append(torch.cat([right, wrong]))
        station += [[a, b]] * (true + false)
    value = wrap(torch.cat(value), torch.tensor(ambiguity, dtype=torch.float64))[None]
    return RayPairs(
        station=torch.tensor(station)[None],
        path=torch.zeros(1, len(station), 2, dtype=torch.int64),
        position=torch.zeros(1, len(station), 3, dtype=torch.float64),
        offset_difference=value,
        offset_variance=torch.full_like(value, STD**2),
        ray_log_ratio=torch.full_like(value, 2.0),
        mask=torch.ones_like(value, dtype=torch.bool),
    )


def relative(offset):
    return offset - offset[..., :1]


@pytest.mark.parametrize("seed", range(5))
def test_true_offsets_win_over_accidental_pairs(seed):
    offset = 8.0 * torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = align_stations(pairs_with(offset, seed=seed), 4, torch.tensor(float("inf")), SPAN)
    assert (found.offset_m[0, 0] - relative(offset)).abs().max() < 3.0 * STD
    assert found.aligned[0, 0].all()
    assert (found.score[0].diff() <= 0).all()


def test_offsets_beyond_the_ambiguity_are_found_modulo_it():
    period = torch.tensor(50.0, dtype=torch.float64)
    offset = torch.tensor([0.0, 24.0, -23.0, 70.0], dtype=torch.float64)
    found = align_stations(pairs_with(offset, ambiguity=50.0), 4, period, period)
    assert wrap(found.offset_m[0, 0] - relative(offset), period).abs().max() < 3.0 * STD
    assert (found.offset_m.abs() <= 25.0 + 1e-9).all()


def test_order_of_stations_does_not_matter():
    offset = torch.tensor([3.0, -8.0, 12.0, 5.0], dtype=torch.float64)
    pairs = pairs_with(offset)
    new_name = torch.tensor([2, 0, 3, 1])  # station q is called new_name[q]
    named = new_name[pairs.station]
    swap = named[..., 0] > named[..., 1]
    turned = pairs._replace(
        station=torch.where(swap[..., None], named.flip(-1), named),
        offset_difference=torch.where(swap, -pairs.offset_difference, pairs.offset_difference),
    )
    infinite = torch.tensor(float("inf"))
    first, second = (align_stations(each, 4, infinite, SPAN).offset_m[0, 0] for each in (pairs, turned))
    assert torch.allclose(relative(second[new_name]), first, atol=1e-6)


def test_a_station_without_pairs_is_not_aligned():
    pairs = pairs_with(torch.tensor([3.0, -8.0, 12.0, 5.0], dtype=torch.float64))
    pairs = pairs._replace(mask=pairs.mask & (pairs.station != 2).all(-1))
    found = align_stations(pairs, 4, torch.tensor(float("inf")), SPAN)
    assert found.aligned[0, 0].tolist() == [True, True, False, True]
    assert abs(float(found.offset_m[0, 0, 1]) + 11.0) < 3.0 * STD
    assert torch.isfinite(found.offset_m).all()


@pytest.mark.parametrize("stations", [1, 2, 4])
def test_no_pairs_at_all(stations):
    pairs = pairs_with(torch.zeros(max(stations, 2), dtype=torch.float64), true=1, false=1)
    pairs = pairs._replace(mask=torch.zeros_like(pairs.mask), station=pairs.station.clamp_max(stations - 1))
    found = align_stations(pairs, stations, torch.tensor(float("inf")), SPAN)
    assert torch.isfinite(found.offset_m).all()
    assert not found.aligned[0, 0].all()


def test_two_equally_good_alignments_are_both_returned():
    low, high = (torch.tensor([0.0, x, 2 * x], dtype=torch.float64) for x in (-9.0, 7.0))
    both = [pairs_with(offset, true=4, false=0, seed=seed) for seed, offset in enumerate((low, high))]
    pairs = RayPairs(*(torch.cat(fields, 1) for fields in zip(*both, strict=True)))
    found = align_stations(pairs, 3, torch.tensor(float("inf")), SPAN, hypotheses=4)
    for offset in (low, high):
        assert (found.offset_m[0] - offset).abs().amax(-1).min() < 3.0 * STD


def test_scenes_of_the_hall(hall):
    example = hall.simulator.examples("test", range(16), snr_db=15.0)
    pairs = ray_pairs(detect(example, hall.deployment).paths, hall.deployment)
    found = align_stations(pairs, 4, hall.deployment.range_ambiguity, SPAN)
    true = relative(C * example.scene.clock_offset)
    error = wrap(found.offset_m[:, 0] - true, hall.deployment.range_ambiguity).abs().amax(-1)
    assert (error < 1.0).double().mean() >= 0.9


def test_batch_equals_singles(hall):
    example = hall.simulator.examples("test", range(4), snr_db=15.0)
    pairs = ray_pairs(detect(example, hall.deployment).paths, hall.deployment)
    whole = align_stations(pairs, 4, hall.deployment.range_ambiguity, SPAN)
    for i in range(4):
        one = RayPairs(*(field[i : i + 1] for field in pairs))
        alone = align_stations(one, 4, hall.deployment.range_ambiguity, SPAN)
        assert torch.allclose(alone.offset_m[0, 0], whole.offset_m[i, 0])
