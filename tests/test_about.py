"""What a report says of its run: the heading, where settings were tuned, and where a checkpoint was trained."""

import logging

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sensing import runs
from sensing.about import SCENE_KEYS, TUNED_ON, about_run, trained_elsewhere
from sensing.cli import conf_dir


def settings(*overrides, command="evaluate"):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return runs.plain(compose(command, ["output_dir=unused", *overrides]))


def notes(*overrides, estimators=()):
    return about_run(settings(*overrides), dict.fromkeys(estimators), "python evaluate.py")["notes"]


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        (["scene=urban"], "Evaluation of urban"),
        (["experiment=paper1_nmse"], "paper1_nmse: evaluation of urban"),
        (["experiment=street_canyon"], "street_canyon: evaluation of street_canyon_sample.h5"),
    ],
)
def test_heading_names_the_experiment(overrides, title):
    assert about_run(settings(*overrides), {}, "")["title"] == title


def test_report_names_the_scenes_that_the_baselines_were_tuned_on():
    assert TUNED_ON == ("hall_hard", "urban")
    for scene, here in (("hall_hard", True), ("urban", True), ("hall", False)):
        said = notes(f"scene={scene}", estimators=["classical", "omp", "paper"])["settings"]
        assert said.startswith("of omp, paper: chosen on validation scenes (split val) of hall_hard and urban")
        assert ("not on these scenes" in said) is not here
    # nomp_ls takes the front end of classical, genie_lmmse and classical have nothing that was tuned there
    assert "settings" not in notes(estimators=["classical", "nomp_ls", "genie_lmmse"])


def test_report_says_who_has_no_location():
    config = settings()
    built = runs.build_estimators(OmegaConf.create({**config, "estimators": ["classical", "omp", "em_sbl"]}))
    said = about_run(config, built, "")["notes"]["no location"]
    assert said.startswith("of omp, em_sbl: ")


def checkpoint(path, *overrides, **hyper_parameters):
    trained = settings(*overrides, command="train")
    recorded = {"trained_on": {key: trained[key] for key in SCENE_KEYS}} | hyper_parameters
    torch.save({"hyper_parameters": recorded}, path)
    return str(path)


def test_a_checkpoint_from_other_scenes_is_told(tmp_path, caplog):
    path = checkpoint(tmp_path / "a.ckpt")  # train.py's default, hall_hard
    assert trained_elsewhere(path, settings("scene=hall_hard")) == ""
    said = trained_elsewhere(path, settings("scene=hall"))
    assert said == "on scene=hall_hard, evaluated on scene=hall; different: scene.sampler.num_shared"
    said = trained_elsewhere(path, settings("scene=hall_hard", "array.num_y=4"))
    assert said.endswith("different: array.num_y")
    said = trained_elsewhere(path, settings("scene=urban"))
    assert "evaluated on scene=urban; different: ofdm." in said
    assert said.endswith(" more")
    file = ["data=file", "data.path=x.h5"]
    assert trained_elsewhere(path, settings(*file)) == "on scene=hall_hard, evaluated on a file"
    old = checkpoint(tmp_path / "old.ckpt", trained_on=None)
    assert "does not record" in trained_elsewhere(old, settings())
    with caplog.at_level(logging.WARNING):
        told = notes("scene=hall", f"checkpoint={path}", estimators=["unfolded"])
    assert "num_shared" in told["unfolded was trained elsewhere"]
    assert "unfolded was trained elsewhere: on scene=hall_hard" in caplog.text


def test_a_checkpoint_on_its_own_scenes_needs_no_remark(tmp_path, caplog):
    changed = ["array.num_y=4", "scene.sampler.num_shared=7"]
    path = checkpoint(tmp_path / "a.ckpt", *changed)
    told = notes("scene=hall_hard", *changed, f"checkpoint={path}", estimators=["unfolded"])
    assert told["unfolded"] == f"trained, {path}"
    assert "unfolded was trained elsewhere" not in told
    assert not caplog.text


def test_hardware_of_another_seed_is_told(tmp_path, caplog):
    """A calibration of one seed's stations says nothing of those of another; without hardware a seed is just scenes."""
    given = ["scene=hall_hard", "impairments=elements", "estimators=[calibrated]"]
    path = checkpoint(tmp_path / "a.ckpt", "impairments=elements")
    recorded = torch.load(path, weights_only=True)["hyper_parameters"]["trained_on"]
    torch.save({"hyper_parameters": {"trained_on": recorded | {"seed": 0}}}, path)
    same = notes(*given, f"calibration={path}", estimators=["calibrated"])
    assert same["calibrated"] == f"trained, {path}"
    assert "calibrated was trained elsewhere" not in same
    other = notes(*given, f"calibration={path}", "seed=7", estimators=["calibrated"])
    assert other["calibrated was trained elsewhere"].endswith("different: seed")
    assert "calibrated was trained elsewhere" in caplog.text
    plain = checkpoint(tmp_path / "b.ckpt")
    recorded = torch.load(plain, weights_only=True)["hyper_parameters"]["trained_on"]
    torch.save({"hyper_parameters": {"trained_on": recorded | {"seed": 0}}}, plain)
    assert trained_elsewhere(plain, settings("scene=hall_hard", "seed=7")) == ""
