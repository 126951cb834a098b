"""Algorithm 2 against general-purpose minimisers, and what the clock offsets do to it."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, minimize

from sensing.coarse.alternating import best_offsets, locate_alternating
from tests.reference.oracle import C


@pytest.fixture(scope="module")
def data(hall):
    """Exact scatterers and path lengths of 6 scenes, everything visible to all stations."""
    scene = hall.simulator.examples("test", range(6), snr_db=10.0).scene
    scatterer = scene.scatterer_position[:, :8]
    leg = (scatterer[:, :, None] - hall.deployment.bs_position).norm(dim=-1)
    user = (scatterer - scene.ue_position[:, None]).norm(dim=-1)[..., None]
    range_m = leg + user + C * scene.clock_offset[:, None]
    mask = torch.rand(range_m.shape, generator=torch.Generator().manual_seed(0)) < 0.8
    return scene, scatterer, leg, range_m, mask


def objective(flat, scatterer, remainder, mask, weight):
    user = np.linalg.norm(scatterer - flat[:3], axis=-1)[:, None]
    residual = (user + flat[3:] - remainder)[mask]
    return np.append(residual, np.sqrt(weight) * flat[3:])


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_closed_form_offsets_against_a_minimiser(data, weight):
    scene, scatterer, leg, range_m, mask = data
    noisy = range_m + 0.3 * torch.randn(range_m.shape, generator=torch.Generator().manual_seed(1)).double()
    weight_ = torch.tensor(weight).double()
    infinite = torch.tensor(torch.inf).double()
    found = best_offsets(scene.ue_position + 1.0, scatterer, noisy - leg, mask, weight_, infinite)
    for i in range(3):
        user = (scene.ue_position[i] + 1.0).numpy()
        fields = scatterer[i].numpy(), (noisy - leg)[i].numpy(), mask[i].numpy(), weight

        def value(delta, user=user, fields=fields):
            return (objective(np.concatenate([user, delta]), *fields) ** 2).sum()

        best = minimize(value, np.zeros(4), tol=1e-14).x
        np.testing.assert_allclose(found[i], best, atol=1e-5)


def test_wrapped_lengths_give_the_same_offsets_modulo_the_ambiguity(hall, data):
    scene, scatterer, leg, range_m, mask = data
    period = hall.deployment.range_ambiguity
    shifted = (range_m + 0.49 * period).remainder(period)  # the residuals straddle the cut
    zero = torch.zeros(()).double()
    found = best_offsets(scene.ue_position, scatterer, shifted - leg, mask, zero, period)
    gap = (found - C * scene.clock_offset - 0.49 * period) / period
    assert (gap - gap.round()).abs().max() < 1e-9


def test_exact_measurements_lead_to_the_user(hall, data):
    scene, scatterer, _, range_m, mask = data
    fix = locate_alternating(scatterer, range_m, mask, hall.deployment, rounds=3000, tolerance=1e-7)
    near = (fix.ue_position - scene.ue_position).norm(dim=-1) < 0.05
    assert near.double().mean() >= 5 / 6  # a second minimum may trap one
    assert (fix.cost[near] < 1e-3).all()
    offset = (fix.offset_m - C * scene.clock_offset).abs().amax(-1)
    assert (offset[near] < 0.1).all()


@pytest.mark.parametrize("prior", [False, True])
def test_ends_in_a_minimum_that_least_squares_confirms(hall, data, prior):
    """From its end point a Gauss-Newton solver of the same cost finds nothing lower nearby."""
    _, scatterer, leg, range_m, mask = data
    noisy = range_m + 0.2 * torch.randn(range_m.shape, generator=torch.Generator().manual_seed(2)).double()
    options = {"prior": prior, "range_std_m": 0.5, "rounds": 1500, "tolerance": 1e-9}
    fix = locate_alternating(scatterer, noisy, mask, hall.deployment, **options)
    weight = (0.5 / (C * float(hall.deployment.clock_offset_std))) ** 2 if prior else 0.0
    for i in range(6):
        fields = scatterer[i].numpy(), (noisy - leg)[i].numpy(), mask[i].numpy(), weight
        start = torch.cat([fix.ue_position[i], fix.offset_m[i]]).numpy()
        assert (objective(start, *fields) ** 2).sum() == pytest.approx(float(fix.cost[i]), rel=1e-9)
        best = least_squares(objective, start, args=fields, xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert float(fix.cost[i]) <= 2 * best.cost * 1.05 + 1e-6
        np.testing.assert_allclose(start[:3], best.x[:3], atol=0.25)


def test_cost_falls_in_every_round_and_scenes_do_not_mix(hall, data):
    _, scatterer, _, range_m, mask = data
    costs = [locate_alternating(scatterer, range_m, mask, hall.deployment, rounds=n).cost for n in (1, 2, 5, 20, 100)]
    for before, after in pairwise(costs):
        assert (after <= before).all()
        assert (after < before).any()
    noisy = range_m + 0.1 * torch.randn(range_m.shape, generator=torch.Generator().manual_seed(3)).double()
    whole = locate_alternating(scatterer, noisy, mask, hall.deployment)
    for i in (0, 3):
        rows = slice(i, i + 1)
        one = locate_alternating(scatterer[rows], noisy[rows], mask[rows], hall.deployment)
        torch.testing.assert_close(one.ue_position[0], whole.ue_position[i], rtol=0, atol=1e-6)


def test_without_prior_the_minimum_does_not_know_the_offsets(hall, data):
    """A clock that is late by any amount moves its own offset and nothing else."""
    scene, scatterer, _, range_m, mask = data
    period = hall.deployment.range_ambiguity
    late = range_m + torch.tensor([3.0, -40.0, 200.0, 1000.0]).double()
    options = {"start": scene.ue_position + 0.5, "rounds": 1000, "tolerance": 1e-7}
    plain = locate_alternating(scatterer, range_m, mask, hall.deployment, **options)
    other = locate_alternating(scatterer, late.remainder(period), mask, hall.deployment, **options)
    torch.testing.assert_close(plain.ue_position, other.ue_position, rtol=0, atol=0.05)
    turns = (other.offset_m - plain.offset_m - torch.tensor([3.0, -40.0, 200.0, 1000.0]).double()) / period
    assert (turns - turns.round()).abs().max() < 1e-3


def test_nothing_measured(hall, data):
    _, scatterer, _, range_m, mask = data
    fix = locate_alternating(scatterer, range_m, mask & False, hall.deployment, prior=True)
    torch.testing.assert_close(fix.ue_position, torch.tensor([20.0, 20, 4]).double().expand(6, 3))
    assert (fix.offset_m == 0).all()
    assert (fix.cost == 0).all()
    assert (fix.rounds == 0).all()
