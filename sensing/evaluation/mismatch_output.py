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
from sensing.evaluation.style import BOUNDS, legend_below, log_scale, marks, panels

if TYPE_CHECKING:
    from sensing.evaluation.mismatch import Found

CONVERGED = 3.0
HEADS = (
    "case", "severity", "estimator", "rms_m", "rms_low", "rms_high", "median_m", "median_low", "median_high",
    "rms_over_peb", "over_peb_low", "over_peb_high", "converged", "converged_low", "converged_high", "nmse_db",
    "nmse_low", "nmse_high", "seeds", "rms_m_of_seeds", "num_scenes", "ms_per_scene", "parameters", "training_scenes",
    "setting",
)  # fmt: skip
GAPS = (
    "case", "severity", "from", "quantity", "learned_over_from", "learned_low", "learned_high", "gap", "gap_low",
    "gap_high", "closed", "closed_low", "closed_high", "closed_of_seeds", "num_scenes",
)  # fmt: skip
QUANTITIES = ("rms_m", "median_m", "rms_over_peb", "nmse_db")
CAPTION = (
    "Root mean square of the user's error over its bound, over the severity of each impairment, with 95 % intervals "
    "over the scenes of all seeds. The bound, dashed, knows the true noise and clock deviation and nothing else."
)
PANELS_IN_ROW = 4


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
    rows = [_row(each) for each in found]
    gaps: list[list[str]] = []
    arrays: dict[str, Floats] = {}
    for each in found:
        name = f"{each.case}/{each.severity:g}/{each.method}"
        arrays |= {f"{name}/error_m": each.error_m, f"{name}/error_over_peb": each.over_peb}
        arrays[f"{name}/nmse_db"] = each.nmse_db
    of = {(each.case, each.severity, each.method): each for each in found}
    for case, severity in dict.fromkeys((each.case, each.severity) for each in found):
        for start in ("classical", "classical_tuned"):
            first, second, third = (of.get((case, severity, name)) for name in (start, "learned", "matched"))
            if first is not None and not second is third is None:
                gaps += _gaps(first, second, third)
    write_csv(folder / "results.csv", HEADS, rows)
    write_csv(folder / "gaps.csv", GAPS, gaps)
    write_npz(folder / "per_scene.npz", arrays)
    picture = _figure(found, folder / "figures" / "error_over_severity.png")
    facts = {"command": command, **(notes or {})}
    write_page(
        folder / "report.html", "mismatch.html", "Where the model is wrong", facts,
        [("error over severity", picture, CAPTION)], settings, heads=HEADS, rows=rows, gap_heads=GAPS, gaps=gaps,
    )  # fmt: skip
    _print(HEADS[:-1], [row[:-1] for row in rows])
    _print(GAPS, gaps)


def _row(each: "Found") -> list[str]:
    """One row of results.csv."""
    rms, median, ratio, nmse = bootstrapped(statistics, *_samples(each))
    share = proportion(each.over_peb.ravel() < CONVERGED)
    numbers = [*rms[:3], *median[:3], *ratio[:3], *share[:3], *nmse[:3]]
    of_seeds = " / ".join(f"{np.sqrt(np.mean(error**2)):.3g}" for error in each.error_m)
    texts = [f"{x:.4g}" for x in numbers] + [str(len(each.error_m)), of_seeds, str(each.error_m.size)]
    costs = [f"{1e3 * each.seconds:.0f}", str(each.parameters), str(each.training_scenes), each.setting]
    return [each.case, f"{each.severity:g}", each.method, *texts, *costs]


def _samples(each: "Found") -> list[Floats]:
    """Arguments of `statistics`, the scenes of all seeds together."""
    return [each.error_m.ravel(), each.over_peb.ravel(), each.nmse_db.ravel()]


def compared(start: Floats, learned: Floats, matched: Floats) -> Floats:
    """What gaps.csv says of the `statistics` [4 *] of three estimators, [4 3 *].

    The learned one over the start (the NMSE in dB: the difference), start minus matched, and the share closed.
    """
    over = np.concatenate([learned[:3] / start[:3], (learned - start)[3:]])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([over, start - matched, closed(start, learned, matched)], 1)


def _gaps(start: "Found", learned: "Found | None", matched: "Found | None") -> list[list[str]]:
    """Rows of gaps.csv; resampled scenes are the same for all estimators, and one that is absent leaves cells empty."""
    chosen = [start, learned or start, matched or start]

    def values(*samples: Floats) -> Floats:
        three = compared(*(statistics(*samples[place : place + 3]) for place in (0, 3, 6)))
        return three.reshape(-1, *three.shape[2:])

    found = bootstrapped(values, *(sample for each in chosen for sample in _samples(each)))
    fields = [(each.error_m, each.over_peb, each.nmse_db) for each in chosen]
    of_seeds = [values(*(field[seed] for each in fields for field in each)) for seed in range(len(start.error_m))]
    rows = []
    for place, quantity in enumerate(QUANTITIES):
        over, gap, share = ([f"{x:.4g}" for x in found[3 * place + column][:3]] for column in range(3))
        shares = " / ".join(f"{each[3 * place + 2]:.3g}" for each in of_seeds)
        cells = over if learned else [""] * 3
        cells = cells + (gap if matched else [""] * 3)
        cells = cells + ([*share, shares] if learned and matched else [""] * 4)
        count = str(found[3 * place].num_scenes)
        rows.append([start.case, f"{start.severity:g}", start.method, quantity, *cells, count])
    return rows


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with every interval in the cell of its value."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [place for place, head in enumerate(heads) if not head.endswith(("_low", "_high"))]
    for place in shown:
        table.add_column(heads[place].replace("_", " "))
    for row in rows:
        cells = []
        for place in shown:
            low, high = [*heads[place + 1 : place + 3], "", ""][:2]
            given = low.endswith("_low") and high.endswith("_high") and row[place]
            cells.append(f"{row[place]} ({row[place + 1]} to {row[place + 2]})" if given else row[place])
        table.add_row(*cells)
    Console(width=240).print(table)


def _figure(found: Sequence["Found"], path: Path) -> Path:
    """A panel for each case; estimators stand side by side, so that equal ones can be told apart."""
    cases = list(dict.fromkeys(each.case for each in found))
    names = list(dict.fromkeys(each.method for each in found))
    severities = sorted({each.severity for each in found})
    apart = 0.025 * ((severities[-1] - severities[0]) or 1.0)
    figure, axes = panels(len(cases), width=4.0, height=3.6, columns=min(len(cases), PANELS_IN_ROW))
    for case, panel in zip(cases, axes, strict=True):
        lowest, highest = 0.8, 2.2  # at least so much is shown
        for place, name in enumerate(names):
            points = sorted((e for e in found if (e.case, e.method) == (case, name)), key=lambda e: e.severity)
            if not points:
                continue
            rms = [bootstrapped(statistics, *_samples(e))[2] for e in points]
            color, marker = marks(name, names)
            x = np.array([e.severity for e in points]) + apart * (place - 0.5 * (len(names) - 1))
            y = np.array([r.value for r in rms])
            lowest, highest = min(lowest, 0.9 * y.min()), max(highest, *(1.1 * r.high for r in rms))
            spread = [y - np.array([r.low for r in rms]), np.array([r.high for r in rms]) - y]
            panel.errorbar(x, y, spread, color=color, marker=marker, label=name, capsize=2, linewidth=1)
        color, dashes, text = BOUNDS["peb"]
        panel.axhline(1.0, color=color, linestyle=dashes, label=text)
        panel.set(xlabel="severity", ylabel="rms error over PEB", title=case, xticks=severities)
        panel.set_xlim(severities[0] - 6 * apart, severities[-1] + 6 * apart)
        panel.set_ylim(lowest, highest)
        log_scale(panel, "y")
    legend_below(figure, axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
