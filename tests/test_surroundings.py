"""Learned noise, tail and clocks: neutral untrained, right likelihood, and right values from unlabelled scenes."""

import math

import pytest
import torch

from benchmarks.hall import hall
from sensing import ofdm
from sensing.adapted_estimator import AdaptedEstimator, adapted, with_tail
from sensing.coarse.surroundings import Surroundings, onset, whitener
from sensing.containers import Estimate, Observation
from sensing.errors import ConfigError, DomainError
from sensing.estimator import LocationEstimator
from sensing.inference.unrolled import Unrolled
from sensing.simulation import Impairments, Simulator
from sensing.surroundings_fit import learn_clock, learn_surroundings
from sensing.units import SPEED_OF_LIGHT

PLAIN = hall(6)
DEPLOYMENT = PLAIN.deployment


def impaired(**sizes) -> Simulator:
    return Simulator(DEPLOYMENT, PLAIN.sampler, 0, Impairments(**sizes))


def with_values(noise: float = 0.0, diffuse: float = 0.0, decay: float = 0.0) -> Surroundings:
    surroundings = Surroundings(4)
    with torch.no_grad():
        surroundings.noise.fill_(noise)
        surroundings.diffuse.fill_(diffuse)
        surroundings.decay.fill_(decay)
    return surroundings


def dense_covariance(tail: float, decay_m: float, onset_m: float) -> torch.Tensor:
    """`I + tail D K D^H`, entry by entry."""
    freq = DEPLOYMENT.pilot_freq
    lag = freq[:, None] - freq
    profile = 1.0 / (1.0 + 2j * math.pi * lag * decay_m / SPEED_OF_LIGHT)
    return torch.eye(64) + tail * profile * torch.exp(-2j * math.pi * lag * onset_m / SPEED_OF_LIGHT)


def test_untrained_it_is_the_classical_estimator_bit_for_bit():
    observation = PLAIN.examples("val", range(2)).observation
    base = LocationEstimator(unrolled=Unrolled(num_iterations=2))
    plain, neutral = base(observation, DEPLOYMENT), adapted(base, Surroundings(4))(observation, DEPLOYMENT)
    for name, a, b in zip(Estimate._fields, plain, neutral, strict=True):
        assert (a is b is None) or torch.equal(a, b), name


def test_whitener_makes_the_covariance_white():
    tails, onsets = [3.0, 0.2, 0.0, 12.0], [40.0, 7.0, 3.0, 150.0]
    power, basis = torch.linalg.eigh(ofdm.profile_covariance(15.0, DEPLOYMENT.pilot_freq))
    spectrum = 1.0 + torch.tensor([tails], dtype=torch.float64)[..., None] * power.clamp_min(0.0)
    white = whitener(spectrum, basis, torch.tensor([onsets], dtype=torch.float64), DEPLOYMENT)[0]
    for station, (tail, start) in enumerate(zip(tails, onsets, strict=True)):
        covariance = dense_covariance(tail, 15.0, start)
        found = white[station] @ covariance @ white[station].mH
        torch.testing.assert_close(found, torch.eye(64, dtype=found.dtype), rtol=0, atol=1e-9)


def test_onset_is_the_most_likely_one():
    generator = torch.Generator().manual_seed(3)
    power, basis = torch.linalg.eigh(ofdm.profile_covariance(15.0, DEPLOYMENT.pilot_freq))
    spectrum = (1.0 + 5.0 * power.clamp_min(0.0)).expand(1, 2, 64)
    starts = (33.0, 100.0)
    roots = [torch.linalg.cholesky(dense_covariance(5.0, 15.0, start)) for start in starts]
    noise = torch.randn(1, 2, 64, 64, dtype=torch.complex128, generator=generator)
    rest = torch.stack([noise[0, number] @ root.mT for number, root in enumerate(roots)])[None]
    found = onset(rest, spectrum, basis, DEPLOYMENT)[0]
    grid = torch.arange(0.0, 156.0, 0.2, dtype=torch.float64)
    for number, start in enumerate(starts):
        sample = rest[0, number].mT @ rest[0, number].conj() / 64
        inverse = [torch.linalg.inv(dense_covariance(5.0, 15.0, float(r))) for r in grid]
        cost = torch.stack([(each @ sample).trace().real for each in inverse])
        best = float(grid[cost.argmin()])
        assert abs(best - start) < 1.0, "the brute force must work"
        assert abs(float(found[number]) - best) < 0.5


def test_learned_from_unlabelled_scenes():
    simulator = impaired(noise_db=3.0, noise_spread_db=3.0, diffuse=0.1)
    observations = [simulator.examples("train", range(4), 10.0).observation]
    estimator = AdaptedEstimator(Surroundings(4))
    learn_surroundings(estimator, observations, DEPLOYMENT, rounds=2)
    surroundings = estimator.surroundings
    torch.testing.assert_close(surroundings.noise.exp(), simulator.hardware.noise_factor, rtol=0.06, atol=0.0)
    torch.testing.assert_close(surroundings.diffuse, torch.full((4,), 0.1).double(), rtol=0.35, atol=0.0)
    decay = surroundings.decay_m * surroundings.decay.exp()
    torch.testing.assert_close(decay, torch.full((4,), 15.0).double(), rtol=0.35, atol=0.0)
    example = simulator.examples("val", range(3), 10.0)
    told, paths = surroundings.detect(example.observation, DEPLOYMENT, estimator.detector)
    assert told.whitener is not None
    true = example.scene.visible.sum(-1)
    assert int((paths.mask.sum(-1) - true).abs().max()) <= 2
    alone, _ = surroundings.detect(
        Observation(*(f[1:2] for f in example.observation[:2])), DEPLOYMENT, estimator.detector
    )
    torch.testing.assert_close(alone.whitener, told.whitener[1:2])


def test_nothing_is_learned_where_nothing_is_wrong():
    observations = [PLAIN.examples("train", range(4), 10.0).observation]
    estimator = AdaptedEstimator(Surroundings(4))
    learn_surroundings(estimator, observations, DEPLOYMENT, rounds=2)
    surroundings = estimator.surroundings
    assert float(surroundings.diffuse.detach().max()) == 0.0
    assert float(surroundings.noise.detach().abs().max()) < 5.0 / math.sqrt(4 * 64 * 64)
    with pytest.raises(DomainError, match="needs an observation"):
        learn_surroundings(estimator, [], DEPLOYMENT)


class Offsets(AdaptedEstimator):
    """Returns the true offsets: what is under test is what is made of them."""

    def forward(self, observation, deployment, paths=None, truth=None):
        assert math.isinf(deployment.clock_offset_std)
        index = int(observation.noise_var[0, 0])
        offset = self.scenes.clock_offset[index : index + 8]
        return Estimate(channel=observation.y, clock_offset=offset, cost_per_dof=torch.full((8,), self.cost))


@pytest.mark.parametrize(("factor", "cost"), [(1.0, 1.0), (4.0, 1.2), (4.0, 2.0)])
def test_deviation_of_the_clocks(factor, cost):
    """Left alone where the geometry does not fit."""
    estimator = Offsets(Surroundings(4))
    estimator.cost = cost
    estimator.scenes = impaired(clock_factor=factor).scenes("train", range(40))
    batches = [Observation(torch.zeros(8, 4, 1, 1), torch.full((8, 4), float(first))) for first in range(0, 40, 8)]
    learn_clock(estimator, batches, DEPLOYMENT)
    found = float(estimator.surroundings.told(DEPLOYMENT).clock_offset_std / DEPLOYMENT.clock_offset_std)
    # the median absolute value of 160 normal numbers: 0.0925 relative deviation
    assert found == (1.0 if factor == 1.0 or cost == 2.0 else pytest.approx(factor, rel=0.3))
    for std in (math.inf, 0.0):
        with pytest.raises(DomainError, match="finite and positive"):
            learn_clock(estimator, batches, DEPLOYMENT._replace(clock_offset_std=torch.tensor(std)))


def test_tail_of_the_channel_is_the_linear_mmse_estimate():
    generator = torch.Generator().manual_seed(4)
    y, specular = torch.randn(2, 1, 1, 3, 64, dtype=torch.complex128, generator=generator)
    tail, noise_var = 4.0, 0.7
    power, basis = torch.linalg.eigh(ofdm.profile_covariance(15.0, DEPLOYMENT.pilot_freq))
    white = whitener(
        (1.0 + tail * power.clamp_min(0.0))[None, None], basis, torch.full((1, 1), 20.0).double(), DEPLOYMENT
    )
    observation = Observation(y, torch.full((1, 1), noise_var).double(), white)
    found = with_tail(Estimate(channel=specular), observation).channel
    covariance = noise_var * dense_covariance(tail, 15.0, 20.0)
    prior = covariance - noise_var * torch.eye(64)
    wanted = specular[0, 0] + (y - specular)[0, 0] @ (prior @ torch.linalg.inv(covariance)).mT
    torch.testing.assert_close(found[0, 0], wanted)


def test_bad_settings():
    with pytest.raises(ConfigError, match="decay_m > 0"):
        Surroundings(4, decay_m=0.0)
    assert Surroundings(2).described() == "noise 0.00 0.00 dB; tail 0.000 0.000, decay 10.0 10.0 m; clock 1.000"
