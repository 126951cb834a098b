"""Cooperative localization and channel estimation with asynchronous base stations.

The names below are the public interface. They are imported on first use, because torch and lightning take seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    # arrays, pilots, scenes
    "upa": "sensing.arrays",
    "ula": "sensing.arrays",
    "elements": "sensing.arrays",
    "pilot_frequencies": "sensing.ofdm",
    "build_deployment": "sensing.simulation",
    "Impairments": "sensing.simulation",
    "SceneSampler": "sensing.simulation",
    "Simulator": "sensing.simulation",
    # what travels between modules
    "Deployment": "sensing.containers",
    "Scene": "sensing.containers",
    "Observation": "sensing.containers",
    "Example": "sensing.containers",
    "PathEstimates": "sensing.containers",
    "Estimate": "sensing.containers",
    "Flag": "sensing.containers",
    # estimators
    "PathDetector": "sensing.coarse",
    "CoarseLocalizer": "sensing.coarse",
    "estimate_noise_variance": "sensing.coarse",
    "Unrolled": "sensing.inference.unrolled",
    "FusionWeights": "sensing.fusion",
    "LocationEstimator": "sensing.estimator",
    "build_estimator": "sensing.estimator",
    "AdaptedEstimator": "sensing.adapted_estimator",
    "learn_surroundings": "sensing.surroundings_fit",
    "learn_clock": "sensing.surroundings_fit",
    "Surroundings": "sensing.coarse.surroundings",
    "PathLs": "sensing.baselines",
    "NompLs": "sensing.baselines",
    "GenieLmmse": "sensing.baselines",
    "IdealSync": "sensing.baselines",
    "GridOmp": "sensing.baselines",
    "GridSbl": "sensing.baselines",
    "CloudGrid": "sensing.baselines",
    "RegionGrid": "sensing.baselines",
    # bounds and metrics
    "UplinkBound": "sensing.bounds",
    "uplink_bound": "sensing.bounds",
    "uplink_information": "sensing.bounds",
    "position_error": "sensing.metrics",
    "nmse_db": "sensing.metrics",
    "gospa": "sensing.metrics",
    "summarize": "sensing.metrics",
    # files
    "ObservationSet": "sensing.data",
    "read_observations": "sensing.data",
    "write_observations": "sensing.data",
    "export_scenes": "sensing.data",
    "write_estimates": "sensing.data",
    "from_sionna": "sensing.data.importers",
    "from_deepmimo": "sensing.data.importers",
    "write_rays": "sensing.data.importers",
    # evaluation and training
    "run_sweep": "sensing.evaluation",
    "evaluate_file": "sensing.evaluation",
    "write_evaluation": "sensing.evaluation",
    "print_summary": "sensing.evaluation",
    "SceneDataModule": "sensing.data.scenes",
    "BoundNormalisedLoss": "sensing.losses",
    "Learner": "sensing.learning",
    # errors
    "SensingError": "sensing.errors",
    "ShapeError": "sensing.errors",
    "DomainError": "sensing.errors",
    "ConfigError": "sensing.errors",
    "FileFormatError": "sensing.errors",
    "CheckpointError": "sensing.errors",
    "NumericalError": "sensing.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sensing' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from sensing.adapted_estimator import AdaptedEstimator
    from sensing.arrays import elements, ula, upa
    from sensing.baselines import CloudGrid, GenieLmmse, GridOmp, GridSbl, IdealSync, NompLs, PathLs, RegionGrid
    from sensing.bounds import UplinkBound, uplink_bound, uplink_information
    from sensing.coarse import CoarseLocalizer, PathDetector, estimate_noise_variance
    from sensing.coarse.surroundings import Surroundings
    from sensing.containers import Deployment, Estimate, Example, Flag, Observation, PathEstimates, Scene
    from sensing.data import ObservationSet, export_scenes, read_observations, write_estimates, write_observations
    from sensing.data.importers import from_deepmimo, from_sionna, write_rays
    from sensing.data.scenes import SceneDataModule
    from sensing.errors import (
        CheckpointError,
        ConfigError,
        DomainError,
        FileFormatError,
        NumericalError,
        SensingError,
        ShapeError,
    )
    from sensing.estimator import LocationEstimator, build_estimator
    from sensing.evaluation import evaluate_file, print_summary, run_sweep, write_evaluation
    from sensing.fusion import FusionWeights
    from sensing.inference.unrolled import Unrolled
    from sensing.learning import Learner
    from sensing.losses import BoundNormalisedLoss
    from sensing.metrics import gospa, nmse_db, position_error, summarize
    from sensing.ofdm import pilot_frequencies
    from sensing.simulation import Impairments, SceneSampler, Simulator, build_deployment
    from sensing.surroundings_fit import learn_clock, learn_surroundings
