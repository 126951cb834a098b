"""Reference estimators: what plain path-wise fitting reaches, and what knowing part of the truth would buy.

All follow the estimator protocol of `sensing.estimator`. Three class attributes tell an evaluation what is behind them:
`uses_paths`, whether detected paths are part of the method (and their time part of the method's time); `front_end`, the
name of the detector that they come from, so that estimators with the same one share it; `bound`, the name of the bound
that an error is compared with.
"""

from sensing.baselines.genie import GenieLmmse
from sensing.baselines.ideal_sync import IdealSync, shift_ranges, synchronous
from sensing.baselines.path_ls import Detector, NompLs, PathLs

__all__ = ["Detector", "GenieLmmse", "IdealSync", "NompLs", "PathLs", "shift_ranges", "synchronous"]
