"""Chooses the settings of the baselines on validation scenes: `python -m benchmarks.tune_baselines [estimator ...]`.

Every baseline runs with a few settings on the first scenes of the split `val` (seed 0), the split on which the learned
estimator is chosen too, of two scenes of different resolution (hall_hard, 2.4 m; urban, 9.8 m) at three SNRs. The
setting with the smallest loss, mean over scenes and SNRs, is chosen; the YAML files in conf/ hold the result,
docs/baselines.md the table. Lengths are in units of the resolution or of the region: one setting can serve both.

The loss is the mean NMSE in dB above genie LMMSE; for `paper` and `ideal_sync`, whose point is their location, the user
error over its bound in dB, mean too. References are shown beside and not chosen: they are not what the baseline's name
promises. What is decided elsewhere is shown, with the reason, and not chosen either.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir

from sensing.about import TUNED_ON
from sensing.baselines import CloudGrid, GenieLmmse, GridOmp, GridSbl, IdealSync, PathLs, RegionGrid
from sensing.cli import conf_dir
from sensing.coarse import CoarseLocalizer, MusicDetector, PathDetector
from sensing.coarse.localization import CoarseLocation
from sensing.coarse.pairs import region_box
from sensing.coarse.paper import PaperLocalizer
from sensing.containers import Deployment, Example, PathEstimates
from sensing.estimator import build_estimator
from sensing.evaluation.scores import bound_scores
from sensing.metrics import nmse_db, position_error
from sensing.paper_estimator import PaperEstimator
from sensing.runs import build_simulator
from sensing.simulation import Simulator

Settings = dict[str, Any]
LOCATED = {"paper": "peb", "ideal_sync": "peb_sync"}
"""Baselines that are judged by their location, and the bound of it."""


class Trial(NamedTuple):
    """One setting of a baseline; a reference is shown and never chosen."""

    settings: Settings
    reference: bool = False


class Baseline(NamedTuple):
    """How a baseline runs and what is tried."""

    run: Callable[..., Any]
    trials: list[Trial]
    decided: str = ""  # why its setting is not chosen here


class Scenes(NamedTuple):
    """Validation scenes at one SNR, with what several baselines share."""

    label: str
    example: Example
    paths: PathEstimates
    music: PathEstimates
    coarse: CoarseLocation
    deployment: Deployment


def nomp_ls(scenes: Scenes, **settings: Any) -> Any:
    """Path-wise least squares after the shared front end."""
    return PathLs(PathDetector(**settings))(scenes.example.observation, scenes.deployment)


def music_ls(scenes: Scenes, **settings: Any) -> Any:
    """Path-wise least squares after MUSIC."""
    return PathLs(MusicDetector(**settings))(scenes.example.observation, scenes.deployment)


def omp(scenes: Scenes, grid: Settings, **settings: Any) -> Any:
    """OMP or OLS on the location grid, the coarse stage being the same for all settings."""
    points = RegionGrid(**grid) if "spacing_m" in grid else CloudGrid(**grid)
    estimator = GridOmp(localizer=lambda paths, deployment: scenes.coarse, grid=points, **settings)
    return estimator(scenes.example.observation, scenes.deployment, scenes.paths)


def em_sbl(scenes: Scenes, grid: Settings, **settings: Any) -> Any:
    """Sparse Bayesian learning on the location grid."""
    coarse, points = (lambda paths, deployment: scenes.coarse), CloudGrid(**grid)
    estimator = GridSbl(localizer=coarse, grid=points, **settings)
    return estimator(scenes.example.observation, scenes.deployment, scenes.paths)


def paper(scenes: Scenes, threshold: float, **settings: Any) -> Any:
    """Paper 1; the threshold is a share of the region's diagonal."""
    low, high = region_box(scenes.deployment)
    localizer = PaperLocalizer(threshold_m=threshold * float((high - low).norm()), **settings)
    return PaperEstimator(localizer=localizer)(scenes.example.observation, scenes.deployment, scenes.music)


def ideal_sync(scenes: Scenes, **settings: Any) -> Any:
    """The classical estimator with known clock offsets."""
    known = IdealSync(build_estimator(), **settings)
    return known(scenes.example.observation, scenes.deployment, scenes.paths, scenes.example)


def pursuits(rule: str) -> list[Trial]:
    """Settings of `omp` and `ols`."""
    grids = [(extent, 1) for extent in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)] + [(0.8, 2)]
    return [
        *(
            Trial({"grid": {"extent": extent, "steps": steps}, "peak": peak, "rule": rule})
            for extent, steps in grids
            for peak in (3.0, 5.0, 8.0, 12.0)
        ),
        Trial({"grid": {"extent": 0.4, "steps": 0}, "peak": 5.0, "rule": rule}, reference=True),
    ]


def clouds(extent: float = 0.4, steps: int = 1, reference: bool = False, **settings: Any) -> Trial:
    """A setting of `em_sbl`."""
    return Trial({"grid": {"extent": extent, "steps": steps}, **settings}, reference)


ESTIMATORS: dict[str, Baseline] = {
    "nomp_ls": Baseline(
        nomp_ls,
        [Trial({"false_alarm": value}) for value in (1e-1, 5e-2, 1e-2, 1e-3)],
        "the front end is that of classical, chosen for its association",
    ),
    "music_ls": Baseline(
        music_ls,
        [
            *(Trial({"window": window, "order": "mdl"}) for window in ((16, 4, 4), (24, 4, 4), (24, 5, 5), (32, 5, 5))),
            *(Trial({"window": window, "order": "aic"}) for window in ((24, 4, 4), (24, 5, 5))),
        ],
    ),
    "omp": Baseline(
        omp,
        [
            *pursuits("omp"),
            Trial({"grid": {"spacing_m": 4.0}, "peak": 5.0, "max_atoms": 48}, reference=True),
        ],
    ),
    "ols": Baseline(omp, pursuits("ols")),
    "em_sbl": Baseline(
        em_sbl,
        [
            *(clouds(extent=extent, update="em", sparsity=1.0) for extent in (0.2, 0.4, 0.8, 1.6, 3.2)),
            clouds(extent=1.6, update="em", sparsity=0.0),
            clouds(extent=1.6, update="em", sparsity=2.0),
            clouds(extent=1.6, update="em", iterations=100),
            clouds(extent=1.6, update="em", shared=True),
            clouds(extent=1.6, update="mackay"),
            clouds(extent=1.6, update="convex"),
            clouds(steps=0, update="em", reference=True),
        ],
    ),
    "paper": Baseline(
        paper,
        [
            Trial({"threshold": threshold, "min_views": views})
            for views in (3, 2)
            for threshold in (0.005, 0.0075, 0.01, 0.015)
        ],
    ),
    "ideal_sync": Baseline(
        ideal_sync,
        [Trial({"residual": value}) for value in (1e-3, 1e-4, 1e-5)],
        "the residual is part of what the name means",
    ),
}


def simulator(scene: str) -> Simulator:
    """The scenes of a configuration, seed 0."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return build_simulator(compose("evaluate", [f"scene={scene}", "seed=0", "output_dir=."]))


def validation(count: int, snr_db: Sequence[float], scene: str) -> Iterator[Scenes]:
    """The scenes at every SNR, with the default front ends and coarse stage."""
    drawn = simulator(scene)
    for snr in snr_db:
        example, deployment = drawn.examples("val", range(count), snr), drawn.deployment
        paths, music = (front(example.observation, deployment) for front in (PathDetector(), MusicDetector()))
        yield Scenes(f"{scene} {snr:g} dB", example, paths, music, CoarseLocalizer()(paths, deployment), deployment)


def loss_db(name: str, estimate: Any, scenes: Scenes) -> float:
    """See the module's docstring."""
    example = scenes.example
    assert example.scene is not None
    assert example.channel is not None
    if name in LOCATED:
        error = position_error(estimate.ue_position, example.scene.ue_position)
        bound = bound_scores(example, scenes.deployment)[LOCATED[name]]["ue_error_m"]
        return float(20.0 * (error / bound).log10().mean())
    genie = GenieLmmse()(example.observation, scenes.deployment, truth=example)
    return float((nmse_db(estimate.channel, example.channel) - nmse_db(genie.channel, example.channel)).mean())


def spelled(settings: Settings) -> str:
    """Settings as they stand on a command line."""
    parts = []
    for key, value in settings.items():
        inner = [(f"{key}.{sub}", each) for sub, each in value.items()] if isinstance(value, dict) else [(key, value)]
        parts += [f"{each}={str(number).replace(' ', '')}" for each, number in inner]
    return " ".join(parts)


@torch.no_grad()
def main() -> None:
    """Print one row per setting, and the chosen ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("estimators", nargs="*", help=f"of {', '.join(ESTIMATORS)}; all by default")
    parser.add_argument("--scene", nargs="+", default=list(TUNED_ON), help="of conf/scene")
    parser.add_argument("--scenes", type=int, default=24, help="number of scenes of each")
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 10.0, 20.0])
    args = parser.parse_args()
    if unknown := sorted(set(args.estimators) - set(ESTIMATORS)):
        parser.error(f"estimators must be of {', '.join(ESTIMATORS)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    levels = [each for scene in args.scene for each in validation(args.scenes, args.snr, scene)]
    print(f"loss [dB] on scenes 0 to {args.scenes - 1} of split val, seed 0")
    print("| estimator | settings | " + " | ".join(each.label for each in levels) + " | mean | ms/scene |")
    print("|---" * (len(levels) + 4) + "|")
    for name in args.estimators or ESTIMATORS:
        function, trials, decided = ESTIMATORS[name]
        best, chosen = float("inf"), trials[0].settings
        for settings, reference in trials:
            begin = time.process_time()
            losses = [loss_db(name, function(scenes, **settings), scenes) for scenes in levels]
            milliseconds = 1e3 * (time.process_time() - begin) / (args.scenes * len(levels))
            mean = sum(losses) / len(losses)
            if mean < best and not reference:
                best, chosen = mean, settings
            cells = " | ".join(f"{loss:.2f}" for loss in [*losses, mean])
            label = f"{spelled(settings)}{' (reference)' if reference else ''}"
            print(f"| {name} | {label} | {cells} | {milliseconds:.0f} |", flush=True)
        verdict = (decided, "") if decided else (spelled(chosen), f"{best:.2f}")
        print(f"| **{name}** | **{verdict[0]}** |" + " |" * len(levels) + f" {verdict[1]} | |", flush=True)


if __name__ == "__main__":
    main()
