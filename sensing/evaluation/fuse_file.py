"""Task `fuse_file`: positions from your own ranges and directions: python evaluate.py task=fuse_file task.path=FILE."""

import math
import zlib
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensing.data.station_file import StationDrop, read_stations
from sensing.errors import ConfigError
from sensing.evaluation.fuse_file_output import DropResult, FileFusion, write_file_fusion
from sensing.evaluation.fusion import Case, FusionErrors, load_networks
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.fusion.area import measured_area
from sensing.fusion.bayes import Law, posterior
from sensing.fusion.domain import Domain, box
from sensing.fusion.measurements import StationMeasurements
from sensing.fusion.methods import LEARNED, Fused, Pooling, check_methods, fuse
from sensing.fusion.modes import FusionFlag
from sensing.fusion.uncertainty import pool_covariance
from sensing.simulation.drops import BIASES

PRECISIONS = (*LEARNED, "covariance_intersection")
"""Methods whose weights are factors of the claimed precisions."""


class _Options(NamedTuple):
    """How every drop is fused."""

    methods: list[str]
    pooling: Pooling
    bias: str
    bias_scale_m: float
    seed: int


def fuse_file(
    build: Build,
    folder: str | Path,
    path: str | None = None,
    methods: Sequence[str] = ("equal", "optimal", "inverse_variance", "covariance_intersection", "best_station"),
    height_m: float | None = None,
    lower_m: Sequence[float] | None = None,
    upper_m: Sequence[float] | None = None,
    spacing_m: float | None = None,
    num_samples: int = 10_000,
    range_factor: float = 0.1,
    bias: str = "none",
    bias_scale_m: float = 0.0,
    checkpoints: Mapping[str, str | None] | None = None,
    seed: int = 0,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> FileFusion:
    """Fuse every drop of a file; write fused.csv, the map and report.html, and the errors where the file has truth.

    Every drop is fused by itself: what comes out depends on its name, its rows, the domain and the seed.

    Args:
        build: reads checkpoints.
        folder: run folder, made if absent.
        path: CSV file (`sensing.data.station_file`).
        methods: out of `sensing.fusion.methods.METHODS`.
        height_m: known height of the targets [m]; None: they are located in space.
        lower_m: [xyz] lower corner of the domain [m]; None, with `upper_m`: from the measurements.
        upper_m: [xyz] upper corner [m].
        spacing_m: edge of the domain's cells [m]; None: from the deviations.
        num_samples: samples of the pool.
        range_factor: weight of a range over that of a direction, of `fixed_range_weight`.
        bias: law of the ranges' bias that `bayes` takes for true, beside the deviations of the file.
        bias_scale_m: its scale [m].
        checkpoints: of `learned` and `learned_weights`.
        seed: of the samples.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Returns:
        What was written.

    Raises:
        SensingError: an option or a cell of the file does not fit, before any work is done.
    """
    if not isinstance(path, (str, Path)) or not Path(path).expanduser().is_file():
        raise ConfigError(f"task.path must be an existing CSV file (say task.path=FILE), got {path!r}")
    check_methods(methods)
    _check(num_samples, range_factor, bias, bias_scale_m, seed)
    for name, value in (("height_m", height_m), ("spacing_m", spacing_m)):
        if value is not None and not (_number(value) and (name == "height_m" or value > 0)):
            raise ConfigError(f"{name} must be a number of metres or null, got {value!r}")
    networks = load_networks(build, methods, checkpoints or {})
    file = read_stations(Path(path).expanduser())
    drops = [drop.measured for drop in file.drops if bool(drop.measured.members.any())]
    if not drops:
        raise ConfigError(f"task.path must hold a range or a direction, got none in {len(file.drops)} drops of {path}")
    domain = _domain(drops, height_m, lower_m, upper_m, spacing_m)
    pooling = Pooling(domain, num_samples, refine=True, range_factor=range_factor, networks=networks)
    options = _Options(list(methods), pooling, bias, bias_scale_m, seed)
    results = []
    with progress_bar(progress, "drops") as bar:
        for drop in bar.track(file.drops, description="fusing"):
            results.append(_scored(_fused(drop, options), drop.position, domain.unknown))
    notes = {
        "file": Path(path).name,
        "drops": f"{len(file.drops)}, {sum(drop.position is not None for drop in file.drops)} of them with truth",
        "targets": "in space" if height_m is None else f"at a height of {height_m:g} m",
        "domain": f"{_corner(domain, -1)} to {_corner(domain, 1)} m in {len(domain.points)} cells",
        **({"columns that were not read": ", ".join(file.ignored)} if file.ignored else {}),
        **(notes or {}),
    }
    found = FileFusion(file.drops, results, _errors(file.drops, results, range_factor))
    write_file_fusion(found, Path(folder), settings, command, notes)
    return found


def _check(num_samples: int, range_factor: float, bias: str, bias_scale_m: float, seed: int) -> None:
    for name, value, least in (("num_samples", num_samples, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be a whole number >= {least}, got {value!r}")
    if not (_number(range_factor) and range_factor > 0):
        raise ConfigError(f"range_factor must be a number > 0, got {range_factor!r}")
    if bias not in BIASES:
        raise ConfigError(f"bias must be one of {list(BIASES)}, got {bias!r}")
    if not (_number(bias_scale_m) and bias_scale_m >= 0):
        raise ConfigError(f"bias_scale_m must be a number >= 0, got {bias_scale_m!r}")


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _domain(
    drops: Sequence[StationMeasurements],
    height_m: float | None,
    lower_m: Sequence[float] | None,
    upper_m: Sequence[float] | None,
    spacing_m: float | None,
) -> Domain:
    """The area given, or that of the measurements."""
    if lower_m is None and upper_m is None:
        return measured_area(drops, height_m, spacing_m)
    low, high = (_xyz(name, corner) for name, corner in (("lower_m", lower_m), ("upper_m", upper_m)))
    if height_m is not None:
        low[2] = high[2] = height_m
    return box(low, high, measured_area(drops, height_m).cell.max().item() if spacing_m is None else spacing_m)


def _xyz(name: str, corner: Sequence[float] | None) -> list[float]:
    if not isinstance(corner, Sequence) or len(corner) != 3 or not all(map(_number, corner)):
        raise ConfigError(f"{name} must be [x, y, z] in metres, or both corners null, got {corner!r}")
    return list(corner)


def _corner(domain: Domain, side: int) -> str:
    points = domain.points + 0.5 * side * domain.cell
    corner = points.amin(0) if side < 0 else points.amax(0)
    return f"({', '.join(f'{value:.1f}' for value in corner.tolist())})"


def _fused(drop: StationDrop, options: _Options) -> dict[str, DropResult]:
    """A drop by all methods."""
    measured, domain = drop.measured, options.pooling.domain
    if not bool(measured.members.any()):
        return {name: DropResult(None, None, None, ("no_measurement",)) for name in options.methods}
    generator = torch.Generator().manual_seed(zlib.crc32(f"{options.seed} {drop.name}".encode()))  # 32 bits are read
    pooled = dict.fromkeys(["equal", *(name for name in options.methods if name != "bayes")])
    fused = fuse(list(pooled), measured, options.pooling, generator)
    results = {name: _result(name, each, measured, domain.unknown) for name, each in fused.items()}
    if "bayes" in options.methods:  # a mean lies between two modes: say that there are two
        shared: tuple[str, ...] = ("mirror", "open", "one_station")
        if options.bias == "none":  # the law that equal weights believe in: what they contradict, it contradicts
            shared = ("mirror", "open", "contradictory", "outside", "one_station")
        words = tuple(word for word in shared if word in results["equal"].flags)
        found = posterior(measured, domain, _law(measured, options))
        covariance = found.covariance[0][domain.unknown][:, domain.unknown]
        results["bayes"] = DropResult(found.mean[0], _padded(covariance, domain.unknown), None, words)
    return {name: results[name] for name in options.methods}


def _result(name: str, fused: Fused, measured: StationMeasurements, unknown: list[int]) -> DropResult:
    assert fused.weight is not None
    assert fused.flags is not None
    assert fused.mirror is not None
    covariance = pool_covariance(fused.position, measured, fused.weight, unknown, name in PRECISIONS)[0]
    flags = FusionFlag(int(fused.flags[0]))
    words = tuple(str(flag.name).lower() for flag in FusionFlag if flag in flags)
    second = fused.mirror[0] if FusionFlag.MIRROR in flags else None
    return DropResult(fused.position[0], _padded(covariance, unknown), second, words)


def _padded(covariance: Tensor, unknown: list[int]) -> Tensor:
    """[n n] to [xyz xyz], zero along known coordinates."""
    full = covariance.new_zeros(3, 3)
    full[torch.tensor(unknown)[:, None], torch.tensor(unknown)] = covariance
    return full


def _law(measured: StationMeasurements, options: _Options) -> Law:
    """The law that the file's deviations and the options state; where nothing was measured it is not read."""
    has_bias = torch.ones(measured.range_m.shape[-1], dtype=torch.bool)
    return Law(
        range_std=torch.where(torch.isfinite(measured.range_std), measured.range_std, 1.0),
        angle_std=torch.where(torch.isfinite(measured.angle_std), measured.angle_std, 1.0),
        bias=options.bias,
        bias_scale_m=options.bias_scale_m,
        random_scale=False,
        has_bias=has_bias,
    )


def _scored(results: dict[str, DropResult], truth: Tensor | None, unknown: list[int]) -> dict[str, DropResult]:
    """The results of a drop with their errors."""
    if truth is None:
        return results
    return {
        name: each if each.position is None else each._replace(error_m=float((each.position - truth)[unknown].norm()))
        for name, each in results.items()
    }


def _errors(
    drops: Sequence[StationDrop], results: Sequence[dict[str, DropResult]], range_factor: float
) -> list[FusionErrors]:
    """Errors by what was measured and the number of stations, the largest group first."""
    groups: dict[Case, list[dict[str, DropResult]]] = {}
    for drop, result in zip(drops, results, strict=True):
        if drop.position is not None and drop.num_stations:
            groups.setdefault(Case(drop.modality, tuple(range(drop.num_stations))), []).append(result)
    return [
        FusionErrors(
            case,
            {name: np.array([result[name].error_m for result in groups[case]]) for name in results[0]},
            {},
            {},
            range_factor,
        )
        for case in sorted(groups, key=lambda case: (-len(groups[case]), case))
    ]
