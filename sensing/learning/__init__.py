"""Training with Lightning."""

from sensing.learning.calibration import CalibrationLearner, self_calibrated
from sensing.learning.callbacks import ParameterLog, SceneFigure
from sensing.learning.dense import DenseLearner
from sensing.learning.file_learner import FileLearner
from sensing.learning.fusion import FusionLearner
from sensing.learning.learner import Learner
from sensing.learning.surroundings import SurroundingsLearner

__all__ = [
    "CalibrationLearner",
    "DenseLearner",
    "FileLearner",
    "FusionLearner",
    "Learner",
    "ParameterLog",
    "SceneFigure",
    "SurroundingsLearner",
    "self_calibrated",
]
