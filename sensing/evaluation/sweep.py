"""Estimators over SNR, on the same scenes and the same noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sensing.baselines import Detector
from sensing.containers import to_device
from sensing.errors import ConfigError
from sensing.evaluation.result import SceneSketch, ScoreTable, SweepResult, sketch_scene
from sensing.evaluation.runner import Runner
from sensing.evaluation.scores import CUTOFF_M, bound_scores, score
from sensing.simulation import Simulator
from sensing.simulation.sampler import unit_noise

MAP_SNR_DB = 10.0


def run_sweep(
    simulator: Simulator,
    estimators: Mapping[str, Any],
    front_ends: Mapping[str, Detector],
    snr_db: Sequence[float],
    num_scenes: int,
    split: str = "test",
    batch_size: int = 25,
    progress: bool = True,
    device: torch.device | str = "cpu",
    map_scene: int | None = None,
    cutoff_m: float = CUTOFF_M,
    noise: str = "known",
) -> SweepResult:
    """Run estimators on scenes 0 to num_scenes - 1 of a split at every SNR.

    Scene, channel and unit noise are drawn once per batch and serve all SNR points and all estimators; each front
    end runs once per batch and SNR, and its time is part of the time of every estimator that uses its paths.

    Args:
        simulator: deployment, law of the scenes and seed.
        estimators: estimator (`sensing.estimator`) by the name in the tables.
        front_ends: detector by name (see `Runner`); empty: each estimator runs its own.
        snr_db: SNR points [dB].
        num_scenes: scenes per point.
        split: train, val, test or sample.
        batch_size: scenes per call.
        progress: show a progress bar.
        device: where scenes are synthesised and estimators run.
        map_scene: scene of the first batch that is drawn as a map; None: a typical one.
        cutoff_m: distance at which a scatterer counts as missed [m].
        noise: the estimators' noise variance, `known` or `estimated`.

    Returns:
        Errors and bounds per scene.

    Raises:
        ConfigError: no estimator, no SNR, a duplicate SNR, or no scene.
    """
    points = [float(value) for value in snr_db]
    if not points or len(set(points)) != len(points) or not torch.isfinite(torch.tensor(points)).all():
        raise ConfigError(f"snr_db must hold distinct, finite values, got {points}")
    if num_scenes < 1 or batch_size < 1:
        raise ConfigError(f"num_scenes and batch_size must be at least 1, got {num_scenes} and {batch_size}")
    deployment = to_device(simulator.deployment, device)
    runner = Runner(estimators, front_ends, deployment, noise)
    found, bounds = ScoreTable(len(points), num_scenes), ScoreTable(len(points), num_scenes)
    map_row = min(range(len(points)), key=lambda row: abs(points[row] - MAP_SNR_DB))
    sketch: SceneSketch | None = None
    with progress_bar(progress) as bar:
        task = bar.add_task("evaluating", total=num_scenes * len(points))
        for first in range(0, num_scenes, batch_size):
            indices = range(first, min(first + batch_size, num_scenes))
            columns = slice(indices.start, indices.stop)
            drawn = simulator.examples(split, indices, points[0], device)
            assert drawn.scene is not None
            assert drawn.channel is not None
            unit = unit_noise(drawn.channel.shape[1:], simulator.seed, split, indices).to(device)
            for row, snr in enumerate(points):
                bar.update(task, description=f"evaluating at {snr:g} dB")
                example = simulator.observe(drawn.scene, drawn.channel, unit, snr)
                for name, values in bound_scores(example, deployment).items():
                    bounds.put(name, row, columns, values)
                results = runner(example)
                scores = {name: score(each.estimate, example, deployment, cutoff_m) for name, each in results.items()}
                for name, each in results.items():
                    found.put(name, row, columns, scores[name] | {"time_s": each.seconds})
                if first == 0 and row == map_row:
                    estimates = {name: each.estimate for name, each in results.items()}
                    errors = {name: each["ue_error_m"] for name, each in scores.items() if "ue_error_m" in each}
                    sketch = sketch_scene(deployment, example, estimates, errors, indices, snr, map_scene)
                bar.advance(task, len(indices))
    return SweepResult(
        snr_db=list(points),
        scenes=list(range(num_scenes)),
        scores=found.values,
        bounds=bounds.values,
        reference={name: getattr(each, "bound", "peb") for name, each in runner.estimators.items()},
        left_out=runner.left_out,
        seed=simulator.seed,
        split=split,
        sigma_over_bandwidth=float(deployment.clock_offset_std * deployment.bandwidth),
        num_stations=len(deployment.bs_position),
        cutoff_m=cutoff_m,
        sketch=sketch,
    )


def progress_bar(show: bool, unit: str = "scenes") -> Progress:
    """A progress bar with the time left, counting units, on the error stream so that the output stays clean."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show,
    )
