"""Estimators side by side: sweeps over SNR, observation files, tables, figures and the report."""

from sensing.evaluation.files import evaluate_file
from sensing.evaluation.output import write_evaluation
from sensing.evaluation.result import SweepResult
from sensing.evaluation.summary import print_summary
from sensing.evaluation.sweep import run_sweep

__all__ = ["SweepResult", "evaluate_file", "print_summary", "run_sweep", "write_evaluation"]
