"""One HTML file with everything: tables, figures, configuration, versions. It loads nothing from anywhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sensing.evaluation.figures import CAPTIONS
from sensing.evaluation.measures import rows
from sensing.evaluation.page import write_page
from sensing.evaluation.result import SweepResult
from sensing.evaluation.summary import TABLES, Line, failures, shown, sigma_label, snr_label, table_lines


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
    sections = [
        Section(title, [column.head for column in columns], table_lines(results, columns))
        for title, columns in ((title, shown(results, columns)) for title, columns in TABLES.items())
        if columns
    ]
    return write_page(
        path,
        "report.html",
        title,
        _facts(results, command, notes or {}),
        [(name, file, CAPTIONS.get(name, "")) for name, file in figures.items()],
        config,
        several=len(results) > 1,
        sections=sections,
        bounds=list(results[0].bounds),
        left_out=results[0].left_out,
        cutoff_m=results[0].cutoff_m,
        failed=failures(results),
        rows=list(rows(list(results))),
        snr_label=snr_label,
    )


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
