"""Several deviations of the clock offsets in one run: the same scenes and noise, one table, a panel each."""

import csv
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from sensing import preflight, runs
from sensing.cli import conf_dir
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator
from tests.conftest import build

SMALL = ["scene=hall_hard", "array.num_y=4", "array.num_z=4", "ofdm.num_subcarriers=256", "eval.progress=false"]


def composed(*overrides):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("evaluate", [*SMALL, "output_dir=unused", *overrides])


def test_only_the_offsets_change_between_deviations():
    simulators = runs.build_simulators(composed("eval.sigma_over_bandwidth=[0.1,10,inf]"))
    bandwidth = 256 * 120e3
    stds = [float(each.deployment.clock_offset_std) for each in simulators]
    assert stds == pytest.approx([0.1 / bandwidth, 10 / bandwidth, math.inf])
    examples = [each.examples("test", range(3)) for each in simulators]
    first, second, flat = (example.scene for example in examples)
    for scene in (second, flat):
        for name in ("ue_position", "scatterer_position", "visible", "gain"):
            assert torch.equal(getattr(first, name), getattr(scene, name))
    torch.testing.assert_close(second.clock_offset, 100 * first.clock_offset)
    assert torch.equal(flat.clock_offset, second.clock_offset)  # drawn with the largest finite deviation
    noise = [(e.observation.y - e.channel) / e.observation.noise_var[..., None, None].sqrt() for e in examples]
    torch.testing.assert_close(noise[0], noise[1], rtol=1e-9, atol=1e-9)


def test_the_scene_may_say_how_offsets_are_drawn():
    scene = "scene.true_clock_offset_std_over_bandwidth=2"
    for simulator in runs.build_simulators(composed("eval.sigma_over_bandwidth=[1,inf]", scene)):
        assert simulator.sampler.clock_offset_std == pytest.approx(2 / (256 * 120e3))


def test_one_command_writes_all_deviations(tmp_path, capsys):
    sweep = ["eval.sigma_over_bandwidth=[1,inf]", "eval.snr_db=[0,10,20,30]", "eval.num_scenes=2"]
    estimators = ["estimators=[nomp_ls,genie_lmmse,music_ls]", "front_ends.music.window=[8,2,2]"]
    runs.evaluate(composed(*sweep, *estimators, f"output_dir={tmp_path}"))
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["sigma_over_bandwidth"] for row in rows} == {"1", "inf"}
    keys = [tuple(row[k] for k in ("sigma_over_bandwidth", *list(row)[:4])) for row in rows]
    assert len(set(keys)) == len(keys)
    stored = np.load(tmp_path / "per_scene.npz")
    assert stored["genie_lmmse/channel_nmse_db"].shape == (2, 4, 2)
    assert stored["sigma_over_bandwidth"].tolist() == [pytest.approx(1.0), math.inf]
    # the genie knows the offsets: its error may depend on them only through the rotated noise
    genie = stored["genie_lmmse/channel_nmse_db"]
    assert abs(genie[0] - genie[1]).max() < 3.0
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"nmse", "scene_map"}
    assert "unknown" in capsys.readouterr().out
    report = (tmp_path / "report.html").read_text()
    assert "deviation of the clock offsets" in report
    assert "of music_ls: chosen on validation scenes (split val) of hall_hard and urban" in report


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.sigma_over_bandwidth=[]", r"eval\.sigma_over_bandwidth must be a list of numbers >= 0 \(or inf\)"),
        ("eval.sigma_over_bandwidth=[-1]", r"eval\.sigma_over_bandwidth must be a list"),
        ("eval.sigma_over_bandwidth=[1,1]", r"without duplicates"),
        ("eval.sigma_over_bandwidth=[nan]", r"eval\.sigma_over_bandwidth must be a list"),
        ("eval.scatterer_cutoff_m=0", r"eval\.scatterer_cutoff_m must be a number > 0"),
    ],
)
def test_bad_deviations_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        preflight.check_evaluation(runs.plain(composed(override)))


def test_free_clocks_turn_the_observation_and_leave_every_scatterer_where_it_is():
    """Delaying a station's signal by more than the pilots' period moves its clock, and no scatterer of its own."""
    setup = build(6)
    example = setup.simulator.examples("test", range(3), 20.0)
    deployment = setup.deployment._replace(clock_offset_std=torch.tensor(math.inf))
    delay = torch.tensor([2.3, -1.7, 0.6, 5.1], dtype=torch.float64) / deployment.pilot_spacing
    turn = torch.exp(-2j * math.pi * delay[:, None] * deployment.pilot_freq)
    later = example.observation._replace(y=example.observation.y * turn[:, None, :])
    estimator = LocationEstimator()
    with torch.no_grad():
        here, there = (estimator(each, deployment) for each in (example.observation, later))
    assert (example.scene.visible.sum(-2) == 1).sum() > 12, "there are scatterers that one station alone sees"
    for i in range(3):
        first, second = (each.scatterer_position[i, each.scatterer_mask[i]] for each in (here, there))
        apart = torch.cdist(first, second)
        assert len(first) == len(second)
        assert float(apart.amin(0).max()) < 0.05, "metres"
        assert float(apart.amin(1).max()) < 0.05, "metres"
