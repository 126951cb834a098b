"""Estimators on an observation file, scored where the file tells the truth."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensing.baselines import Detector
from sensing.containers import Deployment, Estimate, Example, map_tensors, to_device
from sensing.data.estimates_file import write_estimates
from sensing.data.reader import read_observations
from sensing.errors import ConfigError
from sensing.evaluation.output import write_evaluation
from sensing.evaluation.result import SceneSketch, ScoreTable, SweepResult, sketch_scene
from sensing.evaluation.runner import Runner
from sensing.evaluation.scores import bound_scores, score
from sensing.evaluation.sweep import progress_bar

HALVES = {None: slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}
NODE_AXIS = {"scatterer_position": -2, "scatterer_covariance": -3, "scatterer_mask": -1, "support": -1, "gain": -1}


def evaluate_file(
    path: str | Path,
    estimators: Mapping[str, Any],
    front_ends: Mapping[str, Detector],
    folder: str | Path,
    batch_size: int = 25,
    progress: bool = True,
    device: torch.device | str = "cpu",
    title: str = "",
    config: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
    noise: str = "known",
    half: str | None = None,
) -> SweepResult:
    """Run estimators on the scenes of a file; write estimates.csv, estimates.npz and, as for a sweep, the scores.

    Args:
        path: observation file.
        estimators: estimator by name; one that needs a truth which the file does not hold is left out.
        front_ends: detector by name (see `Runner`); empty: each estimator runs its own.
        folder: run folder, made if absent.
        batch_size: scenes per call.
        progress: show a progress bar.
        device: where estimators run.
        title: heading of the report.
        config: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.
        noise: the estimators' noise variance, `known` (from the file) or `estimated`.
        half: `even` or `odd` scenes alone, so that settings can be chosen on one half and reported on the other.

    Returns:
        Errors per scene, where the file has the truth.

    Raises:
        FileFormatError: the file cannot be read or breaks the schema.
        ConfigError: no estimator is given, none applies to the file, the half has no scene, or the file tells no noise
            variance that is to be known.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    file = read_observations(path)
    if noise == "known" and bool(file.observation.noise_var.isnan().any()):
        raise ConfigError(f"noise must be estimated (noise=estimated), because {path} has no noise_var, got {noise!r}")
    deployment = to_device(file.deployment, device)
    example = Example(file.observation) if file.truth is None else file.truth._replace(observation=file.observation)
    scenes = half_of(len(file.observation.y), half)
    example = _pick(example, torch.tensor(scenes))
    runner = Runner(estimators, front_ends, deployment, noise)
    count = len(scenes)
    found, bounds = ScoreTable(1, count), ScoreTable(1, count)
    parts: dict[str, list[Estimate]] = {}
    snr = file_snr_db(example)
    sketch: SceneSketch | None = None
    with progress_bar(progress) as bar:
        task = bar.add_task("evaluating", total=count)
        for first in range(0, count, batch_size):
            columns = slice(first, min(first + batch_size, count))
            batch = to_device(_pick(example, columns), device)
            for name, values in bound_scores(batch, deployment).items():
                bounds.put(name, 0, columns, values)
            results = runner(batch)
            scores = {name: score(each.estimate, batch, deployment) for name, each in results.items()}
            for name, each in results.items():
                found.put(name, 0, columns, scores[name] | {"time_s": each.seconds})
                parts.setdefault(name, []).append(to_device(each.estimate, "cpu"))
            if first == 0:
                estimates = {name: each.estimate for name, each in results.items()}
                errors = {name: each["ue_error_m"] for name, each in scores.items() if "ue_error_m" in each}
                sketch = sketch_scene(deployment, batch, estimates, errors, scenes[columns], snr)
            bar.advance(task, columns.stop - columns.start)
    if not parts:
        raise ConfigError(f"no estimator applies to {path}: {'; '.join(runner.left_out.values())}")
    write_estimates(folder, file.deployment, {name: concatenate(each) for name, each in parts.items()}, scenes)
    result = SweepResult(
        snr_db=[snr],
        scenes=scenes,
        scores=found.values,
        bounds=bounds.values,
        reference={name: getattr(each, "bound", "peb") for name, each in runner.estimators.items()},
        left_out=runner.left_out,
        split=Path(path).name + (f", {half} scenes" if half else ""),
        sigma_over_bandwidth=float(file.deployment.clock_offset_std * file.deployment.bandwidth),
        num_stations=len(file.deployment.bs_position),
        sketch=sketch,
    )
    facts = {"file": str(path), "source": file.source} | _observation_facts(file.deployment)
    write_evaluation(
        result, folder, title or f"Evaluation of {Path(path).name}", config, command, facts | dict(notes or {})
    )
    return result


def half_of(count: int, half: str | None) -> list[int]:
    """Numbers of all scenes, or of the `even` or `odd` ones; raises ConfigError where there is none."""
    if half not in HALVES:
        raise ConfigError(f"half must be one of {list(HALVES)}, got {half!r}")
    scenes = list(range(count))[HALVES[half]]
    if not scenes:
        raise ConfigError(f"half must leave a scene, got {half!r} of a file with {count}")
    return scenes


def file_snr_db(example: Example) -> float | None:
    """Median over scenes of received power over noise power, to 0.1 dB; None without the noise-free channel."""
    if example.channel is None:
        return None
    power = example.channel.abs().square().mean((-3, -2, -1))
    ratio = float((power / example.observation.noise_var.mean(-1)).median())
    return round(10.0 * math.log10(ratio), 1) if ratio > 0 else None


def concatenate(estimates: list[Estimate]) -> Estimate:
    """Batches of estimates as one; the number of scatterer hypotheses may differ from batch to batch.

    Padding is masked: position and covariance NaN, mask false, support and gain zero.
    """
    fields: dict[str, Tensor | None] = {}
    for name in Estimate._fields:
        tensors = [getattr(estimate, name) for estimate in estimates]
        if any(tensor is None for tensor in tensors):
            fields[name] = None
            continue
        if name in NODE_AXIS:
            axis = NODE_AXIS[name]
            size = max(tensor.shape[axis] for tensor in tensors)
            tensors = [_pad(tensor, axis, size, math.nan if name.startswith("scatterer_") else 0) for tensor in tensors]
        fields[name] = torch.cat(tensors)
    return Estimate(**fields)  # type: ignore[arg-type]


def _pick(example: Example, scenes: slice | Tensor) -> Example:
    return map_tensors(example, lambda tensor: tensor[scenes])


def _pad(tensor: Tensor, axis: int, size: int, value: float) -> Tensor:
    shape = list(tensor.shape)
    shape[axis] = size - shape[axis]
    filler = False if tensor.dtype == torch.bool else value
    return torch.cat([tensor, torch.full(shape, filler, dtype=tensor.dtype, device=tensor.device)], axis)


def _observation_facts(deployment: Deployment) -> dict[str, str]:
    """What the observation can resolve, for the report."""
    return {
        "stations": f"{len(deployment.bs_position)}, {len(deployment.antenna_local)} antennas each",
        "pilots": f"{len(deployment.pilot_freq)} over {float(deployment.bandwidth) / 1e6:.4g} MHz, "
        f"path lengths modulo {float(deployment.range_ambiguity):.4g} m",
        "clock offset prior": f"{1e9 * float(deployment.clock_offset_std):.4g} ns standard deviation",
    }
