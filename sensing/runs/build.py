"""Builds scenes, estimators and front ends from a configuration."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sensing import options
from sensing.baselines import Detector
from sensing.containers import Deployment
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator
from sensing.evaluation.runner import front_end
from sensing.evaluation.task import Trained
from sensing.fusion.learned import LearnedFusion
from sensing.inference.dense_turbo import DenseTurbo
from sensing.preflight import LEARNED, check_scene
from sensing.runs.nodes import make, plain
from sensing.simulation import Simulator


def build_deployment(config: DictConfig) -> Deployment:
    """Stations of a configuration. Offsets are in units of 1 / bandwidth, which is that of all subcarriers."""
    grid = {name: value for name, value in config.ofdm.items() if name != "carrier_hz"}
    return make(
        config.scene.deployment,
        "scene.deployment",
        array=make(config.array, "array"),
        pilot_freq=make(grid, "ofdm"),
        carrier_hz=config.ofdm.carrier_hz,
        clock_offset_std=config.scene.clock_offset_std_over_bandwidth / _bandwidth(config),
    )


def build_simulator(config: DictConfig) -> Simulator:
    """Seeded synthetic scenes of a configuration.

    Raises:
        SensingError: a value does not fit; names its key.
    """
    check_scene(plain(config))
    drawn = config.scene.true_clock_offset_std_over_bandwidth
    std = None if drawn is None else drawn / _bandwidth(config)
    sampler = make(config.scene.sampler, "scene.sampler", clock_offset_std=std)
    impairments = make(config.impairments, "impairments")
    return Simulator(build_deployment(config), sampler, config.seed, impairments)


def build_simulators(config: DictConfig) -> list[Simulator]:
    """One simulator for each deviation of the clock offsets in `eval.sigma_over_bandwidth`; the scene's own for null.

    The scenes and their noise are the same in all, with the offsets scaled. Under a flat prior (inf) they are drawn
    with the largest finite deviation of the list, unless the scene says with which.
    """
    sigmas = config.eval.sigma_over_bandwidth
    if sigmas is None:
        return [build_simulator(config)]
    largest = max((sigma for sigma in sigmas if math.isfinite(sigma)), default=None)
    simulators = []
    for sigma in sigmas:
        varied = config.copy()
        varied.scene.clock_offset_std_over_bandwidth = sigma
        if math.isinf(sigma) and varied.scene.true_clock_offset_std_over_bandwidth is None:
            varied.scene.true_clock_offset_std_over_bandwidth = largest
        simulators.append(build_simulator(varied))
    return simulators


def build_estimators(config: DictConfig) -> dict[str, Any]:
    """The estimators asked for, by the name under which they appear in the results.

    A learned estimator without its weights is labelled `unfolded_untrained` and the like.

    Raises:
        SensingError: weights of another kind, or surroundings of another number of stations.
    """
    settings = plain(config)
    chosen = options.names(settings, "estimators", config.available)
    weights = {
        name: options.unfolded_weights(settings) if name == "unfolded" else options.checkpoint(settings, key)
        for name, key in LEARNED.items()
    }
    estimators: dict[str, Any] = {}
    for name in chosen:
        if (path := weights.get(name)) is not None:
            import sensing.learning as learning  # pulls lightning, which takes seconds to import

            if name == "adapted":
                estimators[name] = learning.SurroundingsLearner.load(path).estimator
                if settings["data"]["source"] == "synthetic":
                    estimators[name].surroundings.check(build_deployment(config))
                continue
            kind = learning.CalibrationLearner if name == "calibrated" else learning.Learner
            estimators[name] = kind.load(path).estimator
        else:
            label = f"{name}_untrained" if name in LEARNED else name
            estimators[label] = make(config.available[name], f"available.{name}")
    return estimators


def build_front_ends(config: DictConfig, estimators: Mapping[str, Any]) -> dict[str, Detector]:
    """The front ends that the estimators name, and no others; raises ConfigError for one that is not configured."""
    built: dict[str, Detector] = {}
    for name, estimator in estimators.items():
        wanted = front_end(estimator)
        if wanted is not None and wanted not in built:
            if wanted not in config.front_ends:
                raise ConfigError(f"front_ends must hold the {wanted!r} of {name}, got {sorted(config.front_ends)}")
            built[wanted] = make(config.front_ends[wanted], f"front_ends.{wanted}")
    return built


class Builder:
    """Builds what a task needs, from the run's configuration or a variation of it.

    Args:
        config: as composed from `conf/evaluate.yaml`.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config

    def varied(self, values: Mapping[str, Any]) -> "Builder":
        """The same with other values, by dotted key; raises ConfigError for a key that does not exist."""
        config = self.config.copy()
        for key, value in values.items():
            self.value(key)
            OmegaConf.update(config, key, value)
        return Builder(config)

    def value(self, key: str) -> Any:
        """Configured value of a dotted key, in plain containers; raises ConfigError for a key that does not exist."""
        found = OmegaConf.select(self.config, key, default=self)
        if found is self:
            raise ConfigError(f"a varied key must be one of the configuration, got {key!r}")
        return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found

    def simulator(self) -> Simulator:
        """Seeded scenes of `scene`."""
        return build_simulator(self.config)

    def fusion(self, checkpoint: str) -> LearnedFusion:
        """The learned fusion of a checkpoint."""
        from sensing.learning import FusionLearner  # pulls lightning, which takes seconds to import

        return FusionLearner.load(checkpoint).fusion

    def calibrated(self, num_scenes: int, snr_db: float, progress: bool, num_labels: int = 0) -> LocationEstimator:
        """The classical estimator, its arrays calibrated by scenes of which some have a known user."""
        from sensing.learning import self_calibrated

        node = plain(self.config)["available"]["classical"]
        settings = {name: value for name, value in node.items() if name not in ("_target_", "calibration")}
        return self_calibrated(self.simulator(), settings, num_scenes, snr_db, progress=progress, num_labels=num_labels)

    def unrolled(self, checkpoint: str) -> Trained:
        """The learned iterations of a checkpoint."""
        from sensing.learning import Learner  # pulls lightning, which takes seconds to import

        learner = Learner.load(checkpoint)
        return Trained(learner.estimator.unrolled, int(learner.scenes_seen))

    def classical(self) -> LocationEstimator:
        """The configured classical estimator."""
        estimator: LocationEstimator = make(self.config.available.classical, "available.classical")
        return estimator

    def dense(self, checkpoint: str) -> tuple[DenseTurbo, int]:
        """The turbo estimator of a dense dictionary, and the number of training problems behind it."""
        from sensing.learning.dense import DenseLearner, training_samples  # pulls lightning, which takes seconds

        return DenseLearner.load(checkpoint).turbo, training_samples(checkpoint)

    def network(self) -> Any:
        """Bound of `network`, a `sensing.bounds.radar.BoundModel`."""
        node = self.config.network
        scenes = {"simulator": self.simulator()} if "simulator" in node else {}
        return make(node, "network", **scenes)


def _bandwidth(config: DictConfig) -> float:
    return float(config.ofdm.num_subcarriers * config.ofdm.spacing_hz)
