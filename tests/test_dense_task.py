"""The task dense_dictionary: files, pairs, tuning on validation problems, refusals."""

import csv

import numpy as np
import pytest
import torch

from sensing.baselines.sparse import genie
from sensing.data.dictionary import SparseBlocks
from sensing.errors import ConfigError
from sensing.evaluation import dense
from sensing.evaluation.dense_methods import classical, turbo
from sensing.inference.dense_turbo import DenseTurbo
from tests.test_dense_turbo import sampler

SMALL = {"snr_db": [0, 20], "num_problems": 5, "tuning_problems": 4, "limit_problems": 3, "depth": 3, "batch_size": 2,
         "progress": False}  # fmt: skip


class Checkpoints:
    """Stands for the builder: a trained estimator without training."""

    def dense(self, path):
        torch.manual_seed(len(path))
        model = DenseTurbo(3, 3.0, kept=8, hidden=3)
        with torch.no_grad():
            model.layers[1].schedule.outer.bias += 0.3
        return model.eval(), 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    methods = ["fista_3", "omp_3", "ols_3", "em_sbl_3", "oamp_3", "turbo_3"]
    found = dense.dense_dictionary(
        Checkpoints(), folder, sampler(), methods, {"unfolded_3": ["file", "another"]}, command="the command", **SMALL
    )
    return folder, found


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_are_the_errors_on_the_test_problems(run):
    folder, found = run
    rows = {(row["method"], float(row["snr_db"])): row for row in rows_of(folder / "results.csv")}
    assert len(rows) == len(found) == 2 * 9
    blocks = SparseBlocks(sampler(), 0, "test", 2, 3, 0.0)
    models = [Checkpoints().dense(path)[0] for path in ("file", "another")]
    for snr in (0.0, 20.0):
        errors = {"genie": [[]], "unfolded_3": [[], []]}
        for number in range(3):
            task = blocks.task(number, snr)
            channel, matvec = task.problems.operator.matvec(task.problems.gain), task.problems.operator.matvec
            found = {
                "genie": [genie(task.dictionary.gram, task.matched, task.problems.noise_var, task.problems.support)],
                "unfolded_3": [turbo(model)(task).mean for model in models],
            }
            for name, seeds in found.items():
                for kept, gain in zip(errors[name], seeds, strict=True):
                    wrong = (matvec(gain) - channel).abs().square().sum((-2, -1))
                    kept += (wrong / channel.abs().square().sum((-2, -1))).tolist()
        for name, seeds in errors.items():
            row, wanted = rows[name, snr], np.array(seeds)[:, :5]
            assert float(row["nmse_db"]) == pytest.approx(10 * np.log10(wanted.mean()), rel=1e-3)
            assert int(row["num_problems"]) == 5
            assert np.allclose(np.load(folder / "per_problem.npz")[f"{name}_{snr:g}_nmse"], wanted, rtol=1e-6)
            shown = [float(text) for text in row["of_seeds_db"].split(" / ")]
            assert shown == pytest.approx(list(10 * np.log10(wanted.mean(-1))), abs=0.006)
        assert float(rows["unfolded_3", snr]["fallback_fraction"]) <= 1.0
        assert int(rows["unfolded_3", snr]["parameters"]) == sum(p.numel() for p in models[0].parameters())
        assert int(rows["unfolded_3", snr]["training_samples"]) == 40
        assert int(rows["ols_3", snr]["parameters"]) == 0
        assert int(rows["bayes", snr]["num_problems"]) == 3
    assert (folder / "figures" / "nmse_vs_snr.png").stat().st_size > 10_000
    assert "the command" in (folder / "report.html").read_text(encoding="utf-8")


def test_pairs_are_on_common_problems(run):
    folder, _ = run
    errors = np.load(folder / "per_problem.npz")
    pairs = rows_of(folder / "paired.csv")
    assert {row["method"] for row in pairs} == {"unfolded_3"}
    assert len(pairs) == 2 * 8
    for row in pairs:
        count, snr = int(row["num_problems"]), row["snr_db"]
        assert count == (3 if row["against"] == "bayes" else 5)
        own, other = (errors[f"{name}_{snr}_nmse"][:, :count].mean() for name in ("unfolded_3", row["against"]))
        assert float(row["better_by_db"]) == pytest.approx(10 * np.log10(other / own), rel=1e-3, abs=1e-3)
        assert float(row["low_db"]) <= float(row["better_by_db"]) <= float(row["high_db"])


def test_the_setting_is_the_best_of_the_validation_problems(run):
    _, found = run
    blocks, methods = SparseBlocks(sampler(), 0, "val", 2, 2, 0.0), classical(3, 3)
    for name in ("ols_3", "oamp_3"):
        for snr in (0.0, 20.0):
            errors = {}
            for setting, solve in methods[name].settings.items():
                tasks = [blocks.task(number, snr) for number in range(2)]
                errors[setting] = float(torch.cat([task.nmse(solve(task)) for task in tasks]).mean())
            chosen = next(each.setting for each in found if (each.method, each.snr_db) == (name, snr))
            assert errors[chosen] == min(errors.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["best_10"]}, r"methods must be out of .*'turbo_3'.*got \['best_10'\]"),
        ({"num_problems": 0}, "num_problems must be a whole number >= 1, got 0"),
        ({"limit_problems": 6}, "0 <= limit_problems <= num_problems"),
        ({"snr_db": []}, "need an SNR"),
    ],
)
def test_bad_values_are_refused_before_any_work(tmp_path, change, message):
    arguments = {"methods": ["ols_3"]} | SMALL | change
    with pytest.raises(ConfigError, match=message):
        dense.dense_dictionary(Checkpoints(), tmp_path / "none", sampler(), **arguments)
    assert not (tmp_path / "none").exists()
