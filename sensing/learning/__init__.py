"""Training with Lightning."""

from sensing.learning.calibration import CalibrationLearner, self_calibrated
from sensing.learning.callbacks import ParameterLog, SceneFigure
from sensing.learning.fusion import FusionLearner
from sensing.learning.learner import Learner

__all__ = ["CalibrationLearner", "FusionLearner", "Learner", "ParameterLog", "SceneFigure", "self_calibrated"]
