"""The training loss by hand."""

import itertools
import math

import pytest
import torch

from sensing.errors import ConfigError, DomainError
from sensing.losses import BoundNormalisedLoss, channel_term, location_term, scatterer_term
from sensing.metrics import gospa
from sensing.set_loss import expected_gospa


@pytest.fixture(scope="module")
def example(tiny):
    return tiny.simulator.examples("test", range(2), snr_db=10.0)


def test_location_term_by_hand():
    true = torch.zeros(3, 3, dtype=torch.float64)
    ue = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    peb = torch.tensor([2.5, 0.1, float("inf")], dtype=torch.float64)
    expected = torch.tensor([math.sqrt(5.0) - 1.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.allclose(location_term(ue, true, peb), expected)


def test_a_scene_without_bound_has_no_gradient():
    ue = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    peb = torch.tensor([1.0, float("inf")], dtype=torch.float64)
    location_term(ue, torch.zeros(2, 3), peb).sum().backward()
    assert (ue.grad[0] != 0).all()
    assert (ue.grad[1] == 0).all()


def test_channel_term_is_one_half_of_a_nat_or_so_at_the_floor(example):
    """Error of exactly the unknown gains of known paths: log(1 + 1/4)."""
    truth, scene = example.channel, example.scene
    for b in range(2):
        floor = sum(
            int(scene.visible[b, q].sum()) * float(example.observation.noise_var[b, q]) for q in range(truth.shape[1])
        )
        bump = torch.zeros_like(truth)
        bump[b, 0, 0, 0] = math.sqrt(floor) * 1j
        term = channel_term(truth + bump, example)
        assert float(term[b]) == pytest.approx(math.log(1.25))
        assert float(term[1 - b]) == 0.0


def test_terms_and_weights_by_hand(example):
    true = example.scene.ue_position
    one = torch.ones(2, dtype=torch.float64)
    iterates = [true + torch.tensor([float(shift), 0.0, 0.0]) for shift in (3, 2, 1)]
    loss = BoundNormalisedLoss(channel_weight=0.3, final_weight=2.0, coarse_weight=0.5)
    terms = loss(iterates, example.channel, example, one, coarse=iterates[0])
    # the last iteration counts `final_weight` times the mean of the earlier ones
    location = (math.sqrt(10) + math.sqrt(5) + 4 * math.sqrt(2)) / 6 - 1
    assert float(terms["location"]) == pytest.approx(location)
    assert float(terms["channel"]) == 0.0
    assert float(terms["coarse"]) == pytest.approx(0.5 * (math.sqrt(10) - 1))
    assert float(terms["total"]) == pytest.approx(location + 0.5 * (math.sqrt(10) - 1))
    # layer by layer: the first two of three, the second being the last that counts, and not yet the channel
    early = loss(iterates, 0.9 * example.channel, example, one, progress=0.5)
    assert float(early["location"]) == pytest.approx((math.sqrt(10) + 2.0 * math.sqrt(5)) / 3 - 1)
    assert float(early["channel"]) == 0.0
    single = loss(iterates[-1:], example.channel, example, one)
    assert "coarse" not in single
    assert float(single["location"]) == pytest.approx(math.sqrt(2) - 1)


def test_scale_of_the_observation_does_not_matter(example):
    """Of the loss: the bound and the noise scale alike."""
    scaled = example._replace(
        observation=example.observation._replace(noise_var=1e-10 * example.observation.noise_var),
        channel=1e-5 * example.channel,
        noise_var=1e-10 * example.true_noise_var,
    )
    guess = 0.9 * example.channel
    assert torch.allclose(channel_term(1e-5 * guess, scaled), channel_term(guess, example))


def test_refusals(example):
    for name in ("channel_weight", "final_weight", "coarse_weight", "scatterer_weight"):
        for value in (-1.0, float("nan")):
            with pytest.raises(ConfigError, match=rf"loss\.{name}"):
                BoundNormalisedLoss(**{name: value})
    with pytest.raises(DomainError, match="true channel"):
        channel_term(example.channel, example._replace(channel=None))


def random_sets(seed, nodes=4, points=3, batch=6):
    generator = torch.Generator().manual_seed(seed)
    estimated = 4.0 * torch.rand(batch, nodes, 3, generator=generator, dtype=torch.float64)
    true = 4.0 * torch.rand(batch, points, 3, generator=generator, dtype=torch.float64)
    probability = torch.rand(batch, nodes, generator=generator, dtype=torch.float64)
    mask, true_mask = (torch.rand(batch, n, generator=generator) < 0.8 for n in (nodes, points))
    return estimated, probability, mask, true, true_mask


def test_expected_gospa_of_certain_nodes_is_gospa():
    estimated, probability, mask, true, true_mask = random_sets(0)
    certain = (probability > 0.5).double()
    found = expected_gospa(estimated, certain, mask, true, true_mask, cutoff=2.0)
    assert torch.allclose(found, gospa(estimated, mask & (certain > 0), true, true_mask, 2.0) ** 2)


def test_expected_gospa_is_the_least_over_assignments_of_the_mean_over_which_nodes_exist():
    cutoff = 2.0
    estimated, probability, mask, true, true_mask = random_sets(1, nodes=3, points=2, batch=4)
    found = expected_gospa(estimated, probability, mask, true, true_mask, cutoff)
    for b in range(4):
        nodes, points = mask[b].nonzero()[:, 0].tolist(), true_mask[b].nonzero()[:, 0].tolist()
        best = math.inf
        for images in itertools.product([None, *points], repeat=len(nodes)):
            used = [image for image in images if image is not None]
            if len(used) != len(set(used)):
                continue
            mean = 0.0
            for exists in itertools.product([False, True], repeat=len(nodes)):
                chance, cost, missed = 1.0, 0.0, len(points)
                for node, image, there in zip(nodes, images, exists, strict=True):
                    p = float(probability[b, node])
                    chance *= p if there else 1.0 - p
                    if there and image is None:
                        cost += cutoff**2 / 2
                    elif there:
                        cost += float((estimated[b, node] - true[b, image]).square().sum())
                        missed -= 1
                mean += chance * (cost + missed * cutoff**2 / 2)
            best = min(best, mean)
        assert float(found[b]) == pytest.approx(best)


def test_expected_gospa_has_the_gradients_of_finite_differences_and_none_from_padding():
    estimated, probability, mask, true, true_mask = random_sets(2)
    estimated.requires_grad_(True)
    probability.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda e, p: expected_gospa(e, p, mask, true, true_mask, 2.0), (estimated, probability)
    )
    expected_gospa(estimated, probability, mask, true, true_mask, 2.0).sum().backward()
    assert (probability.grad[~mask] == 0).all()
    assert (estimated.grad[~mask] == 0).all()


def test_an_empty_map_costs_one_and_the_true_one_nothing(example):
    scene = example.scene
    shared = scene.visible.sum(-2) >= 2
    position, mask = scene.scatterer_position, torch.ones_like(shared)
    assert torch.allclose(scatterer_term(position, shared.double(), mask, example, 2.0), torch.zeros(2).double())
    assert torch.allclose(scatterer_term(position, torch.zeros(2, shared.shape[1]).double(), mask, example, 2.0),
                          (shared.sum(-1) > 0).double())  # fmt: skip
    one = torch.ones(2, dtype=torch.float64)
    parts = position, torch.zeros_like(shared, dtype=torch.float64), mask
    terms = BoundNormalisedLoss(scatterer_weight=0.7)(
        [scene.ue_position], example.channel, example, one, None, 1.0, parts
    )
    assert float(terms["scatterers"]) == pytest.approx(0.7 * float((shared.sum(-1) > 0).double().mean()))
    assert "scatterers" not in BoundNormalisedLoss()(
        [scene.ue_position], example.channel, example, one, None, 1.0, parts
    )
