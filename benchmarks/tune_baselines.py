"""Chooses the settings of the baselines on validation scenes: `python -m benchmarks.tune_baselines [estimator ...]`.

Every baseline runs with a few settings on the first scenes of the split `val` of hall_hard (seed 0), the split on which
the learned estimator is chosen too, at three SNRs. The setting with the smallest loss, mean over the SNRs, is chosen;
the YAML files in conf/ hold the result, docs/baselines.md the table. The loss is the mean NMSE in dB above genie LMMSE;
for ideal_sync, whose point is its location, the user error over its bound in dB, mean too. References are shown beside
and not chosen: they are not what the baseline's name promises.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.hall import hall
from sensing.baselines import CloudGrid, GenieLmmse, GridOmp, GridSbl, IdealSync, PathLs, RegionGrid
from sensing.coarse import CoarseLocalizer, MusicDetector, PathDetector
from sensing.coarse.localization import CoarseLocation
from sensing.containers import Deployment, Example, PathEstimates
from sensing.estimator import build_estimator
from sensing.evaluation.scores import bound_scores
from sensing.metrics import nmse_db, position_error

Settings = dict[str, Any]


class Trial(NamedTuple):
    """One setting of a baseline; a reference is shown and never chosen."""

    settings: Settings
    reference: bool = False


class Scenes(NamedTuple):
    """Validation scenes at one SNR, with what several baselines share."""

    example: Example
    paths: PathEstimates
    coarse: CoarseLocation
    deployment: Deployment


def nomp_ls(scenes: Scenes, **settings: Any) -> Any:
    """Path-wise least squares after the shared front end."""
    return PathLs(PathDetector(**settings))(scenes.example.observation, scenes.deployment)


def music_ls(scenes: Scenes, **settings: Any) -> Any:
    """Path-wise least squares after MUSIC."""
    return PathLs(MusicDetector(**settings))(scenes.example.observation, scenes.deployment)


def omp(scenes: Scenes, grid: Settings, **settings: Any) -> Any:
    """OMP on the location grid, the coarse stage being the same for all settings."""
    points = RegionGrid(**grid) if "spacing_m" in grid else CloudGrid(**grid)
    estimator = GridOmp(localizer=lambda paths, deployment: scenes.coarse, grid=points, **settings)
    return estimator(scenes.example.observation, scenes.deployment, scenes.paths)


def em_sbl(scenes: Scenes, grid: Settings, iterations: int = 100, **settings: Any) -> Any:
    """Sparse Bayesian learning on the location grid."""
    coarse, points = (lambda paths, deployment: scenes.coarse), CloudGrid(**grid)
    estimator = GridSbl(localizer=coarse, grid=points, iterations=iterations, **settings)
    return estimator(scenes.example.observation, scenes.deployment, scenes.paths)


def ideal_sync(scenes: Scenes, **settings: Any) -> Any:
    """The classical estimator with known clock offsets."""
    known = IdealSync(build_estimator(), **settings)
    return known(scenes.example.observation, scenes.deployment, scenes.paths, scenes.example)


ESTIMATORS: dict[str, tuple[Callable[..., Any], list[Trial]]] = {
    "nomp_ls": (nomp_ls, [Trial({"false_alarm": value}) for value in (1e-1, 5e-2, 1e-2, 1e-3)]),
    "music_ls": (
        music_ls,
        [
            *(Trial({"window": window, "order": "mdl"}) for window in ((16, 4, 4), (24, 4, 4), (24, 5, 5), (32, 5, 5))),
            *(Trial({"window": window, "order": "aic"}) for window in ((24, 4, 4), (24, 5, 5))),
        ],
    ),
    "omp": (
        omp,
        [
            *(
                Trial({"grid": {"extent_m": extent, "steps": steps}, "peak": peak})
                for extent, steps in ((0.3, 1), (1.0, 1), (1.0, 2))
                for peak in (3.0, 5.0, 8.0)
            ),
            Trial({"grid": {"extent_m": 1.0, "steps": 1}, "peak": 5.0, "rule": "ols"}, reference=True),
            Trial({"grid": {"extent_m": 1.0, "steps": 0}, "peak": 5.0}, reference=True),
            Trial({"grid": {"spacing_m": 2.0}, "peak": 5.0, "max_atoms": 48}, reference=True),
        ],
    ),
    "em_sbl": (
        em_sbl,
        [
            *(
                Trial({"grid": {"extent_m": extent, "steps": 1}, "update": "em", "sparsity": sparsity})
                for extent, sparsity in ((0.3, 0.0), (0.3, 1.0), (1.0, 1.0), (1.0, 2.0))
            ),
            Trial({"grid": {"extent_m": 1.0, "steps": 1}, "update": "em", "iterations": 30}),
            Trial({"grid": {"extent_m": 1.0, "steps": 1}, "update": "em", "shared": True}),
            Trial({"grid": {"extent_m": 1.0, "steps": 1}, "update": "mackay"}),
            Trial({"grid": {"extent_m": 1.0, "steps": 1}, "update": "convex"}),
            Trial({"grid": {"extent_m": 1.0, "steps": 1}, "update": "convex", "sparsity": 0.0}),
            Trial({"grid": {"extent_m": 1.0, "steps": 0}, "update": "em"}, reference=True),
        ],
    ),
    "ideal_sync": (ideal_sync, [Trial({"residual": value}) for value in (1e-3, 1e-4, 1e-5)]),
}


def validation(count: int, snr_db: list[float]) -> Iterator[Scenes]:
    """The scenes at every SNR, with the default front end and coarse stage."""
    simulator = hall()
    for snr in snr_db:
        example = simulator.examples("val", range(count), snr)
        paths = PathDetector()(example.observation, simulator.deployment)
        yield Scenes(example, paths, CoarseLocalizer()(paths, simulator.deployment), simulator.deployment)


def loss_db(name: str, estimate: Any, scenes: Scenes) -> float:
    """See the module's docstring."""
    example = scenes.example
    assert example.scene is not None
    assert example.channel is not None
    if name == "ideal_sync":
        error = position_error(estimate.ue_position, example.scene.ue_position)
        bound = bound_scores(example, scenes.deployment)["peb_sync"]["ue_error_m"]
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
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 10.0, 20.0])
    args = parser.parse_args()
    if unknown := sorted(set(args.estimators) - set(ESTIMATORS)):
        parser.error(f"estimators must be of {', '.join(ESTIMATORS)}, got {', '.join(unknown)}")
    torch.set_num_threads(1)
    levels = list(validation(args.scenes, args.snr))
    print(f"loss [dB] on scenes 0 to {args.scenes - 1} of split val, hall_hard, seed 0")
    print("| estimator | settings | " + " | ".join(f"{snr:g} dB" for snr in args.snr) + " | mean | ms/scene |")
    print("|---" * (len(args.snr) + 4) + "|")
    for name in args.estimators or ESTIMATORS:
        function, trials = ESTIMATORS[name]
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
        print(f"| **{name}** | **{spelled(chosen)}** |" + " |" * len(args.snr) + f" {best:.2f} | |", flush=True)


if __name__ == "__main__":
    main()
