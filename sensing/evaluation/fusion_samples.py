"""Task `fusion_samples`: how the fused position improves with the number of samples, for both proposals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sensing.data.atomic import atomic_path
from sensing.errors import ConfigError
from sensing.evaluation.csv_file import write_csv
from sensing.evaluation.fusion import Case, _take, check_counts, law_of, part, pool_generator
from sensing.evaluation.fusion_output import QUANTILES, quantiles, write_npz
from sensing.evaluation.page import write_page
from sensing.evaluation.statistics import bootstrapped
from sensing.evaluation.style import legend_below, log_scale, panels
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.fusion.bayes import check_cells, posterior
from sensing.fusion.methods import Pooling, fuse
from sensing.fusion.sampling import PROPOSALS
from sensing.simulation.drops import DropSampler

METHODS = ("equal", "optimal")
LIMIT = ("none", "bayes", 0)
"""Key of the posterior mean under the true law, which takes no samples."""

HEADS = ("proposal", "method", "num_samples", "quantile", "error_m", "low_m", "high_m", "num_drops")
CAPTION = (
    "Error of the best sample against the number of samples, pool proposal and uniform proposal; bars: 95 % intervals "
    "over drops. Lines: median; dotted: 90 % error. Black: the posterior mean under the true law of the measurements."
)


def fusion_samples(
    build: Build,
    folder: str | Path,
    sampler: DropSampler,
    modality: str = "toa",
    counts: Sequence[int] = (30, 100, 300, 1000, 3000, 10_000),
    proposals: Sequence[str] = PROPOSALS,
    num_drops: int = 500,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> dict[tuple[str, str, int], NDArray[np.float64]]:
    """Errors by (proposal, method, samples); writes results.csv, errors.npz, the figure and report.html.

    The position is the best sample itself, as in the paper: Gauss-Newton steps would hide the number of samples.

    Args:
        build: not used; every task gets it.
        folder: run folder, made if absent.
        sampler: law of the drops.
        modality: `toa`, `aoa` or `hybrid`.
        counts: numbers of samples.
        proposals: out of `pool` and `uniform`.
        num_drops: drops of the split `test`.
        batch_size: drops at once.
        seed: of drops and samples.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    if not counts or not all(isinstance(n, int) and n >= 1 for n in counts) or sorted(set(counts)) != list(counts):
        raise ConfigError(f"counts must be whole numbers >= 1 in rising order, got {list(counts)}")
    if not proposals or not set(proposals) <= set(PROPOSALS):
        raise ConfigError(f"proposals must be out of {list(PROPOSALS)}, got {list(proposals)}")
    check_counts(num_drops=num_drops, batch_size=batch_size)
    if modality != "aoa":
        check_cells(sampler.domain, float(sampler.range_std.min()))
    drops = sampler.sample(seed, "test", range(num_drops))
    case = Case(modality, tuple(range(len(sampler.bs_position))))
    part(drops, case)
    parts: dict[tuple[str, str, int], list[torch.Tensor]] = {}
    with progress_bar(progress, "drops") as bar:
        task = bar.add_task("sampling", total=num_drops * (len(counts) * len(proposals) + 1))
        for first in range(0, num_drops, batch_size):
            batch = _take(drops, slice(first, first + batch_size))
            mean = posterior(part(batch, case), sampler.domain, law_of(batch, sampler, case)).mean
            parts.setdefault(LIMIT, []).append((mean - batch.position).norm(dim=-1))
            bar.advance(task, len(batch.position))
        for proposal in proposals:
            for count in counts:
                pooling = Pooling(sampler.domain, count, proposal, refine=False)
                for first in range(0, num_drops, batch_size):
                    batch = _take(drops, slice(first, first + batch_size))
                    generator = pool_generator(seed, first)
                    fused = fuse(METHODS, part(batch, case), pooling, generator)
                    for method in METHODS:
                        error = (fused[method].position - batch.position).norm(dim=-1)
                        parts.setdefault((proposal, method, count), []).append(error)
                    bar.advance(task, len(batch.position))
    found = {key: torch.cat(values).numpy() for key, values in parts.items()}
    _write(found, Path(folder), settings, command, notes)
    return found


def _write(
    found: Mapping[tuple[str, str, int], NDArray[np.float64]],
    folder: Path,
    settings: str,
    command: str,
    notes: Mapping[str, str] | None,
) -> None:
    limit = bootstrapped(quantiles, found[LIMIT])
    rows: list[tuple[object, ...]] = [
        (*LIMIT, quantile, *(f"{x:.6g}" for x in value[:3]), value.num_scenes)
        for quantile, value in zip(QUANTILES, limit, strict=True)
    ]
    figure, axes = panels(len(METHODS), width=5.0, height=4.0, sharey=True)
    for method, panel in zip(METHODS, axes, strict=True):
        for proposal, color in (("pool", "#0072B2"), ("uniform", "#D55E00")):
            counts = [count for p, m, count in found if (p, m) == (proposal, method)]
            values = [bootstrapped(quantiles, found[proposal, method, count]) for count in counts]
            for count, each in zip(counts, values, strict=True):
                for quantile, value in zip(QUANTILES, each, strict=True):
                    numbers = (f"{x:.6g}" for x in value[:3])
                    rows.append((proposal, method, count, quantile, *numbers, value.num_scenes))
            for place, line in ((0, "-"), (2, ":")):
                if counts:
                    middle = np.array([each[place][:3] for each in values])
                    spread = [middle[:, 0] - middle[:, 1], middle[:, 2] - middle[:, 0]]
                    label = f"{proposal}, {'median' if place == 0 else '90 %'}"
                    panel.errorbar(counts, middle[:, 0], spread, color=color, linestyle=line, label=label, capsize=2)
        for place, line in ((0, "--"), (2, ":")):
            label = f"Bayes limit, {'median' if place == 0 else '90 %'}"
            panel.axhline(limit[place].value, color="#000000", linestyle=line, label=label)
        panel.set(xlabel="samples", ylabel="position error [m]", title=f"{method} weights")
        for which in "xy":
            log_scale(panel, which)
    legend_below(figure, axes)
    write_csv(folder / "results.csv", HEADS, rows)
    write_npz(folder / "errors.npz", {"_".join(map(str, key)) + "_error_m": value for key, value in found.items()})
    picture = folder / "figures" / "samples.png"
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    facts = {"command": command, **(notes or {})}
    cells = [[str(cell) for cell in row] for row in rows]
    write_page(
        folder / "report.html", "fusion.html", "Fusion: number of samples", facts, [("samples", picture, CAPTION)],
        settings, heads=HEADS, rows=cells,
    )  # fmt: skip
