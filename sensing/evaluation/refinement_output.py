"""Table and report of the task `refinement`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.fusion_output import write_npz
from sensing.evaluation.page import write_page
from sensing.evaluation.statistics import Floats, Value, bootstrapped

if TYPE_CHECKING:
    from sensing.evaluation.refinement import Found, Method

CONVERGED = 3.0
HEADS = (
    "case", "start", "snr_db", "estimator", "layers", "seeds", "num_scenes",
    "rms_over_peb", "rms_low", "rms_high", "rms_seed_std", "median_over_peb",
    "converged", "converged_low", "converged_high", "converged_seed_std", "nmse_db", "fallback_share", "near_share",
    "ms_per_scene", "parameters", "training_scenes",
    "versus", "rms_ratio", "rms_ratio_low", "rms_ratio_high",
    "median_ratio", "median_ratio_low", "median_ratio_high",
    "converged_gain", "converged_gain_low", "converged_gain_high",
    "time_ratio",
)  # fmt: skip
PRINTED = (
    "case", "start", "snr_db", "estimator", "rms_over_peb", "rms_seed_std", "median_over_peb", "converged", "nmse_db",
    "fallback_share", "near_share", "ms_per_scene", "rms_ratio", "rms_ratio_low", "rms_ratio_high", "converged_gain",
    "time_ratio",
)  # fmt: skip


def write_refinement(
    found: Sequence["Found"],
    methods: Mapping[str, "Method"],
    reference: str,
    folder: Path,
    settings: str,
    command: str,
    notes: Mapping[str, str] | None,
) -> None:
    """Write results.csv, per_scene.npz and report.html; print the main columns.

    Intervals are 95 % over scenes, paired where methods are compared; the seeds of a method count alike.
    """
    base = {(each.case, each.start, each.snr_db): each for each in found if each.method == reference}
    rows = [_row(each, methods[each.method], base[each.case, each.start, each.snr_db]) for each in found]
    cells = [[row[head] for head in HEADS] for row in rows]
    write_csv(folder / "results.csv", HEADS, [[_text(cell) for cell in line] for line in cells])
    arrays: dict[str, Floats] = {}
    for each in found:
        name = f"{each.case}/{each.start}/{each.snr_db:g}/{each.method}"
        arrays |= {f"{name}/ue_error_over_peb": each.over_peb, f"{name}/channel_nmse_db": each.nmse_db}
        arrays |= {f"{name}/fallback": each.fallback.astype(float), f"{name}/near": each.near.astype(float)}
    write_npz(folder / "per_scene.npz", arrays)
    facts = {"command": command, "compared with": reference, **(notes or {})}
    lines = [[_text(row[head]) for head in PRINTED] for row in rows]
    write_page(folder / "report.html", "refinement.html", "Refinement", facts, [], settings, heads=PRINTED, rows=lines)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in PRINTED:
        table.add_column(head.replace("_", " "), justify="left" if head in ("case", "estimator") else "right")
    for line in lines:
        table.add_row(*line)
    Console(width=190).print(table)


def _row(each: "Found", method: "Method", base: "Found") -> dict[str, Any]:
    seeds, scenes = each.over_peb.shape
    rms, converged, median = bootstrapped(_statistics, *each.over_peb)
    rms_ratio, gain, median_ratio = bootstrapped(
        lambda *errors: _compared(errors[:seeds], errors[seeds:]), *each.over_peb, *base.over_peb
    )
    alone = each is base
    of_seeds = np.stack([_statistics(errors) for errors in each.over_peb])
    spread = np.std(of_seeds, 0, ddof=1) if seeds > 1 else [None, None, None]
    return {
        "case": each.case, "start": each.start, "snr_db": each.snr_db, "estimator": each.method,
        "layers": method.unrolled[0].num_iterations, "seeds": seeds, "num_scenes": scenes,
        **_cells("rms", rms, "rms_over_peb"), "rms_seed_std": spread[0], "median_over_peb": median.value,
        **_cells("converged", converged, "converged"), "converged_seed_std": spread[1],
        "nmse_db": 10.0 * np.log10(np.mean(10.0 ** (each.nmse_db / 10.0))),
        "fallback_share": float(each.fallback.mean()), "near_share": float(each.near.mean()),
        "ms_per_scene": 1e3 * each.seconds,
        "parameters": method.parameters, "training_scenes": method.training_scenes,
        "versus": None if alone else base.method,
        **({} if alone else _cells("rms_ratio", rms_ratio, "rms_ratio")),
        **({} if alone else _cells("median_ratio", median_ratio, "median_ratio")),
        **({} if alone else _cells("converged_gain", gain, "converged_gain")),
        "time_ratio": None if alone else each.seconds / base.seconds,
    } | ({name: None for name in HEADS if alone and ("ratio" in name or "gain" in name)})  # fmt: skip


def _cells(prefix: str, value: Value, name: str) -> dict[str, float]:
    return {name: value.value, f"{prefix}_low": value.low, f"{prefix}_high": value.high}


def _statistics(*errors: Floats) -> Floats:
    """Rms, share converged and median of all seeds' errors [seed] of [* scene]."""
    r = np.stack(errors, -1)
    return np.stack([np.sqrt(np.mean(r**2, (-2, -1))), np.mean(r < CONVERGED, (-2, -1)), np.median(r, (-2, -1))])


def _compared(ours: Sequence[Floats], theirs: Sequence[Floats]) -> Floats:
    a, b = _statistics(*ours), _statistics(*theirs)
    return np.stack([a[0] / b[0], a[1] - b[1], a[2] / b[2]])


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
