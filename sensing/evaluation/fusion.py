"""Task `fusion`: errors of fused positions over random drops, method against method, with the Bayes limit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensing.errors import ConfigError
from sensing.evaluation.fusion_output import write_fusion
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.fusion.bayes import Law, check_cells
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.measurements import MODALITIES, StationMeasurements
from sensing.fusion.methods import LEARNED, Fused, Pooling, check_methods, fuse, solve
from sensing.fusion.rules import equal_weights, fixed_range_weight
from sensing.simulation.drops import Drops, DropSampler

FACTORS = tuple(float(f) for f in np.geomspace(1e-3, 3.0, 15))
"""Range weights, relative to those of angles, among which `fixed_range_weight` is chosen."""


class Case(NamedTuple):
    """Drops fused in one way: a modality and a set of stations."""

    modality: str
    stations: tuple[int, ...]


class FusionErrors(NamedTuple):
    """Errors of one case."""

    case: Case
    error_m: dict[str, NDArray[np.float64]]  # method to [drop]
    weight: dict[str, NDArray[np.float64]]  # method to [drop member], where it has weights
    flags: dict[str, NDArray[np.int64]]  # method to [drop] bits of `FusionFlag`, of pools
    range_factor: float  # chosen on validation drops


def fusion(
    build: Build,
    folder: str | Path,
    sampler: DropSampler,
    methods: Sequence[str] = ("equal", "optimal", "bayes"),
    modalities: Sequence[str] = MODALITIES,
    stations: Sequence[Sequence[int]] = ((0, 1, 2),),
    num_drops: int = 2000,
    num_samples: int = 10_000,
    proposal: str = "pool",
    refine: bool = False,
    tuning_drops: int = 500,
    batch_size: int = 128,
    seed: int = 0,
    checkpoints: Mapping[str, str | None] | None = None,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[FusionErrors]:
    """Run all cases; write fusion.csv, results.csv, errors.npz, the figures and report.html.

    Args:
        build: reads checkpoints.
        folder: run folder, made if absent.
        sampler: law of the drops.
        methods: out of `sensing.fusion.methods.METHODS`.
        modalities: out of `toa`, `aoa`, `hybrid`.
        stations: sets of stations, by number.
        num_drops: drops of the split `test`.
        num_samples: samples of the pool.
        proposal: `pool` or `uniform`.
        refine: Gauss-Newton steps from the best sample on.
        tuning_drops: drops of the split `val` for the fixed range weight.
        batch_size: drops at once.
        seed: of drops and samples.
        checkpoints: of `learned` and `learned_weights`, written by train.py.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    check_methods(methods)
    cases = _cases(modalities, stations, len(sampler.bs_position))
    check_counts(num_drops=num_drops, tuning_drops=tuning_drops, batch_size=batch_size)
    if "bayes" in methods and set(modalities) != {"aoa"}:
        check_cells(sampler.domain, float(sampler.range_std.min()))
    networks = load_networks(build, methods, checkpoints or {})
    pooling = Pooling(sampler.domain, num_samples, proposal, refine, networks=networks)
    drops, tuning = sampler.sample(seed, "test", range(num_drops)), sampler.sample(seed, "val", range(tuning_drops))
    found = []
    with progress_bar(progress, "drops") as bar:
        task = bar.add_task("fusing", total=num_drops * len(cases))
        for case in cases:
            bar.update(task, description=f"{case.modality}, {len(case.stations)} stations")
            factor = 1.0
            if "fixed_range_weight" in methods and case.modality == "hybrid":
                factor = best_range_factor(part(tuning, case), tuning.position, pooling)
            parts = []
            for first in range(0, num_drops, batch_size):
                batch = _take(drops, slice(first, first + batch_size))
                generator = pool_generator(seed, first)
                fused = fuse(
                    methods,
                    part(batch, case),
                    pooling._replace(range_factor=factor),
                    generator,
                    law_of(batch, sampler, case),
                )
                parts.append((batch.position, fused))
                bar.advance(task, len(batch.position))
            error = {
                name: torch.cat([(fused[name].position - true).norm(dim=-1) for true, fused in parts]).numpy()
                for name in methods
            }
            weight, flags = (_gathered([fused for _, fused in parts], field) for field in ("weight", "flags"))
            found.append(FusionErrors(case, error, weight, flags, factor))
    write_fusion(found, Path(folder), settings, command, notes)
    return found


def pool_generator(seed: int, first: int) -> torch.Generator:
    """Generator of the samples of the batch that begins with drop `first`.

    Generators read the low 32 bits of their seed alone: the seed is spread over these by an odd factor, 2^32 over the
    golden ratio, so that different seeds have different samples.
    """
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + first) % 2**32)


def check_counts(**counts: object) -> None:
    """Raise ConfigError unless all are whole numbers >= 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number >= 1, got {value!r}")


def part(drops: Drops, case: Case) -> StationMeasurements:
    """What a case uses of the measurements."""
    return drops.measured.stations(list(case.stations)).only(case.modality).validate()


def law_of(drops: Drops, sampler: DropSampler, case: Case) -> Law:
    """The law behind the measurements that a case uses."""
    index = list(case.stations)
    return Law(
        range_std=drops.range_std[:, index],
        angle_std=drops.angle_std[:, index],
        bias=sampler.bias,
        bias_scale_m=sampler.bias_scale_m,
        random_scale=sampler.random_scale,
        has_bias=torch.from_numpy(sampler.has_bias)[index],
        unbiased_share=sampler.unbiased_share,
    )


def best_range_factor(measured: StationMeasurements, position: Tensor, pooling: Pooling) -> float:
    """The range weight with the least 90 % error on drops with known positions, started at these."""
    start = solve(equal_weights(measured), position, measured, pooling.domain).position

    def error(factor: float) -> float:
        place = solve(fixed_range_weight(measured, factor), start, measured, pooling.domain).position
        return float((place - position).norm(dim=-1).quantile(0.9))

    return min(FACTORS, key=error)


def load_networks(
    build: Build, methods: Sequence[str], checkpoints: Mapping[str, str | None]
) -> dict[str, LearnedFusion]:
    """The learned methods' networks, each of a checkpoint made for it."""
    networks = {}
    for name in LEARNED:
        if name in methods:
            path = checkpoints.get(name)
            if not path:
                raise ConfigError(
                    f"task.checkpoints.{name} must be a checkpoint of experiment=fusion_train, got {path}"
                )
            networks[name] = build.fusion(path)
            if networks[name].correct_bias != (name == "learned"):
                wanted = str(name == "learned").lower()
                raise ConfigError(
                    f"task.checkpoints.{name} must be trained with estimator.correct_bias={wanted}, got {path}"
                )
    return networks


def _cases(modalities: Sequence[str], stations: Sequence[Sequence[int]], count: int) -> list[Case]:
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or not modalities or len(set(modalities)) < len(modalities):
        raise ConfigError(f"modalities must be out of {list(MODALITIES)}, each once, got {list(modalities)}")
    sets = [tuple(each) for each in stations]
    if not sets or len(set(sets)) < len(sets) or not all(_is_set(s, count) for s in sets):
        raise ConfigError(f"stations must be sets out of stations 0 to {count - 1}, got {[list(s) for s in sets]}")
    if len({len(each) for each in sets}) != len(sets):  # tables and arrays name a set by its size
        raise ConfigError(f"stations must be sets of different sizes, got {[list(s) for s in sets]}")
    return [Case(modality, each) for each in sets for modality in modalities]


def _is_set(stations: tuple[object, ...], count: int) -> bool:
    """Whether these are numbers of stations, each once."""
    whole = all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s < count for s in stations)
    return bool(stations) and whole and len(set(stations)) == len(stations)


def _take(drops: Drops, index: slice) -> Drops:
    """Some of the drops."""
    measured = StationMeasurements(drops.measured.bs_position, *(field[index] for field in drops.measured[1:]))
    return Drops(drops.position[index], measured, *(field[index] for field in drops[2:]))


def _gathered(parts: Sequence[Mapping[str, Fused]], field: str) -> dict[str, NDArray[Any]]:
    """A field of all drops by method, where the method has it."""
    found = {name: [getattr(part[name], field) for part in parts] for name in parts[0]}
    return {name: torch.cat(each).numpy() for name, each in found.items() if each[0] is not None}
