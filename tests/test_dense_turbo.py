"""Turbo for dense dictionaries, its data, its baselines and its training, against loops and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch

from sensing import arrays, ofdm
from sensing.baselines.gibbs import gibbs
from sensing.baselines.sparse import genie, ista, oamp
from sensing.data.dictionary import SparseBlocks
from sensing.errors import ConfigError
from sensing.inference.dense_columns import LEAST, Dictionary
from sensing.inference.dense_sbl import sbl
from sensing.inference.dense_turbo import SCHEDULE, DenseTurbo
from sensing.inference.prior import SupportPrior
from sensing.inference.sbl import Settings, sparse_bayes
from sensing.inference.turbo import expectation, received_power
from sensing.learning import DenseLearner
from sensing.learning.dense import training_samples
from sensing.simulation import build_deployment
from sensing.simulation.dictionary import DictionarySampler

ENTRIES, COLUMNS, ACTIVE = 24, 14, 2


def draw(count=3, noise_var=0.05, seed=0):
    """Observations through neighbouring, nearly collinear columns: Phi, y, gains, noise."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((ENTRIES, COLUMNS)) + 1j * rng.standard_normal((ENTRIES, COLUMNS))
    columns = base + 2.0 * np.roll(base, 1, axis=1)
    gain = np.zeros((count, COLUMNS), complex)
    for row in gain:
        row[rng.choice(COLUMNS, ACTIVE, replace=False)] = rng.standard_normal((ACTIVE, 2)) @ [1, 1j] / math.sqrt(2)
    noise = rng.standard_normal((count, ENTRIES, 2)) @ [1, 1j] / math.sqrt(2)
    y = gain @ columns.T + math.sqrt(noise_var) * noise
    return columns, y, gain, noise_var


def given(columns, y, noise_var):
    """What estimators are given."""
    phi, seen = torch.from_numpy(columns), torch.from_numpy(y)
    return (
        Dictionary.of(phi.mH @ phi),
        seen @ phi.conj(),
        seen.abs().square().sum(-1),
        len(phi),
        torch.full((len(seen),), noise_var, dtype=torch.float64),
    )


def slow(columns, y, noise_var, layers, damping, noise_scale):
    """One observation, one column at a time, by densities of y itself."""
    power = max(np.vdot(y, y).real / len(y) - noise_var, noise_var / len(y)) / ACTIVE
    odds, prior = ACTIVE / (COLUMNS - ACTIVE), np.full(COLUMNS, ACTIVE / COLUMNS * power)
    eye = noise_scale * noise_var * np.eye(len(y))
    for _ in range(layers):
        new = np.empty(COLUMNS)
        for g, phi in enumerate(columns.T):
            rest = [h for h in range(COLUMNS) if h != g]
            inverse = np.linalg.inv(eye + (columns[:, rest] * prior[rest]) @ columns[:, rest].conj().T)
            s, q = np.vdot(phi, inverse @ phi).real, np.vdot(phi, inverse @ y)
            r, w = q / s, 1 / s
            density = [np.exp(-(abs(r) ** 2) / v) / v for v in (w + power, w)]
            p = odds * density[0] / (odds * density[0] + density[1])
            # the Gaussian prior with the Wiener gain P power / (power + w)
            wiener = p * power / (power + w)
            new[g] = max(w * wiener / (1 - wiener), LEAST * min(w, power))
        prior = prior ** (1 - damping) * new**damping
    inverse = np.linalg.inv(eye + (columns * prior) @ columns.conj().T)
    return prior * (columns.conj().T @ inverse @ y)


@pytest.mark.parametrize("wide", [1, 2, 9])
def test_turbo_equals_a_loop_over_columns_that_forms_every_covariance(wide):
    columns, y, _, noise_var = draw()
    model = DenseTurbo(3, ACTIVE, damping=0.6, noise_scale=1.7, wide=wide, kept=COLUMNS)
    found = model(*given(columns, y, noise_var)).mean
    for row, observed in zip(found, y, strict=True):
        wanted = slow(columns, observed, noise_var, 3, 0.6, 1.7)
        assert np.abs(row.detach().numpy() - wanted).max() < 1e-8 * np.abs(wanted).max()


def test_untrained_is_the_classical_estimator_bit_for_bit():
    arguments = given(*(draw()[i] for i in (0, 1, 3)))
    untrained, plain = (DenseTurbo(4, ACTIVE, kept=9, hidden=hidden)(*arguments) for hidden in (16, 0))
    assert torch.equal(untrained.mean, plain.mean)
    assert torch.equal(untrained.log_odds, plain.log_odds)
    assert not list(DenseTurbo(4, ACTIVE, hidden=0).parameters())


def trained(seed=0, size=0.05):
    """A model with corrections that are not zero."""
    torch.manual_seed(seed)
    model = DenseTurbo(4, ACTIVE, kept=9, hidden=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)
    return model


def test_problems_with_a_residual_that_is_no_noise_fall_back_to_sbl():
    columns, y, gain, noise_var = draw(6)
    y[:3] -= gain[:3] @ columns.T  # noise alone: nothing to be wrong about
    arguments, model = given(columns, y, noise_var), DenseTurbo(4, ACTIVE, kept=9, hidden=6)
    with torch.no_grad():
        for layer in model.layers:
            layer.schedule.outer.bias[SCHEDULE.index("odds")] = -1e4  # believes in no column
    blind, found = model(*arguments), model.eval()(*arguments)
    misfit = np.sum(np.abs(y - blind.mean.detach().numpy() @ columns.T) ** 2, -1) / noise_var
    wanted = torch.from_numpy((misfit - len(columns)) / math.sqrt(len(columns)) > 4.0)
    assert wanted.any()
    assert not wanted.all()
    assert not blind.fallback.any(), "not in training"
    assert torch.equal(found.fallback, wanted)
    redone = sbl(*arguments[:3], arguments[4], 4, "mackay", 0.25, 3, 9)
    assert torch.allclose(found.mean[wanted], redone[wanted], rtol=1e-9)
    assert torch.equal(found.mean[~wanted], blind.mean[~wanted])
    model.fallback = math.inf
    assert torch.equal(model(*arguments).mean, blind.mean)


def test_no_result_depends_on_batch_mates():
    columns, y, _, noise_var = draw(5)
    model = trained()
    together = model(*given(columns, y, noise_var))
    for i in range(5):
        alone = model(*given(columns, y[i : i + 1], noise_var))
        assert torch.allclose(alone.mean[0], together.mean[i], rtol=1e-9, atol=1e-12)
        assert torch.equal(alone.log_odds[0] > -torch.inf, together.log_odds[i] > -torch.inf)


def test_scaling_the_observation_scales_the_gains():
    columns, y, _, noise_var = draw()
    model = trained()
    one, other = model(*given(columns, y, noise_var)), model(*given(columns, 1e-5 * y, 1e-10 * noise_var))
    assert torch.allclose(1e5 * other.mean, one.mean, rtol=1e-7, atol=1e-10)
    assert torch.allclose(other.log_odds, one.log_odds, rtol=1e-6)


def test_gradients_agree_with_differences():
    columns, y, gain, noise_var = draw()
    arguments, truth, model = given(columns, y, noise_var), torch.from_numpy(gain), trained()

    def loss():
        return (model(*arguments).mean - truth).abs().square().sum()

    loss().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith(f"layers.{len(model.layers) - 1}.column"):  # the last LMMSE judges no columns
            assert parameter.grad is not None, name
    for layer in (model.layers[0], model.layers[2]):
        for weight in (layer.schedule.outer.bias, layer.column.outer.bias):
            for i in range(len(weight)):
                values = []
                for step in (1e-5, -1e-5):
                    with torch.no_grad():
                        weight[i] += step
                        values.append(float(loss()))
                        weight[i] -= step
                assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(weight.grad[i]), rel=1e-3, abs=1e-7)


def test_genie_solves_the_true_columns_alone():
    columns, y, gain, noise_var = draw()
    dictionary, matched, _, _, noise = given(columns, y, noise_var)
    found = genie(dictionary.gram, matched, noise, torch.from_numpy(gain != 0), power=0.8)
    for row, observed, true in zip(found, y, gain, strict=True):
        phi = columns[:, true != 0]
        covariance = 0.8 * phi @ phi.conj().T + noise_var * np.eye(ENTRIES)
        assert np.allclose(
            row[torch.from_numpy(true != 0)].numpy(), 0.8 * phi.conj().T @ np.linalg.solve(covariance, observed)
        )
        assert bool((row[torch.from_numpy(true == 0)] == 0).all())


def test_oamp_is_the_turbo_step_of_the_location_estimator():
    columns, y, _, noise_var = draw(4)
    dictionary, matched, energy, entries, noise = given(columns, y, noise_var)
    power, odds = received_power(energy, entries, noise, torch.full_like(noise, ACTIVE)), -1.5
    number = torch.ones((), dtype=torch.float64)
    for damping in (1.0, 0.4):
        wanted = expectation(
            dictionary.gram.expand(4, 1, COLUMNS, COLUMNS),
            matched[:, None],
            noise[:, None],
            power[:, None],
            SupportPrior(0 * number + odds, 1e9 * number, 0 * number + odds),
            torch.ones(4, 1, COLUMNS, dtype=torch.bool),
            0,
            5,
            damping * number,
            number,
            number,
        )
        # the share of columns in use that starts the messages is activity times visibility there
        found = oamp(dictionary, matched, noise, power, odds, 5, damping)
        assert torch.allclose(found, wanted.mean[:, 0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("update", ["em", "mackay", "convex"])
def test_sbl_is_that_of_the_location_grid(update):
    columns, y, _, noise_var = draw(4)
    dictionary, matched, energy, entries, noise = given(columns, y, noise_var)
    settings = Settings(update=update, sparsity=0.5, iterations=5, tolerance=0.0, prune=0.0)
    gram = dictionary.gram.expand(4, 1, COLUMNS, COLUMNS)
    wanted = sparse_bayes(gram, matched[:, None], energy[:, None], noise[:, None], entries, settings).mean[:, 0]
    for wide in (2, 9):
        found = sbl(dictionary, matched, energy, noise, 5, update, 0.5, wide, COLUMNS)
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_ista_and_fista_reach_the_minimiser_of_the_penalised_squares():
    columns, y, _, noise_var = draw()
    dictionary, matched, _, _, noise = given(columns, y, noise_var)
    level = 2.0 * math.sqrt(noise_var * float(dictionary.gram.diagonal().real.mean()))
    for accelerated, iterations in ((True, 4000), (False, 60000)):
        x = ista(dictionary, matched, noise, iterations, 2.0, accelerated)
        slope = matched - x @ dictionary.gram.mT
        zero = x.abs() < 1e-9
        assert 0 < int(zero.sum()) < zero.numel()
        assert float(slope[zero].abs().max()) <= level * (1 + 1e-6)
        assert torch.allclose(slope[~zero], level * x[~zero] / x[~zero].abs(), rtol=1e-4)
    first = ista(dictionary, matched, noise, 1, 2.0, False)
    phi, largest = columns, float(dictionary.eigenvalue[-1])
    for row, observed in zip(first, y, strict=True):
        for g in range(COLUMNS):
            step = np.vdot(phi[:, g], observed) / largest
            wanted = step * max(1 - level / largest / abs(step), 0)
            assert abs(complex(row[g]) - wanted) < 1e-12


def test_sampler_of_the_posterior_agrees_with_enumeration():
    columns, y, _, _ = draw(1, seed=3)
    columns, noise_var, odds, power = columns[:, :6], 2.0, 2 / 4, 0.7
    total, weight = np.zeros(6, complex), 0.0
    for support in itertools.product((0, 1), repeat=6):
        chosen = np.flatnonzero(support)
        phi = columns[:, chosen]
        covariance = noise_var * np.eye(ENTRIES) + power * phi @ phi.conj().T
        _, log_det = np.linalg.slogdet(covariance)
        fit = np.linalg.solve(covariance, y[0])
        p = odds ** len(chosen) * np.exp(-np.vdot(y[0], fit).real - log_det)
        total[chosen] += p * power * (phi.conj().T @ fit)
        weight += p
    dictionary, matched, _, _, noise = given(columns, np.repeat(y, 200, 0), noise_var)
    start = torch.full((200, 6), -1.0, dtype=torch.float64)
    for begun in (start, -start):
        generator = torch.Generator().manual_seed(1)
        found = gibbs(dictionary.gram, matched, noise, begun, generator, 2, power, slots=6, sweeps=30, burn_in=10)
        assert np.abs(found.mean(0).numpy() - total / weight).max() < 0.02 * np.abs(total / weight).max()


def sampler(**changes):
    deployment = build_deployment(
        [[0, 0, 6]], arrays.upa(3, 2, 0.5), ofdm.pilot_frequencies(64, 1.92e6, 8), 28e9, 0.0, target=[20, 20, 4]
    )
    law = {"shape": (4, 3, 1), "region": ((12, 12, 2), (28, 28, 6)), "active": 3, "dictionaries": 2}
    return DictionarySampler(deployment, **(law | changes))


def test_columns_are_the_waves_of_the_bounces_and_problems_keep_their_noise():
    law = sampler()
    one, other = (law.block(5, "test", 3, 4, snr) for snr in (10.0, 30.0))
    user, deployment = law.user(5, "test", 3).numpy(), law.deployment
    station, antennas = deployment.bs_position[0].numpy(), deployment.antenna_global[0].numpy()
    phi = np.einsum("ml,kl->mkl", one.operator.steering.numpy(), one.operator.delay.numpy())
    for g, point in enumerate(law.points.numpy()):
        length = np.linalg.norm(point - station) + np.linalg.norm(point - user)
        direction = (point - station) / np.linalg.norm(point - station)
        for m, antenna in enumerate(antennas):
            for k, frequency in enumerate(deployment.pilot_freq.numpy()):
                phase = antenna @ direction / float(deployment.wavelength) - frequency * length / 299792458.0
                assert abs(phi[m, k, g] - np.exp(2j * np.pi * phase)) < 1e-7
    assert torch.equal(one.gain, other.gain)
    assert bool((one.support.sum(-1) == 3).all())
    channel = torch.einsum("mkl,pl->pmk", torch.from_numpy(phi), one.gain)
    noise = [(each.y - channel) / each.noise_var.sqrt()[:, None, None] for each in (one, other)]
    assert torch.allclose(*noise, atol=1e-5)
    snr = channel.abs().square().mean((-2, -1)) / one.noise_var
    assert torch.allclose(10 * snr.log10(), torch.full((4,), 10.0, dtype=torch.float64))
    spread = law.block(5, "test", 3, 50, (-5.0, 30.0))
    snr = 10 * (spread.operator.matvec(spread.gain).abs().square().mean((-2, -1)) / spread.noise_var).log10()
    assert -5 <= float(snr.min()) < 0
    assert 25 < float(snr.max()) <= 30


def test_a_dictionary_is_shared_by_its_blocks_and_is_that_of_the_problems():
    blocks = SparseBlocks(sampler(), 1, "train", 3, 4, (0.0, 20.0))
    for number in (0, 1, 2):
        task = blocks[number]
        gram = task.problems.operator.gram()
        assert torch.allclose(task.dictionary.gram, gram)
        restored = (task.dictionary.eigenvector * task.dictionary.eigenvalue) @ task.dictionary.eigenvector.mH
        assert float((restored - gram).abs().max()) < 1e-6 * float(gram.abs().max())
        wrong = task.problems.gain.roll(1, -1)
        channels = [task.problems.operator.matvec(gain) for gain in (wrong, task.problems.gain)]
        error, energy = (each.abs().square().sum((-2, -1)) for each in (channels[0] - channels[1], channels[1]))
        assert torch.allclose(task.nmse(wrong), error / energy)
    assert not torch.allclose(blocks[0].dictionary.gram, blocks[1].dictionary.gram)
    assert not torch.allclose(blocks[0].problems.y, blocks[2].problems.y)


def test_learner_steps_and_its_export_is_the_same_estimator(tmp_path):
    task = SparseBlocks(sampler(), 1, "train", 4, 4, (0.0, 20.0))[0]
    estimator = {"layers": 3, "active": 3.0, "kept": 8, "hidden": 4}
    learner = DenseLearner(estimator, {}, {"lr": 1e-2}, {"data": {"batch_size": 4}})
    before = float(learner.losses(task, learner.run(task)).mean().detach())
    optimizer = learner.build_optimizer()
    for _ in range(15):
        optimizer.zero_grad()
        loss = learner.losses(task, learner.run(task)).mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.97 * before
    file = tmp_path / "dense.safetensors"
    learner.export(file, config={"data": {"batch_size": 4, "batches_per_epoch": 5}, "trainer": {"max_epochs": 6}})
    again = DenseLearner.load(file)
    assert torch.equal(again.run(task).mean, learner.run(task).mean)
    assert training_samples(file) == 120


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DenseTurbo(layers=0), "layers, wide, kept >= 1"),
        (lambda: DenseTurbo(damping=1.0), "0 < damping < 1"),
        (lambda: sampler(active=13), "1 <= active <= their product"),
        (lambda: sampler(region=((1, 1, 1), (0, 2, 2))), "lower, upper"),
        (lambda: sampler(dictionaries=0), "dictionaries must be >= 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
