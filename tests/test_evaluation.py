"""The evaluation engine on estimators whose errors are known beforehand, recomputed with numpy from the raw scenes."""

import csv
import io
import math
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from rich.console import Console

from sensing import arrays, ofdm
from sensing.baselines import Detector, GenieLmmse, IdealSync
from sensing.bounds import uplink_bound
from sensing.containers import Deployment, Estimate, Example, Flag, Observation, PathEstimates
from sensing.data import export_scenes, write_observations
from sensing.errors import ConfigError, FileFormatError, NumericalError
from sensing.evaluation import SweepResult, evaluate_file, print_summary, run_sweep, write_evaluation
from sensing.evaluation import runner as runner_module
from sensing.evaluation.distributions import calibration, nmse_cdf
from sensing.evaluation.figures import save_figures
from sensing.evaluation.files import concatenate, half_of
from sensing.evaluation.measures import measure, rows
from sensing.evaluation.statistics import bootstrapped, describe, proportion
from sensing.evaluation.style import PALETTE, marks
from sensing.evaluation.tables import write_per_scene, write_results
from sensing.metrics import nees
from sensing.simulation import SceneSampler, Simulator, build_deployment

SNR = [0.0, 20.0]
SCENES = 5


def make_simulator(std: float = 1e-8, shared: int = 5) -> Simulator:
    deployment = build_deployment(
        [[0, 0, 6], [40, 0, 5], [40, 40, 6]],
        arrays.upa(3, 3),
        ofdm.pilot_frequencies(192, 120e3, 16),
        28e9,
        std,
        target=[20, 20, 4],
        region=[[0, 0, 0], [40, 40, 8]],
    )
    box = [[1, 1, 0.5], [39, 39, 7.5]]
    sampler = SceneSampler([[3, 3, 1], [37, 37, 2]], box, num_shared=shared, num_specific=1, clock_offset_std=1e-8)
    return Simulator(deployment, sampler, seed=3)


class TruthPlus:
    """The truth, moved by a known amount; its channel is the raw observation."""

    needs_truth = True

    def __init__(self, shift_m: tuple[float, float, float] = (0.03, 0.0, 0.04), fails: tuple[int, ...] = ()) -> None:
        self.shift_m, self.fails = shift_m, fails
        self.seen: list[Observation] = []
        self.calls = 0

    def __call__(
        self,
        observation: Observation,
        deployment: Deployment,
        paths: PathEstimates | None = None,
        truth: Example | None = None,
    ) -> Estimate:
        assert truth is not None
        assert truth.scene is not None
        self.seen.append(observation)
        scene = truth.scene
        shift = torch.tensor(self.shift_m, dtype=torch.float64)
        user = scene.ue_position + shift
        flags = torch.zeros(len(user), dtype=torch.int64)
        for scene_index in self.fails:
            if self.calls == 0:
                user[scene_index] = torch.nan
                flags[scene_index] = Flag.DIVERGED
        self.calls += 1
        count = 3 + scene.clock_offset.shape[-1]
        covariance = 0.05**2 * torch.eye(count, dtype=torch.float64).expand(len(user), count, count)
        nodes = scene.scatterer_position + shift
        return Estimate(
            observation.y, user, scene.clock_offset + 2e-9, covariance, nodes, None, scene.visible.any(1), flags=flags
        )


def no_paths(observation: Observation, deployment: Deployment) -> PathEstimates:
    batch, stations = observation.noise_var.shape
    zero = torch.zeros(batch, stations, 1, dtype=torch.float64)
    matrix = zero[..., None, None].expand(batch, stations, 1, 4, 4)
    return PathEstimates(zero, zero[..., None].expand(batch, stations, 1, 3), zero + 0j, matrix, matrix, zero > 0)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def table(result: SweepResult) -> dict[tuple, tuple[float, int]]:
    found = rows([result])
    return {(r.estimator, r.snr_db, r.metric, r.statistic): (r.value.value, r.value.num_scenes) for r in found}


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return make_simulator()


@pytest.fixture(scope="module")
def result(simulator: Simulator) -> SweepResult:
    estimators = {"classical": TruthPlus(), "other": TruthPlus((0.0, 5.0, 0.0)), "genie_lmmse": GenieLmmse()}
    return run_sweep(simulator, estimators, {"nomp": no_paths}, SNR, SCENES, batch_size=2, progress=False)


def test_results_have_the_documented_columns_and_hand_computed_values(
    result: SweepResult, simulator: Simulator, tmp_path: Path
) -> None:
    found = read(write_results([result], tmp_path / "results.csv"))
    first = ["estimator", "snr_db", "metric", "statistic", "value", "num_scenes", "seed"]
    assert list(found[0]) == [*first, "low", "high", "sigma_over_bandwidth"]
    assert {row["sigma_over_bandwidth"] for row in found} == {"0.2304"}  # 10 ns of 192 x 120 kHz
    assert {row["seed"] for row in found} == {"3"}
    values = {(r["estimator"], float(r["snr_db"]), r["metric"], r["statistic"]): float(r["value"]) for r in found}
    for snr in SNR:
        example = simulator.examples("test", range(SCENES), snr)
        bound = uplink_bound(example.scene, example.observation.noise_var, simulator.deployment)
        peb = bound.ue_position_m.numpy()
        for name, error in (("classical", 0.05), ("other", 5.0)):
            wanted = {
                ("ue_error_m", "median"): error,
                ("ue_error_m", "rms"): error,
                ("ue_error_m", "p90"): error,
                ("ue_error_m", "mean"): error,
                ("clock_offset_error_s", "rms"): 2e-9,
                ("scatterer_error_m", "mean"): min(error, 2.0),
                ("ue_error_over_peb", "median"): np.median(error / peb),
                ("ue_error_over_peb", "rms"): np.sqrt(np.mean((error / peb) ** 2)),
                ("ue_error_over_peb", "p90"): np.percentile(error / peb, 90),
                ("converged_fraction", "mean"): np.mean(error < 3 * peb),
                ("below_1m_fraction", "mean"): float(error < 1),
                ("covered_90_fraction", "mean"): float(error < 1),
                ("nees_user", "mean"): (error / 0.05) ** 2 / 3,
                ("flagged_fraction", "mean"): 0.0,
            }
            if (error < 3 * peb).any():
                kept = (error / peb)[error < 3 * peb]
                wanted["ue_error_over_peb_converged", "rms"] = np.sqrt(np.mean(kept**2))
            for (metric, stat), value in wanted.items():
                assert values[name, snr, metric, stat] == pytest.approx(value, rel=1e-6), (name, snr, metric, stat)
        # channel = y: the squared error is that of the noise
        noise, channel = (example.observation.y - example.channel).numpy(), example.channel.numpy()
        ratio = [(abs(w) ** 2).sum() / (abs(h) ** 2).sum() for w, h in zip(noise, channel, strict=True)]
        assert values["classical", snr, "channel_nmse_db", "mean"] == pytest.approx(10 * np.log10(np.mean(ratio)))
        median = np.median(10 * np.log10(ratio))
        assert values["classical", snr, "channel_nmse_db", "median"] == pytest.approx(median)
        rms = 10 * np.log10(np.sqrt(np.mean(np.square(ratio))))
        assert values["classical", snr, "channel_nmse_db", "rms"] == pytest.approx(rms)
        # the bound, its scatterers and clocks combined as the errors are
        for stat, value in (("median", np.median(peb)), ("rms", np.sqrt(np.mean(peb**2))), ("mean", peb.mean())):
            assert values["peb", snr, "ue_error_m", stat] == pytest.approx(value)
        clocks = np.sqrt((bound.clock_offset_s.numpy() ** 2).mean(1))
        assert values["peb", snr, "clock_offset_error_s", "mean"] == pytest.approx(clocks.mean())
        shared = (example.scene.visible.sum(1) >= 2).numpy()
        points = [np.sqrt(np.mean(b[s] ** 2)) for b, s in zip(bound.scatterer_m.numpy(), shared, strict=True)]
        assert values["peb", snr, "scatterer_error_m", "mean"] == pytest.approx(np.mean(points))
        assert values["peb_sync", snr, "ue_error_m", "rms"] < values["peb", snr, "ue_error_m", "rms"]


def test_every_target_quantity_has_its_interval(result: SweepResult, tmp_path: Path) -> None:
    found = {
        (row["metric"], row["statistic"]): row
        for row in read(write_results([result], tmp_path / "results.csv"))
        if (row["estimator"], row["snr_db"]) == ("classical", "0")
    }
    for key in (
        ("converged_fraction", "mean"),
        ("ue_error_over_peb_converged", "rms"),
        ("ue_rmse_over_rms_peb", "ratio"),
        ("scatterer_median_over_median_bound", "ratio"),
        ("nmse_gap_to_genie_db", "ratio"),
        ("covered_90_fraction", "mean"),
        ("covered_90_unflagged_fraction", "mean"),
        ("below_3m_fraction", "mean"),
        ("ue_error_unflagged_m", "p90"),
        ("ue_error_m", "median"),
        ("flagged_fraction", "mean"),
        ("nees_user", "mean"),
        ("time_s", "mean"),
    ):
        row = {name: float(found[key][name]) for name in ("low", "value", "high")}
        assert row["low"] <= row["value"] * (1 + 1e-6) + 1e-9, key
        assert row["value"] <= row["high"] * (1 + 1e-6) + 1e-9, key


def test_gospa_of_moved_points_is_that_of_the_shift(result: SweepResult, simulator: Simulator) -> None:
    seen = simulator.scenes("test", range(SCENES)).visible.any(1).sum(1).double()
    wanted = (0.05 * seen.sqrt()).median()
    assert table(result)["classical", 0.0, "gospa_m", "median"][0] == pytest.approx(float(wanted))


def test_all_estimators_and_snr_points_see_the_same_scenes_and_noise(simulator: Simulator) -> None:
    first, second = TruthPlus(), TruthPlus()
    run_sweep(simulator, {"a": first, "b": second}, {}, SNR, 4, batch_size=4, progress=False)
    for left, right in zip(first.seen, second.seen, strict=True):
        assert torch.equal(left.y, right.y)
    channel = simulator.examples("test", range(4)).channel
    unit = [(seen.y - channel) / seen.noise_var[..., None, None].sqrt() for seen in first.seen]
    torch.testing.assert_close(unit[0], unit[1], rtol=1e-9, atol=1e-9)


def test_results_do_not_depend_on_the_batch_size(result: SweepResult, simulator: Simulator) -> None:
    again = run_sweep(simulator, {"classical": TruthPlus()}, {}, SNR, SCENES, batch_size=5, progress=False)
    for quantity, values in again.scores["classical"].items():
        if quantity != "time_s":
            np.testing.assert_allclose(values, result.scores["classical"][quantity], rtol=1e-9)
    np.testing.assert_allclose(again.bounds["peb"]["ue_error_m"], result.bounds["peb"]["ue_error_m"], rtol=1e-8)


def test_each_front_end_in_use_runs_once_and_its_time_goes_to_those_who_name_it(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = {"now": 0.0}, []
    monkeypatch.setattr(runner_module.time, "perf_counter", lambda: clock["now"])

    length = {"nomp": 4.0, "music": 7.0}  # of the paths, and what the front end costs

    def detector(name: str) -> Detector:
        def detect(observation: Observation, deployment: Deployment) -> PathEstimates:
            clock["now"] += length.get(name, 100.0)
            calls.append(name)
            return no_paths(observation, deployment)._replace(range_m=torch.full((2, 3, 1), length.get(name, 0.0)))

        return detect

    class Ticking(TruthPlus):
        def __init__(self, front_end: str | None) -> None:
            super().__init__()
            self.front_end = front_end

        def __call__(self, observation, deployment, paths=None, truth=None) -> Estimate:
            assert (None if paths is None else float(paths.range_m[0, 0, 0])) == length.get(self.front_end)
            clock["now"] += 2.0
            return super().__call__(observation, deployment, paths, truth)

    estimators = {"a": Ticking("nomp"), "b": Ticking(None), "c": Ticking("music"), "d": Ticking("nomp")}
    front_ends = {name: detector(name) for name in ("music", "nomp", "unused")}
    found = run_sweep(simulator, estimators, front_ends, SNR, 4, batch_size=2, progress=False)
    assert sorted(calls) == ["music"] * 2 * len(SNR) + ["nomp"] * 2 * len(SNR)
    for name, cost in (("a", 4.0 + 2.0), ("b", 2.0), ("c", 7.0 + 2.0), ("d", 4.0 + 2.0)):
        np.testing.assert_allclose(found.scores[name]["time_s"], cost / 2)


def test_an_estimator_without_its_front_end_among_those_given_runs_its_own(simulator: Simulator) -> None:
    class Own(TruthPlus):
        front_end = "mine"

        def __call__(self, observation, deployment, paths=None, truth=None) -> Estimate:
            assert paths is None
            return super().__call__(observation, deployment, paths, truth)

    run_sweep(simulator, {"a": Own()}, {"nomp": no_paths}, [0.0], 1, progress=False)


def test_estimators_may_differentiate_inside(simulator: Simulator) -> None:
    class Differentiating(TruthPlus):
        def __call__(self, observation, deployment, paths=None, truth=None) -> Estimate:
            assert not torch.is_grad_enabled()
            with torch.enable_grad():
                x = observation.y.real.clone().requires_grad_()
                x.square().sum().backward()
            assert x.grad is not None
            return super().__call__(observation, deployment, paths, truth)

    run_sweep(simulator, {"a": Differentiating()}, {}, [0.0], 1, progress=False)


def test_failed_scenes_are_counted_and_never_converge(simulator: Simulator, tmp_path: Path) -> None:
    found = run_sweep(simulator, {"a": TruthPlus(fails=(1,))}, {}, [20.0], 4, batch_size=4, progress=False)
    values = table(found)
    assert values["a", 20.0, "ue_error_m", "rms"] == (pytest.approx(0.05), 3)
    peb = found.bounds["peb"]["ue_error_m"][0]
    converged = (3 * peb > 0.05) & (np.arange(4) != 1)
    assert values["a", 20.0, "converged_fraction", "mean"] == (pytest.approx(converged.mean()), 4)
    assert values["a", 20.0, "below_1m_fraction", "mean"] == (0.75, 4)
    assert values["a", 20.0, "flagged_fraction", "mean"] == (0.25, 4)
    assert values["a", 20.0, "ue_error_unflagged_m", "mean"] == (pytest.approx(0.05), 3)
    report = write_evaluation(found, tmp_path).read_text()
    assert "no finite position in 1 scenes" in report
    stored = np.load(tmp_path / "per_scene.npz")
    assert np.isnan(stored["a/ue_error_m"][0, 1])
    assert stored["a/flags"][0].tolist() == [0, Flag.DIVERGED, 0, 0]
    assert stored["a/converged"].tolist() == [converged.tolist()]


def test_coverage_and_nees_of_errors_drawn_from_the_claimed_law() -> None:
    """Errors drawn from a known covariance are covered as claimed; half the deviation claimed is seen at once."""
    draw = np.random.default_rng(0)
    root = draw.standard_normal((3, 3))
    errors = torch.from_numpy(draw.standard_normal((400, 3)) @ root.T)
    covariance = torch.from_numpy(root @ root.T)
    found = {}
    for name, scale in (("right", 1.0), ("bold", 0.25)):
        d2 = nees(errors, scale * covariance).numpy() / 3
        scores = {"ue_error_m": errors.norm(dim=-1).numpy(), "nees_user": d2, "time_s": np.ones(400)}
        found[name] = {key: value[None] for key, value in scores.items()}
    values = measure(SweepResult([10.0], list(range(400)), found, num_stations=3))
    for level in (50, 90, 99):
        share = values["right", 0, f"covered_{level}_fraction", "mean"]
        assert share.low <= level / 100 <= share.high
        assert values["bold", 0, f"covered_{level}_fraction", "mean"].high < level / 100
    mean = {name: values[name, 0, "nees_user", "mean"].value for name in found}
    band = [values["right", 0, "nees_user", side].value for side in ("band_low", "band_high")]
    assert band[0] < mean["right"] < band[1] < mean["bold"]
    assert mean["bold"] == pytest.approx(4 * mean["right"])
    # Monte Carlo of the band: the mean of 400 chi-square numbers with 3 degrees of freedom
    means = draw.chisquare(3, (4000, 400)).mean(1) / 3
    assert np.mean((means > band[0]) & (means < band[1])) == pytest.approx(0.95, abs=0.02)


def test_shares_and_ratios_over_all_and_over_trusted_scenes() -> None:
    error = np.array([0.1, 0.2, 5.0, np.nan])
    scores = {
        "ue_error_m": error,
        "flags": np.array([0.0, 0.0, 8.0, 1.0]),
        "nees_user": np.array([1.0, 9.0, 1.0, np.nan]),
        "channel_nmse_db": np.array([-10.0, -20.0, -10.0, -10.0]),
        "time_s": np.ones(4),
    }
    genie = {"channel_nmse_db": np.array([-13.0, -20.0, -13.0, -13.0]), "time_s": np.ones(4)}
    found = {"a": scores, "genie_lmmse": genie}
    bounds = {"peb": {"ue_error_m": np.array([[0.1, 0.1, 1.0, 1.0]])}}
    result = SweepResult(
        [10.0], [0, 1, 2, 3], {n: {k: v[None] for k, v in s.items()} for n, s in found.items()}, bounds
    )
    values = {key[2:]: value for key, value in measure(result).items() if key[0] == "a"}
    for metric, wanted, count in (
        ("below_1m_fraction", 2 / 4, 4),
        ("below_1m_unflagged_fraction", 1.0, 2),
        ("covered_90_fraction", 2 / 4, 4),  # a scene without covariance is not covered
        ("covered_90_unflagged_fraction", 1 / 2, 2),
        ("converged_fraction", 2 / 4, 4),
        ("converged_unflagged_fraction", 1.0, 2),
    ):
        assert values[metric, "mean"][:1] + values[metric, "mean"][3:] == (wanted, count), metric
    ratio = values["ue_rmse_over_rms_peb", "ratio"]
    assert ratio.num_scenes == 3
    assert ratio.value == pytest.approx(math.sqrt((0.01 + 0.04 + 25) / (0.01 + 0.01 + 1)))
    gap = values["nmse_gap_to_genie_db", "ratio"]
    linear = [np.mean(10 ** (s["channel_nmse_db"] / 10)) for s in (scores, genie)]
    assert gap.value == pytest.approx(10 * math.log10(linear[0] / linear[1]))
    # paired: whichever scenes are drawn, each contributes 0 or 3 dB
    assert 0 <= gap.low <= gap.high <= 3.0 + 1e-9


def test_intervals_cover_and_ratios_of_equal_samples_have_none() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        low, high = describe(draw.standard_normal(80))["mean"][1:3]
        hits += low < 0 < high
    assert 85 <= hits <= 100
    sample = draw.exponential(size=50)
    (ratio,) = bootstrapped(lambda a, b: (a.mean(-1) / b.mean(-1))[None], 2 * sample, sample)
    assert ratio[:3] == pytest.approx((2.0, 2.0, 2.0))
    assert describe(np.array([3.0]))["rms"].value == 3.0
    assert math.isnan(describe(np.array([3.0]))["rms"].low)


def test_scatterer_coverage_counts_located_scatterers(simulator: Simulator) -> None:
    """Shared scatterers moved by 5 cm are inside a sphere of 10 cm deviation, and outside one of 1 cm."""

    class Claims(TruthPlus):
        def __call__(self, observation, deployment, paths=None, truth=None) -> Estimate:
            estimate = super().__call__(observation, deployment, paths, truth)
            deviation = torch.tensor([0.1, 0.01]).double()[torch.arange(estimate.scatterer_position.shape[1]) % 2]
            matrix = deviation.square()[:, None, None] * torch.eye(3, dtype=torch.float64)
            return estimate._replace(scatterer_covariance=matrix.expand(len(estimate.ue_position), -1, 3, 3))

    found = run_sweep(simulator, {"a": Claims()}, {}, [20.0], 4, progress=False)
    visible = simulator.scenes("test", range(4)).visible
    shared = (visible.sum(1) >= 2).numpy()
    wide = shared & (np.arange(shared.shape[1]) % 2 == 0)
    values = table(found)
    assert values["a", 20.0, "shared_covered_90_fraction", "mean"][0] == pytest.approx(wide.sum() / shared.sum())
    assert found.scores["a"]["specific_located"][0].tolist() == (visible.sum(1) == 1).sum(1).tolist()


def test_scenes_without_a_finite_bound_count_as_not_converged() -> None:
    found = run_sweep(make_simulator(math.inf, shared=2), {"a": TruthPlus()}, {}, [20.0], 3, progress=False)
    assert np.isinf(found.bounds["peb"]["ue_error_m"]).all()
    values = table(found)
    assert values["a", 20.0, "converged_fraction", "mean"] == (0.0, 3)
    assert values["peb", 20.0, "ue_error_m", "median"][1] == 0
    assert math.isnan(values["a", 20.0, "ue_error_over_peb", "rms"][0])
    assert values["a", 20.0, "ue_error_m", "mean"] == (pytest.approx(0.05), 3)


def test_statistics_in_decibel_and_shares() -> None:
    values = np.array([-10.0, -20.0, np.nan, -30.0])
    found = describe(values, decibel=True)
    assert (found["mean"].value, found["mean"].num_scenes) == (pytest.approx(10 * math.log10(0.111 / 3)), 3)
    assert found["median"].value == pytest.approx(-20.0)
    assert math.isnan(describe(np.array([np.inf]))["rms"].value)
    share = proportion(np.array([True] * 20))
    assert share.value == 1.0
    assert share.low == pytest.approx(20 / (20 + 1.959964**2), rel=1e-5)  # closed form of Wilson's bound at 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"snr_db": []}, "snr_db"),
        ({"snr_db": [0.0, 0.0]}, "distinct"),
        ({"num_scenes": 0}, "num_scenes"),
        ({"batch_size": 0}, "batch_size"),
        ({"estimators": {}}, "at least one estimator"),
    ],
)
def test_impossible_sweeps_are_refused(simulator: Simulator, arguments: dict, message: str) -> None:
    usual = {"estimators": {"a": TruthPlus()}, "front_ends": {}, "snr_db": SNR, "num_scenes": 1, "progress": False}
    with pytest.raises(ConfigError, match=message):
        run_sweep(simulator, **(usual | arguments))


def test_a_defect_is_not_taken_for_a_missing_truth(simulator: Simulator) -> None:
    def broken(observation, deployment, paths=None, truth=None) -> Estimate:
        raise NumericalError("gain is not finite")

    with pytest.raises(NumericalError):
        run_sweep(simulator, {"a": broken}, {}, SNR, 1, progress=False)


def test_figures_are_drawn_and_the_report_is_self_contained(result: SweepResult, tmp_path: Path) -> None:
    report = write_evaluation(result, tmp_path, "A <title>", "seed: 3", "python evaluate.py", {"checkpoint": "none"})
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {
        "error_vs_snr",
        "converged_vs_snr",
        "nmse_vs_snr",
        "scatterers_vs_snr",
        "clocks_vs_snr",
        "coverage",
        "error_cdf",
        "error_over_peb_cdf",
        "scene_map",
    }
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 300
        assert 0.01 < (image[..., :3].min(-1) < 0.9).mean() < 0.5  # drawn on, not covered
    text = report.read_text()
    assert "http" not in text
    assert not re.search(r"<(link|script|iframe)", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert len(sources) == len(names)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    for part in (
        "A &lt;title&gt;",
        "genie_lmmse",
        "peb_sync",
        "seed: 3",
        "python evaluate.py",
        torch.__version__,
        "checkpoint",
    ):
        assert part in text, part


def test_one_snr_has_a_figure_of_the_channel_error(simulator: Simulator, tmp_path: Path) -> None:
    estimators = {"classical": TruthPlus(), "genie_lmmse": GenieLmmse()}
    single = run_sweep(simulator, estimators, {}, [10.0], SCENES, progress=False)
    save_figures([single], tmp_path)
    assert {"nmse_cdf", "error_cdf"} <= {path.stem for path in tmp_path.iterdir()}
    (axes,) = nmse_cdf(single).axes
    drawn = {line.get_label(): line for line in axes.lines}
    assert drawn.keys() == {"classical", "genie_lmmse"}
    for name, line in drawn.items():
        nmse = single.scores[name]["channel_nmse_db"][0]
        x, share = line.get_data()
        for value in nmse:  # the curve reaches, at every scene's error, the share of scenes not above it
            assert share[x <= value].max() == pytest.approx((nmse <= value).mean())


def test_an_estimator_that_never_trusts_itself_is_in_the_figure_of_its_covariance(simulator: Simulator) -> None:
    class Doubting(TruthPlus):
        def __call__(self, observation, deployment, paths=None, truth=None) -> Estimate:
            estimate = super().__call__(observation, deployment, paths, truth)
            return estimate._replace(flags=torch.full_like(estimate.flags, int(Flag.POOR_FIT)))

    result = run_sweep(simulator, {"classical": TruthPlus(), "paper": Doubting()}, {}, SNR, SCENES, progress=False)
    figure = calibration(result)
    for axes in figure.axes[1:]:
        assert {"classical", "paper"} <= {line.get_label() for line in axes.lines}
    dashes = {line.get_label(): line.get_linestyle() for line in figure.axes[2].lines}
    assert (dashes["classical"], dashes["paper"]) == ("-", "--")


def test_every_estimator_keeps_its_own_colour() -> None:
    names = ["classical", "unfolded_untrained", "mine", "classical_tuned"]
    looks = [marks(name, names) for name in names]
    assert looks[:2] == [PALETTE["classical"], PALETTE["unfolded"]]
    assert len(set(looks)) == len(names)
    assert marks("unfolded_untrained", ["unfolded", "unfolded_untrained"]) != PALETTE["unfolded"]


def test_printed_table_fits_every_number(result: SweepResult) -> None:
    stream = io.StringIO()
    print_summary(result, Console(file=stream, width=40))
    text = stream.getvalue()
    assert "…" not in text
    for part in ("classical", "peb_sync", "0.0500", "converged [%]", "20 dB"):
        assert part in text, part


def test_nothing_half_written_is_left(result: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results([result], tmp_path / "results.csv")
    before = (tmp_path / "results.csv").read_bytes()

    def breaks(*arguments: object, **options: object) -> None:
        arguments[0].write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr("sensing.evaluation.tables.np.savez", breaks)
    with pytest.raises(OSError, match="disk full"):
        write_per_scene([result], tmp_path / "per_scene.npz")
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_results([result], tmp_path / "results.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_file_with_truth_is_scored_and_estimators_without_their_truth_are_left_out(
    simulator: Simulator, tmp_path: Path
) -> None:
    path = tmp_path / "scenes.h5"
    export_scenes(simulator, path, "test", range(SCENES), 20.0)
    estimators = {"classical": TruthPlus(), "genie_lmmse": GenieLmmse()}
    found = evaluate_file(path, estimators, {}, tmp_path / "run", batch_size=2, progress=False)
    assert found.snr_db == [pytest.approx(20.0, abs=0.06)]
    assert list(found.left_out) == ["genie_lmmse"]
    assert "gains" in found.left_out["genie_lmmse"]
    assert not found.bounds
    values = read(tmp_path / "run" / "results.csv")
    errors = {row["statistic"]: float(row["value"]) for row in values if row["metric"] == "ue_error_m"}
    assert errors == pytest.approx({"median": 0.05, "rms": 0.05, "p90": 0.05, "mean": 0.05})
    assert {row["seed"] for row in values} == {""}
    assert {row["estimator"] for row in values} == {"classical"}
    assert "ue_error_over_peb" not in {row["metric"] for row in values}
    estimates = read(tmp_path / "run" / "estimates.csv")
    scene = simulator.scenes("test", range(SCENES))
    for i, row in enumerate(estimates):
        assert float(row["ue_x_m"]) == pytest.approx(float(scene.ue_position[i, 0]) + 0.03)
        assert float(row["clock_offset_s_0"]) == pytest.approx(float(scene.clock_offset[i, 0]) + 2e-9)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<strong>genie_lmmse</strong> was left out" in report
    assert {path.stem for path in (tmp_path / "run" / "figures").iterdir()} == {
        *("coverage", "error_cdf", "nmse_cdf", "flagged_cdf", "scene_map")
    }


def test_a_half_of_a_file_has_the_results_of_its_scenes(simulator: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "scenes.h5"
    export_scenes(simulator, path, "test", range(SCENES), 20.0)

    def run(half: str | None) -> SweepResult:
        folder = tmp_path / str(half)
        return evaluate_file(path, {"a": TruthPlus()}, {}, folder, batch_size=2, progress=False, half=half)

    whole, odd = run(None), run("odd")
    assert (half_of(SCENES, "even"), odd.scenes) == ([0, 2, 4], [1, 3])
    for quantity in ("channel_nmse_db", "gospa_m", "nees_common"):
        wanted = whole.scores["a"][quantity][:, odd.scenes]
        np.testing.assert_allclose(odd.scores["a"][quantity], wanted, rtol=1e-9)
    assert [row["scene"] for row in read(tmp_path / "odd" / "estimates.csv")] == ["1", "3"]
    assert "odd scenes" in (tmp_path / "odd" / "report.html").read_text()
    with pytest.raises(ConfigError, match="half must be one of"):
        run("left")


def test_a_file_without_truth_gets_estimates_and_a_report(simulator: Simulator, tmp_path: Path) -> None:
    example = simulator.examples("test", range(3), 20.0)
    path = tmp_path / "measured.h5"
    write_observations(path, simulator.deployment, example.observation)

    def fixed(observation, deployment, paths=None, truth=None) -> Estimate:
        assert truth is None
        count = len(observation.y)
        user = torch.full((count, 3), 7.0, dtype=torch.float64)
        return Estimate(observation.y, user, flags=torch.ones(count, dtype=torch.int64))

    estimators = {"fixed": fixed, "ideal_sync": IdealSync(fixed)}
    found = evaluate_file(path, estimators, {}, tmp_path / "run", batch_size=2, progress=False)
    assert list(found.left_out) == ["ideal_sync"]
    assert found.snr_db == [None]
    estimates = read(tmp_path / "run" / "estimates.csv")
    assert [row["ue_y_m"] for row in estimates] == ["7.0"] * 3
    assert [row["flagged"] for row in estimates] == ["1"] * 3
    metrics = {row["metric"]: row for row in read(tmp_path / "run" / "results.csv")}
    assert set(metrics) == {"time_s", "flagged_fraction"}
    assert metrics["flagged_fraction"]["snr_db"] == ""
    assert "ideal_sync" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(ConfigError, match="no estimator applies"):
        evaluate_file(path, {"ideal_sync": IdealSync(fixed)}, {}, tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


def test_an_unreadable_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(FileFormatError):
        evaluate_file(tmp_path / "broken.h5", {"a": TruthPlus()}, {}, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_batches_with_different_numbers_of_hypotheses_are_joined() -> None:
    def batch(scenes: int, nodes: int) -> Estimate:
        return Estimate(
            torch.zeros(scenes, 2, 3, 4) + 0j,
            scatterer_position=torch.ones(scenes, nodes, 3),
            scatterer_covariance=torch.ones(scenes, nodes, 3, 3),
            scatterer_mask=torch.ones(scenes, nodes, dtype=torch.bool),
            support=torch.ones(scenes, 2, nodes),
        )

    joined = concatenate([batch(2, 3), batch(1, 5)])
    assert joined.scatterer_mask.sum(1).tolist() == [3, 3, 5]
    assert joined.support.sum((1, 2)).tolist() == [6, 6, 10]
    assert joined.scatterer_position.isnan().sum((1, 2)).tolist() == [6, 6, 0]
    assert joined.scatterer_covariance.shape == (3, 5, 3, 3)
    assert joined.ue_position is None
