"""Builds objects from a configuration, trains and evaluates; besides the command line, all that knows Hydra.

`nodes` and `commands` know configurations alone; `build` and `weights` make objects of them, `training` and
`evaluation` use these.
"""

from sensing.runs.build import (
    Builder,
    build_deployment,
    build_estimators,
    build_front_ends,
    build_simulator,
    build_simulators,
)
from sensing.runs.evaluation import evaluate
from sensing.runs.nodes import make, plain
from sensing.runs.training import build_trainer, train
from sensing.runs.weights import check_resume, start_from

__all__ = [
    "Builder",
    "build_deployment",
    "build_estimators",
    "build_front_ends",
    "build_simulator",
    "build_simulators",
    "build_trainer",
    "check_resume",
    "evaluate",
    "make",
    "plain",
    "start_from",
    "train",
]
