"""Rank of the joint Jacobian against finite differences, the information matrix and the closed-form nullity."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sensing.bounds import uplink_bound
from sensing.bounds.identifiability import equation_count, nullity, paper_ratio, singular_values
from sensing.errors import ConfigError
from sensing.evaluation.degrees_of_freedom import degrees_of_freedom, draw, needed
from sensing.simulation import SceneSampler
from sensing.units import SPEED_OF_LIGHT

BOX = [[2, 2, 0.5], [38, 38, 7.5]]


def scenes(deployment, shared, specific, count=3):
    stations = len(deployment.bs_position)
    law = {"num_shared": shared, "num_specific": specific, "visibility": 1.0, "min_views": stations}
    return SceneSampler([[8, 8, 1], [32, 32, 2]], BOX, **law).sample(deployment, 4, "test", range(count))


def observed(theta, scene, bs):
    """Path lengths, azimuths and elevations of all visible pairs, in loops."""
    stations, points = scene.visible.shape
    user, offset, points_at = theta[:3], theta[3 : 3 + stations], theta[3 + stations :].reshape(points, 3)
    values = []
    for q in range(stations):
        for n in range(points):
            if scene.visible[q, n]:
                d = points_at[n] - bs[q]
                r = np.linalg.norm(d)
                length = r + np.linalg.norm(points_at[n] - user) + offset[q]
                values += [length, np.arctan2(d[1], d[0]), np.arcsin(d[2] / r)]
    return np.array(values)


@pytest.mark.parametrize("shared", [0, 1, 3, 4, 6])
def test_nullity_is_that_of_finite_differences_in_azimuth_and_elevation(tiny, shared):
    """Another parametrisation of the directions and no derivative: the same rank."""
    batch = scenes(tiny.deployment, shared, 2)
    found = nullity(singular_values(batch, tiny.deployment))
    assert found.tolist() == [4 - min(shared, 4) if shared else 6] * 3
    bs = tiny.deployment.bs_position.numpy()
    for i in range(3):
        scene = type(batch)(*(field[i].numpy() for field in batch))
        theta = np.concatenate(
            [scene.ue_position, SPEED_OF_LIGHT * scene.clock_offset, scene.scatterer_position.ravel()]
        )
        steps = 1e-4 * np.eye(len(theta))
        columns = [(observed(theta + s, scene, bs) - observed(theta - s, scene, bs)) / 2e-4 for s in steps]
        jacobian = np.stack(columns, -1)
        jacobian /= np.linalg.norm(jacobian, axis=0)
        values = np.linalg.svd(jacobian, compute_uv=False)
        rank = int((values > 1e-7 * values[0]).sum())
        assert len(theta) - rank == int(found[i])


@pytest.mark.parametrize("shared", [2, 5])
def test_nullity_is_the_rank_deficiency_of_the_information(tiny, shared):
    batch = scenes(tiny.deployment, shared, 1)
    bound = uplink_bound(batch, torch.full((3, 3), 1e-2, dtype=torch.float64), tiny.deployment)
    assert torch.equal(nullity(singular_values(batch, tiny.deployment)), bound.rank_deficiency)


def test_a_known_height_saves_one_scatterer(tiny):
    for shared in (1, 2, 3, 4):
        values = singular_values(scenes(tiny.deployment, shared, 1), tiny.deployment, known_height=True)
        assert nullity(values).tolist() == [max(0, 3 - shared)] * 3


def test_counts_of_the_paper():
    """The tabulated values of equation 1.13 and its limits."""
    assert [round(paper_ratio(3, count), 2) for count in (5, 10, 20)] == [0.70, 0.60, 0.55]
    assert [round(paper_ratio(4, count), 2) for count in (5, 10, 20)] == [0.49, 0.41, 0.37]
    assert paper_ratio(3, 10**9) == pytest.approx(1 / 2)
    assert paper_ratio(4, 10**9) == pytest.approx(1 / 3)
    assert [equation_count(q) for q in (2, 3, 4)] == [2, 1, 1]


def test_task_writes_table_figure_and_report(hall, tmp_path, capsys):
    build = SimpleNamespace(simulator=lambda: hall.simulator)
    options = {"stations": [2, 3], "per_station": [5], "most_shared": 5, "num_scenes": 2, "progress": False}
    cases = degrees_of_freedom(build, tmp_path, **options, settings="seed: 0", command="python x")
    # by hand: 3 (Q - 1) Ls >= 3 L + Q + 3 of the paper, Ls >= (Q + 3) / (3 (Q - 1)) of all equations, 4 of the rank
    assert needed(cases) == [["2", "5", "never", "2", "4", "5 3 2 1 0 0"], ["3", "5", "4", "1", "4", "6 3 2 1 0 0"]]
    assert needed(cases[:3]) == [["2", "5", "never", "2", "> 2", "5 3 2"]]
    printed = capsys.readouterr().out
    assert "6 3 2 1 0 0" in printed
    figure = draw(cases)
    assert all(each.get_title() for each in figure.axes)
    required, measured = ({text.get_text() for text in each.get_legend().get_texts()} for each in figure.axes)
    assert required >= {"its limit, 3 stations: 1 / 2", "paper's count, 3 stations", "all equations, 2 stations"}
    assert measured >= {f"{what}, {q} stations" for what in ("measured", "equations enough from here") for q in (2, 3)}
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cases) == 2 * 6
    last = next(row for row in rows if (row["stations"], row["shared"]) == ("3", "2"))
    assert (last["nullity_min"], last["nullity_max"], last["paper_satisfied"]) == ("2", "2", "0")
    assert (last["equation_count"], last["equation_count_satisfied"]) == ("1", "1")
    assert (tmp_path / "figures/degrees_of_freedom.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "report.html").read_text()
    for part in ("python x", "seed: 0", "nullity", "data:image/png", "6 3 2 1 0 0"):
        assert part in report
    with pytest.raises(ConfigError, match=r"task\.stations must be from 2 to the 4"):
        degrees_of_freedom(build, tmp_path / "no", stations=[5])
    assert not (tmp_path / "no").exists()
