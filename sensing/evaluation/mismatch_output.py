"""Tables, figure and report of the task `mismatch`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from sensing.data.atomic import atomic_path
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.fusion_output import write_npz
from sensing.evaluation.page import write_page
from sensing.evaluation.statistics import Floats, bootstrapped, proportion
from sensing.evaluation.style import legend_below, log_scale, marks, panels

if TYPE_CHECKING:
    from sensing.evaluation.mismatch import Found

CONVERGED = 3.0
HEADS = (
    "case", "severity", "estimator", "rms_m", "rms_low", "rms_high", "median_m", "median_low", "median_high",
    "rms_over_peb", "converged", "converged_low", "converged_high", "nmse_db", "nmse_low", "nmse_high", "num_scenes",
    "ms_per_scene", "parameters", "training_scenes", "setting",
)  # fmt: skip
GAPS = ("case", "severity", "from", "quantity", "gap", "closed", "closed_low", "closed_high", "num_scenes")
CAPTION = "Root mean square error of the user over the severity of each impairment, with 95 % intervals over scenes."


def statistics(error_m: Floats, over_peb: Floats, nmse_db: Floats) -> Floats:
    """Rms and median error [m], rms error over the bound, mean NMSE [dB], over the last axis."""
    nmse = 10.0 * np.log10(np.mean(10.0 ** (nmse_db / 10.0), -1))
    rms, ratio = (np.sqrt(np.mean(each**2, -1)) for each in (error_m, over_peb))
    return np.stack([rms, np.median(error_m, -1), ratio, nmse])


def closed(start: Floats, learned: Floats, matched: Floats) -> Floats:
    """Share of the gap between a start and the matched estimator that the learned one closes."""
    return (start - learned) / (start - matched)


def write_mismatch(
    found: Sequence["Found"], folder: Path, settings: str, command: str, notes: Mapping[str, str] | None
) -> None:
    """Write results.csv, gaps.csv, per_scene.npz, the figure and report.html; print both tables."""
    rows: list[list[str]] = []
    gaps: list[list[str]] = []
    arrays: dict[str, Floats] = {}
    for each in found:
        rms, median, ratio, nmse = bootstrapped(statistics, each.error_m, each.over_peb, each.nmse_db)
        share = proportion(each.over_peb < CONVERGED)
        numbers = [*rms[:3], *median[:3], ratio.value, *share[:3], *nmse[:3]]
        rows.append(
            [each.case, f"{each.severity:g}", each.method, *(f"{x:.5g}" for x in numbers), str(len(each.error_m)),
             f"{1e3 * each.seconds:.0f}", str(each.parameters), str(each.training_scenes), each.setting]
        )  # fmt: skip
        name = f"{each.case}/{each.severity:g}/{each.method}"
        arrays |= {f"{name}/error_m": each.error_m, f"{name}/error_over_peb": each.over_peb}
        arrays[f"{name}/nmse_db"] = each.nmse_db
    of = {(each.case, each.severity, each.method): each for each in found}
    for case, severity in dict.fromkeys((each.case, each.severity) for each in found):
        for start in ("classical", "classical_tuned"):
            chosen = [of.get((case, severity, name)) for name in (start, "learned", "matched")]
            if any(each is None for each in chosen):
                continue
            samples = [s for each in chosen if each is not None for s in (each.error_m, each.over_peb, each.nmse_db)]

            def shares(*all_: Floats) -> Floats:
                a, b, c = (statistics(*all_[place : place + 3]) for place in (0, 3, 6))
                with np.errstate(divide="ignore", invalid="ignore"):
                    return np.concatenate([a - c, closed(a, b, c)])

            values = bootstrapped(shares, *samples)
            for place, quantity in ((0, "rms_m"), (1, "median_m"), (3, "nmse_db")):
                gap, share = values[place], values[place + 4]
                texts = [f"{x:.4g}" for x in (gap.value, *share[:3])]
                gaps.append([case, f"{severity:g}", start, quantity, *texts, str(share.num_scenes)])
    write_csv(folder / "results.csv", HEADS, rows)
    write_csv(folder / "gaps.csv", GAPS, gaps)
    write_npz(folder / "per_scene.npz", arrays)
    picture = _figure(found, folder / "figures" / "error_over_severity.png")
    facts = {"command": command, **(notes or {})}
    write_page(
        folder / "report.html", "mismatch.html", "Mismatch: noise, priors, diffuse tail", facts,
        [("error over severity", picture, CAPTION)], settings, heads=HEADS, rows=rows, gap_heads=GAPS, gaps=gaps,
    )  # fmt: skip
    _print(HEADS[:-1], [row[:-1] for row in rows])
    _print(GAPS, gaps)


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head.replace("_", " "))
    for row in rows:
        table.add_row(*row)
    Console(width=240).print(table)


def _figure(found: Sequence["Found"], path: Path) -> Path:
    cases = list(dict.fromkeys(each.case for each in found))
    names = list(dict.fromkeys(each.method for each in found))
    figure, axes = panels(len(cases), width=4.0, height=4.0, sharey=True)
    for case, panel in zip(cases, axes, strict=True):
        for name in names:
            points = sorted((e for e in found if (e.case, e.method) == (case, name)), key=lambda e: e.severity)
            rms = [bootstrapped(statistics, e.error_m, e.over_peb, e.nmse_db)[0] for e in points]
            color, marker = marks(name, names)
            x, y = [e.severity for e in points], np.array([r.value for r in rms])
            spread = [y - np.array([r.low for r in rms]), np.array([r.high for r in rms]) - y]
            panel.errorbar(x, y, spread, color=color, marker=marker, label=name, capsize=2)
        panel.set(xlabel="severity", ylabel="rms error of the user [m]", title=case)
        log_scale(panel, "y")
    legend_below(figure, axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
