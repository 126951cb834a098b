"""The task `array_errors` on a small deployment: pairing, rows, files, refused values."""

import csv

import numpy as np
import pytest

from sensing.errors import ConfigError
from sensing.evaluation.array_errors import IDEAL, array_errors
from sensing.learning import self_calibrated
from sensing.simulation import Impairments, Simulator


class SmallBuild:
    """Stands for the builder of the command line."""

    def __init__(self, setup, values=None):
        self.setup, self.values = setup, {"impairments.severity": 1.0, "seed": 0} | (values or {})

    def varied(self, values):
        return SmallBuild(self.setup, self.values | values)

    def simulator(self):
        sizes = Impairments(phase_deg=20.0, severity=self.values["impairments.severity"])
        plain = self.setup.simulator
        return Simulator(plain.deployment, plain.sampler, self.values["seed"], sizes)

    def calibrated(self, num_scenes, snr_db, progress, num_labels):
        return self_calibrated(
            self.simulator(), {}, num_scenes, snr_db, epochs=1, progress=progress, num_labels=num_labels
        )


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("array_errors")
    chosen = {"calibrations": [[1, 0], [2, 1]], "seeds": [0, 1], "num_scenes": 2, "snr_db": 25.0, "progress": False}
    return folder, array_errors(SmallBuild(tiny), folder, {"classical": {}}, **chosen)


def test_rows_and_files(found):
    folder, results = found
    assert [each.method for each in results] == [IDEAL, "classical", "self_calibrated_1", "calibrated_2_labels_1"]
    assert all(each.error_m.shape == (2, 2) for each in results)
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["estimator"] for row in rows] == [each.method for each in results]
    assert float(rows[0]["rmse_over_ideal"]) == 1.0
    rms = [np.sqrt(np.mean(each.error_m**2)) for each in results]
    assert float(rows[1]["rmse_over_ideal"]) == pytest.approx(rms[1] / rms[0], rel=1e-3)
    assert [(row["num_train_scenes"], row["num_labels"]) for row in rows[2:]] == [("1", "0"), ("2", "1")]
    assert {path.name for path in (folder / "figures").iterdir()} == {"error_cdf.png", "over_ideal_vs_scenes.png"}
    assert rows[2]["parameters"] == str(2 * 3 * 12)
    assert {path.name for path in folder.iterdir()} == {"results.csv", "per_scene.npz", "figures", "report.html"}


def test_the_ideal_row_is_the_same_scenes_without_impairment(found, tiny):
    from sensing.estimator import build_estimator

    _, results = found
    simulator = Simulator(tiny.deployment, tiny.simulator.sampler, 1)
    example = simulator.examples("test", range(2), 25.0)
    estimate = build_estimator()(example.observation, tiny.deployment)
    error = (estimate.ue_position - example.scene.ue_position).norm(dim=-1).detach().numpy()
    np.testing.assert_allclose(results[0].error_m[1], error, rtol=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [{"severities": [1.0, 1.0]}, {"seeds": []}, {"num_scenes": 0}, {"split": "sample"}, {"calibrations": [[4, 5]]}],
    ids=str,
)
def test_wrong_values_are_refused(tiny, tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"task.*{next(iter(wrong))}"):
        array_errors(SmallBuild(tiny), tmp_path, {"classical": {}}, **wrong)
