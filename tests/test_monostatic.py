"""Monte Carlo task: its numbers recomputed from its own trials, its files, and what it refuses."""

import csv
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sensing.arrays import ula
from sensing.bounds import target_bound
from sensing.bounds.radar import build_radar
from sensing.cli import conf_dir
from sensing.errors import ConfigError
from sensing.evaluation.monostatic import monostatic
from sensing.radar import echo_snr

NETWORK = {
    "bs_position": [[0, 0], [60, 0], [60, 60]], "target": [30, 30], "carrier_hz": 28e9, "num_subcarriers": 48,
    "spacing_hz": 1.6e6, "num_symbols": 4, "symbol_s": 1.25e-4, "eirp_w": 20.0, "sensing_fraction": 0.3,
    "noise_psd": 4e-20,
}  # fmt: skip
OPTIONS = {"area": [[10, 10], [50, 50]], "stations": [[0], [0, 1, 2]], "waveform": None, "progress": False}


class Build:
    """Stands for a run's builder."""

    def __init__(self, **values):
        self.values = values

    def varied(self, values):
        return Build(**self.values | {key.removeprefix("network."): value for key, value in values.items()})

    def network(self):
        return build_radar(array=ula(6), **NETWORK | self.values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monostatic")
    rows = monostatic(Build(), folder, snr_db=[0.0, 30.0], num_trials=60, command="python x", **OPTIONS)
    return folder, rows, np.load(folder / "per_trial.npz")


def test_numbers_are_those_of_the_trials(run):
    folder, rows, trials = run
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["stations"], row["snr_db"]) for row in table] == [(s, x) for s in ("0", "0+1+2") for x in ("0", "30")]
    for i, row in enumerate(rows):
        error, peb = trials["error_m"][i // 2, i % 2], trials["peb_m"][i // 2, i % 2]
        expected = np.sqrt(np.mean(error**2) / np.mean(peb**2))
        assert row.rmse_over_peb == pytest.approx(expected)
        assert float(table[i]["rmse_over_peb"]) == pytest.approx(expected, rel=1e-3)
        assert row.rmse_over_peb_low < expected < row.rmse_over_peb_high
    high = rows[3]
    assert high.located == 1
    assert 0.8 < high.error_over_peb_rms < 1.2
    assert 1.3 < high.nees_mean < 2.8
    assert high.coverage_95 > 0.85
    assert rows[2].located < 0.5  # 0 dB: nothing to detect
    assert rows[2].rmse_m > 10 * high.rmse_m
    assert table[1]["velocity_over_veb_rms"] == ""  # one station does not observe the velocity
    assert 0.8 < high.velocity_over_veb_rms < 1.2


def test_bounds_are_those_of_the_true_targets_at_the_stated_snr(run):
    _, _, trials = run
    network = Build().network().network
    samples = 6 * 4 * 48
    centre = torch.tensor([30.0, 30.0, 0.0], dtype=torch.float64)
    factor = 10**3.0 / (float(echo_snr(centre, network).mean()) * samples)
    powered = network._replace(eirp_w=network.eirp_w * factor)
    position, velocity = torch.from_numpy(trials["position"]), torch.from_numpy(trials["velocity"])
    bound = target_bound(position, powered, velocity, "xy")
    assert np.allclose(trials["peb_m"][1, 1], bound.peb_m, rtol=1e-9)
    assert (trials["position"][:, :2] >= 10).all()
    assert (trials["position"][:, :2] <= 50).all()
    assert np.linalg.norm(trials["velocity"], axis=-1).max() <= 8
    level = 10 * np.log10(samples * echo_snr(position, powered).numpy())
    assert np.allclose(trials["echo_snr_db"][1], level)


def test_files(run):
    folder, _, _ = run
    assert (folder / "figures/error_vs_bound.png").read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.html").read_text()
    for part in ("python x", "coverage_95", "data:image/png", "60 per point"):
        assert part in report
    with (folder / "links.csv").open() as file:
        links = list(csv.DictReader(file))
    assert len(links) == 3 * 2
    strong = [row for row in links if row["snr_db"] == "30"]
    for row in strong:
        assert 0.6 < float(row["range_rms_over_bound"]) < 1.4
        assert 0.6 < float(row["doppler_rms_over_bound"]) < 1.4
        assert 0.6 < float(row["direction_rms_over_bound"]) < 1.4


def test_trials_do_not_depend_on_their_batch(run, tmp_path):
    _, _, trials = run
    monostatic(Build(), tmp_path, snr_db=[30.0], num_trials=7, batch_size=3, **OPTIONS)
    again = np.load(tmp_path / "per_trial.npz")
    assert np.allclose(again["error_m"][:, 0], trials["error_m"][:, 1, :7], rtol=1e-6)


def test_yaml_says_what_the_function_does():
    settings = yaml.safe_load((Path(conf_dir()) / "task/monostatic.yaml").read_text())
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(monostatic).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in ("settings", "command", "notes")
    }

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return float(value) if isinstance(value, str) else value

    assert {key: plain(value) for key, value in settings.items() if key != "_target_"} == plain(defaults)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area": [[-200, 0], [50, 50]]}, r"task\.area must lie within the unambiguous way"),
        ({"area": [[50, 50], [10, 10]]}, r"task\.area and task\.height_m must be \(lower, upper\)"),
        ({"area": [[0, 0, 0], [1, 1, 1]]}, r"task\.area must be \[2 xy\]"),
        ({"speed_m_s": 40.0}, r"task\.speed_m_s must keep"),
        ({"stations": [[0], []]}, r"task\.stations must be"),
        ({"stations": [[7]]}, r"task\.stations must be"),
        ({"snr_db": [10.0, 10.0]}, r"task\.snr_db"),
        ({"num_trials": 0}, r"task\.num_trials"),
        ({"waveform": {"num_subcarriers": 10**6, "num_symbols": 100}}, "at most .* samples per target"),
        ({"waveform": {"eirp_w": 0.0}}, r"network\.eirp_w"),
        ({"false_alarm": 2.0}, "false_alarm"),
    ],
)
def test_refused_before_any_work(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        monostatic(Build(), tmp_path / "no", **OPTIONS | {"snr_db": [10.0], "num_trials": 1} | change)
    assert not (tmp_path / "no").exists()


def test_another_kind_of_network_is_refused(tmp_path):
    class Uplink(Build):
        def varied(self, values):
            return self

        def network(self):
            return object()

    with pytest.raises(ConfigError, match="needs a radar network"):
        monostatic(Uplink(), tmp_path / "no", **OPTIONS)
