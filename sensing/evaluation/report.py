"""One HTML file with everything: tables, figures, configuration, versions. It loads nothing from anywhere."""

import base64
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from sensing.data.atomic import atomic_path
from sensing.evaluation.figures import CAPTIONS
from sensing.evaluation.result import SweepResult
from sensing.evaluation.summary import cells, shown_columns, snr_label, summaries
from sensing.evaluation.tables import rows

PACKAGES = ("sensing", "torch", "lightning", "numpy", "scipy", "h5py", "hydra-core", "matplotlib")


class Line(NamedTuple):
    """A line of the summary table, as texts."""

    snr: str
    estimator: str
    cells: list[tuple[str, str]]
    first: bool  # of its SNR


def write_report(
    result: SweepResult,
    path: str | Path,
    figures: Mapping[str, Path],
    title: str = "Evaluation",
    config: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write report.html; it appears whole or not at all.

    Args:
        result: the evaluation.
        path: of the report.
        figures: PNG files by name, as `save_figures` returns them.
        title: heading.
        config: configuration as text.
        command: the command that made it.
        notes: further facts, for example the checkpoint, by name.

    Returns:
        The path.
    """
    environment = Environment(
        loader=PackageLoader("sensing.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    lines = summaries(result)
    columns = shown_columns(lines)
    text = environment.get_template("report.html").render(
        title=title,
        result=result,
        facts=_facts(result, command, notes or {}),
        columns=columns,
        lines=[
            Line(
                snr_label(line.snr_db),
                line.estimator,
                cells(line, columns),
                at == 0 or lines[at - 1].snr_db != line.snr_db,
            )
            for at, line in enumerate(lines)
        ],
        failed=[(line.estimator, snr_label(line.snr_db), line.num_failed) for line in lines if line.num_failed],
        figures=[
            (name, base64.b64encode(file.read_bytes()).decode("ascii"), CAPTIONS.get(name, ""))
            for name, file in figures.items()
        ],
        rows=list(rows(result)),
        snr_label=snr_label,
        config=config,
        versions={"python": platform.python_version()} | versions(),
        bounded=bool(result.bounds),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _facts(result: SweepResult, command: str, notes: Mapping[str, str]) -> dict[str, Any]:
    facts = {"scenes": f"{len(result.scenes)} of {result.split}", "SNR": ", ".join(map(snr_label, result.snr_db))}
    if result.seed is not None:
        facts["seed"] = str(result.seed)
    if command:
        facts["command"] = command
    return facts | dict(notes)
