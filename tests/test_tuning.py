"""The tuning of the baselines: its loss, its choice, and that the configuration holds values that were tried."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks import tune_baselines
from benchmarks.tune_baselines import ESTIMATORS, Baseline, Trial, loss_db, simulator, validation
from sensing.cli import conf_dir
from sensing.coarse.paper import THRESHOLD
from sensing.containers import Estimate


@pytest.fixture(scope="module")
def scenes():
    return next(validation(2, [10.0], "hall_hard"))


def test_loss_is_the_mean_nmse_above_genie(scenes):
    example = scenes.example
    twice = Estimate(channel=0.5 * example.channel)  # NMSE of a quarter: -6.02 dB
    thrice = Estimate(channel=0.25 * example.channel)
    assert loss_db("omp", thrice, scenes) - loss_db("omp", twice, scenes) == pytest.approx(3.5218, abs=1e-3)
    assert 25 < loss_db("omp", twice, scenes) < 40


def test_loss_of_known_clocks_is_the_error_over_its_bound(scenes):
    shift = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    near, far = (
        Estimate(scenes.example.channel, ue_position=scenes.example.scene.ue_position + length * shift)
        for length in (0.01, 0.1)
    )
    for name in ("ideal_sync", "paper"):
        assert loss_db(name, far, scenes) - loss_db(name, near, scenes) == pytest.approx(20.0, abs=1e-6)
    # clocks known: a tighter bound, hence a larger loss of the same error
    assert loss_db("ideal_sync", near, scenes) > loss_db("paper", near, scenes)


@pytest.mark.parametrize(("decided", "said"), [("", "factor=0.9"), ("by its name", "by its name")])
def test_the_best_setting_is_chosen_and_a_reference_never(monkeypatch, capsys, decided, said):
    def scaled(scenes, factor):
        return Estimate(channel=factor * scenes.example.channel)

    trials = [Trial({"factor": 0.5}), Trial({"factor": 0.9}), Trial({"factor": 0.99}, reference=True)]
    monkeypatch.setattr(tune_baselines, "ESTIMATORS", {"scaled": Baseline(scaled, trials, decided)})
    monkeypatch.setattr("sys.argv", ["tune", "--scenes", "1", "--snr", "10"])
    tune_baselines.main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1].startswith(f"| **scaled** | **{said}** |")
    assert "(reference)" in rows[-2]
    assert "hall_hard 10 dB | urban 10 dB | mean" in rows[1]
    losses = [float(cell) for cell in rows[3].split("|")[3:6]]
    assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2, abs=0.011)  # both scenes count


def test_scenes_are_those_of_the_configuration():
    """Resolution and stations of the experiments' scene, not those of the hall."""
    urban, hall = (simulator(scene).deployment for scene in ("urban", "hall_hard"))
    assert (len(urban.bs_position), len(hall.bs_position)) == (3, 4)
    assert float(hall.bandwidth / urban.bandwidth) == pytest.approx(4.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_configuration_holds_a_setting_that_was_tried(name):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = OmegaConf.to_container(compose("evaluate", ["output_dir=x"]), resolve=True)
    front_ends = {"nomp_ls": "nomp", "music_ls": "music"}
    node = config["front_ends"][front_ends[name]] if name in front_ends else config["available"][name]
    if name == "paper":  # the share of the region is the default of the length
        assert node["localizer"].pop("threshold_m") is None
        node = node["localizer"] | {"threshold": THRESHOLD}

    def agrees(settings, written):
        return all(
            agrees(value, written[key]) if isinstance(value, dict) else written.get(key) in (value, _listed(value))
            for key, value in settings.items()
        )

    assert any(agrees(trial.settings, node) for trial in ESTIMATORS[name].trials if not trial.reference)


def _listed(value):
    return list(value) if isinstance(value, tuple) else value
