"""Bound against configuration values: paper 2's sentences about subcarriers, antennas, power; keys that do not fit."""

import csv

import numpy as np
import pytest

from sensing import runs
from sensing.errors import ConfigError, DomainError
from tests.test_coverage import composed

ONE, DIAGONAL, THREE, FOUR = "one station", "two in opposite corners", "three stations", "four stations"


def swept(folder, *overrides):
    """Bound at the point in millimetres by (curve, value as text), from the file."""
    runs.evaluate(composed(*overrides, folder=folder))
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    key = list(rows[0])[1]
    return {(row["series"], row[key]): 1e3 * float(row["peb_m"]) for row in rows}, rows


def test_subcarriers(tmp_path):
    """EQUATIONS 2(c), test 4: all share the power, so more of them help only where range helps."""
    peb, rows = swept(tmp_path, "experiment=paper2_subcarriers", "task.values=[64,256,1024,3168]")
    change = {name: peb[name, "3168"] / peb[name, "1024"] - 1 for name in (ONE, DIAGONAL, THREE, FOUR)}
    assert change == pytest.approx({ONE: -0.12, DIAGONAL: -0.13, THREE: -0.62, FOUR: -0.63}, abs=0.01)
    values = [peb[DIAGONAL, count] for count in ("64", "256", "1024", "3168")]
    assert values == pytest.approx([6.98, 1.88, 0.845, 0.738], rel=5e-3)
    assert {row["network.num_subcarriers"] for row in rows if row["configured"] == "True"} == {"3168"}
    assert (tmp_path / "figures/bound_sweep.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.html").read_text()
    for part in ("subcarriers K", "two in opposite corners", "data:image/png"):
        assert part in report


def test_antennas(tmp_path):
    """EQUATIONS 2(c), tests 5 and 6."""
    peb, _ = swept(tmp_path, "experiment=paper2_antennas", "task.values=[2,8,9,10,11,50,100]")
    doubled = {name: peb[name, "100"] / peb[name, "50"] for name in (ONE, DIAGONAL, FOUR)}
    assert doubled == pytest.approx({ONE: 0.372, DIAGONAL: 0.372, FOUR: 0.67}, rel=5e-3)
    counts = [2, 8, 9, 10, 11, 50, 100]
    least = {name: min(n for n in counts if peb[name, str(n)] < 10) for name in (ONE, DIAGONAL, THREE, FOUR)}
    assert least == {ONE: 11, DIAGONAL: 9, THREE: 2, FOUR: 2}


def test_antennas_for_a_centimetre_from_a_single_symbol(tmp_path):
    """EQUATIONS 2(c), test 6, config B: one symbol of the 1120; 43 dBm to the digit, as the counts are sharp."""
    values = "task.values=[21,22,32,33,94,95,121,122]"
    peb, _ = swept(tmp_path, "experiment=paper2_antennas", "network.num_symbols=1", "network.eirp_w=19.9526", values)
    for name, least in ((ONE, 122), (DIAGONAL, 95), (THREE, 33), (FOUR, 22)):
        assert peb[name, str(least)] < 10 < peb[name, str(least - 1)]


def test_power(tmp_path):
    """EQUATIONS 2(c), test 5: a slope of -1/2, less than that of the antennas; without power there is no bound."""
    peb, rows = swept(tmp_path, "experiment=paper2_power", "task.values=[0,0.1,0.4]")
    for name in (ONE, DIAGONAL, THREE, FOUR):
        assert peb[name, "0.4"] / peb[name, "0.1"] == pytest.approx(0.5, rel=1e-9)
        assert np.isinf(peb[name, "0"])
    assert {row["reason"] for row in rows if float(row["peb_m"]) == np.inf} == {"no_power"}


def test_stations_over_the_area(tmp_path):
    """The published reductions hold for a diagonal pair; an adjacent one would give larger ones."""
    _, rows = swept(tmp_path, "experiment=paper2_stations", "task.num_points=[73,73]")
    worst = {row["network.active"]: float(row["max_peb_m"]) for row in rows}
    assert 1 - worst["[0, 1, 2]"] / worst["[0, 2]"] == pytest.approx(0.283, abs=0.015)
    assert 1 - worst["[0, 1, 2, 3]"] / worst["[0, 2]"] == pytest.approx(0.628, abs=0.01)
    assert 0.53 < 1 - worst["[0, 1, 2]"] / worst["[0, 1]"] < 0.58
    assert 0.73 < 1 - worst["[0, 1, 2, 3]"] / worst["[0, 1]"] < 0.82
    assert all(float(row["median_peb_m"]) < float(row["max_peb_m"]) for row in rows)
    assert {row["unobservable"] for row in rows} == {"0"}


SWEEP = ["task=bound_sweep", "task.key=network.num_symbols", "task.values=[1,2]"]


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("task.key=network.nothing", ConfigError, r"a varied key must be .*got 'network\.nothing'"),
        ("task.values=[]", ConfigError, r"values must be a list .* \(in task\)"),
        ("task.values=[1,0]", ConfigError, r"num_symbols must be a whole number >= 1, got 0 .*\(in network\)"),
        ("task.series_key=network.active", ConfigError, "series_key and series_values go together"),
        ("task.point=[1]", ConfigError, r"point must be \[x, y\] or \[x, y, z\], got \[1"),
        ("task.labels=[a,b]", ConfigError, "labels must be 1 different names"),
        ("network.sensing_fraction=-0.1", DomainError, r"sensing_fraction must be from 0 to 1.*\(in network\)"),
        ("task.key=null", ConfigError, "key must be a dotted key of the configuration, got None"),
    ],
)
def test_bad_values_are_refused_before_any_work(override, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        runs.evaluate(composed(*SWEEP, override, folder=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
