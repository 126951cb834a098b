"""Surroundings by command: trained as the functions do, exported, read again, and refused where they do not fit."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from sensing import runs
from sensing.adapted_estimator import adapted, build_adapted
from sensing.cli import conf_dir
from sensing.coarse.surroundings import Surroundings, residual
from sensing.errors import CheckpointError, ConfigError
from sensing.learning import SurroundingsLearner
from sensing.runs.build import Builder, build_estimators
from sensing.runs.commands import evaluate_command
from sensing.surroundings_fit import learn_clock, learn_surroundings, log_likelihood

SCENES = ["impairments=diffuse", "impairments.noise_db=3", "array.num_y=4", "array.num_z=4", "ofdm.num_subcarriers=512"]
TRAIN = [
    "experiment=surroundings", "data.batch_size=2", "data.num_train_scenes=4", "data.scenes_per_epoch=4",
    "data.val_scenes=2", "data.test_scenes=2", "estimator.unrolled.num_iterations=2", "trainer.max_epochs=3",
    "callbacks.progress=null", "trainer.enable_progress_bar=false", "logger=none",
]  # fmt: skip


def config(command, *overrides):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose(command, [*SCENES, "output_dir=nowhere", *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surroundings")
    settings = config("train", *TRAIN, f"output_dir={folder}", f"export={folder}/site.safetensors")
    runs.train(settings)
    return settings, folder


def test_training_is_what_the_functions_do(trained):
    settings, folder = trained
    simulator = Builder(config("evaluate", "scene=hall_hard")).simulator()
    estimator = build_adapted(**{key: value for key, value in settings.estimator.items() if key != "_target_"})
    observations = [simulator.examples("train", indices, 10.0).observation for indices in (range(2), range(2, 4))]
    learn_surroundings(estimator, observations, simulator.deployment, rounds=2)
    learn_clock(estimator, observations, simulator.deployment)
    for path in (folder / "site.safetensors", folder / "checkpoints/last.ckpt"):
        found = SurroundingsLearner.load(path).estimator.surroundings
        assert float(found.diffuse.detach().max()) > 0.0
        for name, value in estimator.surroundings.named_parameters():
            torch.testing.assert_close(getattr(found, name), value, rtol=1e-6, atol=1e-9)


def test_evaluation_reads_them(trained):
    settings, folder = trained
    command = evaluate_command(str(folder / "checkpoints/last.ckpt"), settings)
    assert "'estimators=[classical,adapted]' surroundings=" in command
    some = ["scene=hall_hard", "estimators=[classical,adapted]"]
    built = build_estimators(config("evaluate", *some, f"surroundings={folder}/site.safetensors"))
    assert list(built) == ["classical", "adapted"]
    assert float(built["adapted"].surroundings.noise.detach().min()) > 0.0
    assert list(build_estimators(config("evaluate", *some))) == ["classical", "adapted_untrained"]


def test_what_does_not_fit_is_refused(trained, tmp_path):
    _, folder = trained
    chosen = ["estimators=[adapted]", f"surroundings={folder}/site.safetensors"]
    with pytest.raises(ConfigError, match="surroundings must be of as many stations as there are, 3, got 4"):
        build_estimators(config("evaluate", "scene=urban", *chosen))
    with pytest.raises(CheckpointError, match="must be of Learner, got one of SurroundingsLearner"):
        build_estimators(config("evaluate", "estimators=[unfolded]", f"checkpoint={folder}/site.safetensors"))
    with pytest.raises(CheckpointError, match="must be of SurroundingsLearner, got one of Learner"):
        build_estimators(config("evaluate", "estimators=[adapted]", "surroundings=hall_hard"))
    broken = tmp_path / "site.safetensors"
    broken.write_bytes((folder / "site.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="must be weights that"):
        build_estimators(config("evaluate", "estimators=[adapted]", f"surroundings={broken}"))
    with pytest.raises(ConfigError, match="estimator=adapted"):
        runs.train(config("train", *TRAIN, "estimator=unfolded", f"output_dir={tmp_path}"))
    with pytest.raises(ConfigError, match="optimizer=likelihood"):
        SurroundingsLearner({"surroundings": {"stations": 4}}, {}, {"lr": 0.1})
    with pytest.raises(ConfigError, match="must hold arguments of Surroundings"):
        build_adapted({"rooms": 4})
    with pytest.raises(ConfigError, match="calibration=null"):
        build_adapted({"stations": 4}, calibration={"num_stations": 4, "num_antennas": 64})
    small = Builder(config("evaluate", "scene=hall_hard"))
    example = small.simulator().examples("val", [0], 10.0)
    with pytest.raises(ConfigError, match="surroundings must be of as many stations as there are, 4"):
        adapted(small.classical(), Surroundings(3))(example.observation, small.simulator().deployment)


def test_log_likelihood_is_that_of_the_dense_covariance(trained):
    """Less the price of the paths, up to one constant for all."""
    _, folder = trained
    simulator = Builder(config("evaluate", "scene=hall_hard")).simulator()
    estimator, deployment = SurroundingsLearner.load(folder / "site.safetensors").estimator, simulator.deployment
    example = simulator.examples("val", range(2), 10.0)
    observation, paths = estimator.detect(example.observation, deployment)
    rest = residual(observation.y, paths, deployment)
    entries = rest.shape[-2] * rest.shape[-1]
    for scene, found in enumerate(log_likelihood(observation, paths, deployment)):
        total = 0.0
        for station in range(4):
            white = observation.whitener[scene, station]
            covariance = observation.noise_var[scene, station] * torch.linalg.inv(white.mH @ white)
            law = torch.distributions.MultivariateNormal  # of real and imaginary parts
            top = torch.cat([covariance.real, -covariance.imag], -1)
            both = 0.5 * torch.cat([top, torch.cat([covariance.imag, covariance.real], -1)])
            rows = torch.cat([rest[scene, station].real, rest[scene, station].imag], -1)
            total += law(torch.zeros(len(both), dtype=both.dtype), both).log_prob(rows).sum() / entries
            total += (
                torch.log(torch.tensor(torch.pi))
                - 2.5 * torch.log(torch.tensor(2.0 * entries)) * int(paths.mask[scene, station].sum()) / entries
            )
        assert float(found) == pytest.approx(float(total) / 4, rel=1e-6)
