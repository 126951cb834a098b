"""Training with Lightning."""

from sensing.learning.callbacks import ParameterLog, SceneFigure
from sensing.learning.learner import Learner

__all__ = ["Learner", "ParameterLog", "SceneFigure"]
