"""The table and the archive of estimates."""

import csv

import numpy as np
import pytest
import torch

from sensing import arrays, ofdm
from sensing.containers import Estimate, Flag
from sensing.data import write_estimates
from sensing.errors import ShapeError
from sensing.simulation import build_deployment

SCENES, STATIONS, NODES = 3, 2, 4


@pytest.fixture
def deployment():
    position = [[0, 0, 6], [40, 0, 6]]
    return build_deployment(
        position, arrays.upa(2, 2), ofdm.pilot_frequencies(64, 120e3, 8), 28e9, 1e-8, target=[20, 20, 4]
    )


@pytest.fixture
def estimates():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    root = draw(SCENES, 3 + STATIONS, 3 + STATIONS)
    full = Estimate(
        channel=draw(SCENES, STATIONS, 4, 8, dtype=torch.complex128),
        ue_position=draw(SCENES, 3).requires_grad_(),
        clock_offset=1e-9 * draw(SCENES, STATIONS),
        covariance=root @ root.mT,
        scatterer_position=draw(SCENES, NODES, 3),
        scatterer_covariance=draw(SCENES, NODES, 3, 3),
        scatterer_mask=draw(SCENES, NODES) > 0,
        support=draw(SCENES, STATIONS, NODES).sigmoid(),
        gain=draw(SCENES, STATIONS, NODES, dtype=torch.complex128),
        cost_per_dof=draw(SCENES).abs(),
        flags=torch.tensor([0, Flag.POOR_FIT | Flag.SECOND_MODE, Flag.NO_PATHS]),
    )
    return {"classical": full, "genie_lmmse": Estimate(channel=full.channel)}


def test_table(tmp_path, deployment, estimates):
    table, _ = write_estimates(tmp_path / "run", deployment, estimates, [10, 11, 12])
    with open(table, newline="") as file:
        rows = list(csv.reader(file))
    header = "scene,estimator,ue_x_m,ue_y_m,ue_z_m,var_x_m2,var_y_m2,var_z_m2,clock_offset_s_0,clock_offset_s_1,flagged"
    assert ",".join(rows[0]) == header
    assert [row[:2] for row in rows[1:]] == [[str(n), name] for n in (10, 11, 12) for name in estimates]
    assert [row[-1] for row in rows[1::2]] == ["0", "1", "1"]
    full = estimates["classical"]
    for n, row in enumerate(rows[1::2]):
        want = [*full.ue_position[n].detach(), *full.covariance[n].diagonal()[:3], *full.clock_offset[n]]
        assert [float(cell) for cell in row[2:-1]] == [float(value) for value in want]
    assert all(row[2:] == [""] * 9 for row in rows[2::2])


def test_archive(tmp_path, deployment, estimates):
    _, archive = write_estimates(tmp_path, deployment, estimates, range(SCENES))
    with np.load(archive) as stored:  # without pickles
        assert stored["scene"].tolist() == [0, 1, 2]
        assert stored["estimators"].tolist() == ["classical", "genie_lmmse"]
        for field, value in estimates["classical"]._asdict().items():
            if value is None:
                assert f"classical/{field}" not in stored
                continue
            ours = stored[f"classical/{field}"]
            if field == "channel":
                np.testing.assert_allclose(ours, value.numpy(), rtol=1e-6)
            else:
                np.testing.assert_array_equal(ours, value.detach().numpy())
        assert stored["classical/flag_reasons"].tolist() == ["", "poor_fit|second_mode", "no_paths"]
        assert [key for key in stored if key.startswith("genie")] == ["genie_lmmse/channel"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["estimates.csv", "estimates.npz"]


@pytest.mark.parametrize(
    ("field", "shape"),
    [("ue_position", (2, 3)), ("covariance", (3, 4, 4)), ("channel", (3, 3, 4, 8)), ("support", (3, 2, 5))],
)
def test_wrong_shapes_leave_no_file(tmp_path, deployment, estimates, field, shape):
    bad = {"classical": estimates["classical"]._replace(**{field: torch.zeros(shape)})}
    with pytest.raises(ShapeError, match=rf"classical\.{field} must be"):
        write_estimates(tmp_path, deployment, bad, range(SCENES))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_breaks_off_leaves_no_file(tmp_path, deployment, estimates, monkeypatch):
    def disk_full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", disk_full)
    with pytest.raises(OSError, match="no space left"):
        write_estimates(tmp_path, deployment, estimates, range(SCENES))
    assert list(tmp_path.iterdir()) == []
