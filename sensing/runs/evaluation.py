"""Evaluates estimators, or runs a task, as a configuration says."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sensing.about import about_run
from sensing.evaluation.files import evaluate_file
from sensing.evaluation.output import write_evaluation
from sensing.evaluation.summary import print_summary
from sensing.evaluation.sweep import run_sweep
from sensing.preflight import check_evaluation
from sensing.runs.build import Builder, build_estimators, build_front_ends, build_simulators
from sensing.runs.commands import own_command
from sensing.runs.nodes import make, plain, set_threads


def evaluate(config: DictConfig) -> dict[str, str]:
    """Run estimators on synthetic scenes or on a file, and write tables, figures and a report.

    Args:
        config: as composed from `conf/evaluate.yaml`.

    Returns:
        `folder` and `report`: the run folder and the report in it.

    Raises:
        SensingError: before any work is done, if a key does not fit.
    """
    settings = plain(config)
    path = check_evaluation(settings)
    set_threads(settings)
    task = settings.get("task")
    estimators = {} if task is not None else build_estimators(config)
    folder, about = Path(settings["output_dir"]), about_run(settings, estimators, own_command("evaluate"))
    report = folder / "report.html"
    if task is not None:
        text = {"settings": about["config"], "command": about["command"], "notes": about["notes"]}
        make(config.task, "task", build=Builder(config), folder=folder, **text)
        print(f"report: {report}")
        return {"folder": str(folder), "report": str(report)}
    front_ends = build_front_ends(config, estimators)
    common: dict[str, Any] = {
        "batch_size": config.eval.batch_size,
        "progress": config.eval.progress,
        "noise": config.noise,
    }
    if path is not None:
        half = settings["data"]["half"]
        results = [evaluate_file(path, estimators, front_ends, folder, half=half, **common, **about)]
    else:
        snr_db, count, cutoff_m = (settings["eval"][key] for key in ("snr_db", "num_scenes", "scatterer_cutoff_m"))
        split = settings["data"]["split"]
        results = [
            run_sweep(simulator, estimators, front_ends, snr_db, count, split, cutoff_m=cutoff_m, **common)
            for simulator in build_simulators(config)
        ]
        write_evaluation(results, folder, **about)
    print_summary(results)
    print(f"report: {report}")
    return {"folder": str(folder), "report": str(report)}
