"""Everything that an evaluation leaves in its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sensing.evaluation.figures import save_figures
from sensing.evaluation.report import write_report
from sensing.evaluation.result import SweepResult
from sensing.evaluation.tables import write_per_scene, write_results


def write_evaluation(
    results: SweepResult | Sequence[SweepResult],
    folder: str | Path,
    title: str = "Evaluation",
    config: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Write results.csv, per_scene.npz, figures/*.png and report.html.

    Args:
        results: the evaluation, one result for each deviation of the clock offsets.
        folder: run folder, made if absent.
        title: heading of the report.
        config: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Returns:
        Path of the report.
    """
    folder, results = Path(folder), [results] if isinstance(results, SweepResult) else list(results)
    write_results(results, folder / "results.csv")
    write_per_scene(results, folder / "per_scene.npz")
    figures = save_figures(results, folder / "figures")
    return write_report(results, folder / "report.html", figures, title, config, command, notes)
