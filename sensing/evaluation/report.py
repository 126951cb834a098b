"""One HTML file with everything: tables, figures, configuration, versions. It loads nothing from anywhere."""

import base64
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from sensing.data.atomic import atomic_path
from sensing.evaluation.figures import CAPTIONS
from sensing.evaluation.measures import rows
from sensing.evaluation.result import SweepResult
from sensing.evaluation.summary import TABLES, Line, failures, shown, sigma_label, snr_label, table_lines

PACKAGES = ("sensing", "torch", "lightning", "numpy", "scipy", "h5py", "hydra-core", "matplotlib")


class Section(NamedTuple):
    """One table of the report."""

    title: str
    heads: list[str]
    lines: list[Line]


def write_report(
    results: Sequence[SweepResult],
    path: str | Path,
    figures: Mapping[str, Path],
    title: str = "Evaluation",
    config: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write report.html; it appears whole or not at all.

    Args:
        results: the evaluation, one result for each deviation of the clock offsets.
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
    sections = [
        Section(title, [column.head for column in columns], table_lines(results, columns))
        for title, columns in ((title, shown(results, columns)) for title, columns in TABLES.items())
        if columns
    ]
    text = environment.get_template("report.html").render(
        title=title,
        several=len(results) > 1,
        facts=_facts(results, command, notes or {}),
        sections=sections,
        bounds=list(results[0].bounds),
        left_out=results[0].left_out,
        cutoff_m=results[0].cutoff_m,
        failed=failures(results),
        figures=[
            (name, base64.b64encode(file.read_bytes()).decode("ascii"), CAPTIONS.get(name, ""))
            for name, file in figures.items()
        ],
        rows=list(rows(list(results))),
        snr_label=snr_label,
        config=config,
        versions={"python": platform.python_version()} | versions(),
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


def _facts(results: Sequence[SweepResult], command: str, notes: Mapping[str, str]) -> dict[str, Any]:
    result = results[0]
    facts = {"scenes": f"{len(result.scenes)} of {result.split}", "SNR": ", ".join(map(snr_label, result.snr_db))}
    if len(results) > 1:
        facts["deviation of the clock offsets"] = ", ".join(map(sigma_label, results))
    if result.seed is not None:
        facts["seed"] = str(result.seed)
    if command:
        facts["command"] = command
    return facts | dict(notes)
