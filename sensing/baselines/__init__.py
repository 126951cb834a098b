"""Reference estimators: what plain path-wise fitting reaches, and what knowing part of the truth would buy.

All follow the estimator protocol of `sensing.estimator`. Two attributes tell an evaluation what is behind them:
`front_end`, the name of the detector whose paths are part of the method (and its time part of the method's time), None
for a method without; estimators with the same one share its paths. `bound`, the name of the bound that an error is
compared with.
"""

from sensing.baselines.genie import GenieLmmse
from sensing.baselines.grid_estimators import GridEstimator, GridOmp, GridSbl
from sensing.baselines.ideal_sync import IdealSync, shift_ranges, synchronous
from sensing.baselines.location_grid import CloudGrid, RegionGrid
from sensing.baselines.path_ls import NompLs, PathLs
from sensing.estimator import Detector

__all__ = [
    "CloudGrid",
    "Detector",
    "GenieLmmse",
    "GridEstimator",
    "GridOmp",
    "GridSbl",
    "IdealSync",
    "NompLs",
    "PathLs",
    "RegionGrid",
    "shift_ranges",
    "synchronous",
]
