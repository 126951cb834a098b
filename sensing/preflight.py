"""Checks of a whole configuration, the first thing that a command does.

They see plain dictionaries and import nothing heavy, so that a mistake is answered in a second.
"""

import os
from pathlib import Path

from sensing import options
from sensing.errors import ConfigError
from sensing.pretrained import SUFFIX

BELONGS = {
    "sensing.learning.FusionLearner": ("sensing.fusion.learned.LearnedFusion", "fusion", "drops"),
    "sensing.learning.DenseLearner": ("sensing.inference.dense_turbo.DenseTurbo", "dense", "dictionary"),
}
"""Learners of other things than scenes: their estimator, and the groups' options that go with it."""
LEARNED = {"unfolded": "checkpoint", "calibrated": "calibration", "adapted": "surroundings"}
"""Learned estimators of an evaluation, and the keys that name their weights."""
NOISE = ["known", "estimated"]
SCENE_MEASURES = ["loss", "error_over_peb_rms", "error_over_peb_median", "error_m_rms", "nmse_db"]
WITHOUT_GRADIENTS = ("sensing.learning.CalibrationLearner", "sensing.learning.SurroundingsLearner")
"""Learners whose updates have no step size."""
MEASURES = {
    "sensing.learning.Learner": SCENE_MEASURES,
    "sensing.learning.CalibrationLearner": SCENE_MEASURES,
    "sensing.learning.SurroundingsLearner": SCENE_MEASURES,
    "sensing.learning.FileLearner": ["loss", "held_out_over_noise_db", "error_m_rms", "error_m_median"],
    "sensing.learning.FusionLearner": ["loss", "error_m_rms", "error_m_50", "error_m_80", "error_m_90"],
    "sensing.learning.DenseLearner": ["loss", "above_genie_db", "mean_above_genie_db"],
}
"""What each learner logs and a sweep may minimise."""


def check_evaluation(config: options.Config) -> Path | None:
    """Check the keys of an evaluation, first of all; returns the observation file, None for synthetic scenes."""
    _check_command(config, "evaluate", "eval", foreign={"trainer", "optimizer", "loss", "callbacks", "ckpt_path"})
    options.names(config, "estimators", options.lookup(config, "available") or {})
    options.unfolded_weights(config)
    options.checkpoint(config, "calibration")
    options.checkpoint(config, "surroundings")
    _check_weights_are_used(config)
    _check_threads(config)
    options.choice(config, "noise", NOISE)
    options.integer(config, "eval.batch_size", low=1)
    _only(
        config,
        "eval",
        {"num_scenes", "snr_db", "sigma_over_bandwidth", "scatterer_cutoff_m", "batch_size", "progress"},
    )
    _only(
        config,
        "data",
        {"source", "path", "split", "half", "model_error", "multi_bounce", "line_of_sight"},
    )
    if options.choice(config, "data.source", ["synthetic", "file"]) == "file":
        if found := options.impaired(config):
            raise ConfigError(
                f"impairments must be none where data=file, whose observations are as they are, got {found}"
            )
        options.choice(config, "data.half", [None, "even", "odd"])
        return options.existing_file(config, "data.path")
    options.choice(config, "data.split", ["train", "val", "test", "sample"])
    options.integer(config, "eval.num_scenes", low=1)
    options.numbers(config, "eval.snr_db")
    options.positive(config, "eval.scatterer_cutoff_m")
    if options.lookup(config, "eval.sigma_over_bandwidth") is not None:
        options.numbers(config, "eval.sigma_over_bandwidth", low=0.0, allow_infinite=True)
    check_scene(config)
    return None


def _check_weights_are_used(config: options.Config) -> None:
    """Weights that no estimator takes: the table would not be what the command line looks like."""
    for name, key in LEARNED.items():
        given = options.lookup(config, key) not in (None, "auto")
        if given and options.lookup(config, "task") is None and name not in config["estimators"]:
            raise ConfigError(f"estimators must name {name!r}, which {key} is for, got {list(config['estimators'])}")


def check_training(config: options.Config) -> None:
    """Check the keys of a training, first of all."""
    _check_command(config, "train", "trainer", foreign={"eval", "available", "estimators", "checkpoint"})
    options.existing_file(config, "ckpt_path", optional=True)
    options.checkpoint(config, "init_from")
    export = options.lookup(config, "export")
    if export is not None and not (isinstance(export, str) and Path(export).suffix == SUFFIX):
        options.refuse("export", f"a file NAME{SUFFIX} or null", export)
    if export is not None:
        there = next(folder for folder in Path(export).resolve().parents if folder.exists())  # the rest will be made
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            options.refuse("export", "a file in a folder that can be written", export)
    if options.lookup(config, "ckpt_path") is not None and options.lookup(config, "init_from") is not None:
        raise ConfigError("ckpt_path (resume) and init_from (fine-tune) must not both be given, got both")
    _check_threads(config)
    options.integer(config, "seed", low=0)
    learner = options.choice(config, "learner", list(MEASURES))
    options.choice(config, "objective", [f"val/{name}" for name in MEASURES[learner]])
    if learner == "sensing.learning.FileLearner":
        _check_file_training(config)
    elif learner in BELONGS:
        _check_belongs(config, *BELONGS[learner])
    else:
        _check_scene_training(config)
    options.integer(config, "trainer.max_epochs", low=-1)
    options.integer(config, "data.batch_size", low=1)
    if learner not in WITHOUT_GRADIENTS:
        options.positive(config, "optimizer.lr")
    options.choice(config, "trainer.precision", [32, "32", "32-true"])
    _check_folder(config)


def _check_scene_training(config: options.Config) -> None:
    if options.lookup(config, "data.path") is not None:
        raise ConfigError("learner must be that of files where data.path is given (experiment=fine_tune), got Learner")
    check_scene(config)
    _check_learnable(config)
    options.numbers(config, "data.snr_db", length=2)


def _check_file_training(config: options.Config) -> None:
    if "hold_out" not in config["data"]:
        raise ConfigError("data must be file_training for this learner (experiment=fine_tune), got other data")
    options.existing_file(config, "data.path")
    options.choice(config, "data.half", [None, "even", "odd"])
    _check_learnable(config)


def _check_learnable(config: options.Config) -> None:
    options.choice(config, "noise", NOISE)
    adapted = config["learner"] == "sensing.learning.SurroundingsLearner"
    target = "sensing.adapted_estimator.build_adapted" if adapted else "sensing.estimator.build_estimator"
    learnable = options.lookup(config, "estimator._target_") == target
    if not learnable or options.lookup(config, "estimator.name") == "classical":
        got = options.lookup(config, "estimator.name") or options.lookup(config, "estimator._target_")
        say = "adapted" if adapted else "unfolded"
        raise ConfigError(f"estimator must have something to learn (say estimator={say}), got {got}, which has not")


def _check_belongs(config: options.Config, target: str, estimator: str, data: str) -> None:
    got = options.lookup(config, "estimator._target_")
    if got != target or "sampler" not in config["data"] or config.get(data) is None:
        raise ConfigError(
            f"estimator and data must be {estimator} and {data} (experiment={estimator}_train), got {got}"
        )


def _check_folder(config: options.Config) -> None:
    """A folder that holds checkpoints already is not written over."""
    folder = Path(config["output_dir"])
    used = sorted(path.name for path in (folder / "checkpoints").glob("*.ckpt"))
    requeued = any(folder.glob("hpc_ckpt_*.ckpt"))  # Lightning resumes a preempted Slurm job by itself
    if used and config["ckpt_path"] is None and not requeued:
        raise ConfigError(f"hydra.run.dir must be a new folder (or resume with ckpt_path=), got {folder} with {used}")


def check_scene(config: options.Config) -> None:
    """Check the keys of scenes that no constructor checks."""
    options.integer(config, "seed", low=0)
    options.integer(config, "ofdm.num_subcarriers", low=1)
    options.integer(config, "ofdm.pilot_step", low=1)
    _only(
        config,
        "scene",
        {
            "name",
            "clock_offset_std_over_bandwidth",
            "true_clock_offset_std_over_bandwidth",
            "deployment",
            "sampler",
        },
    )
    options.positive(config, "ofdm.spacing_hz")
    options.positive(config, "ofdm.carrier_hz")
    std = options.positive(config, "scene.clock_offset_std_over_bandwidth", allow_zero=True, allow_infinite=True)
    drawn = "scene.true_clock_offset_std_over_bandwidth"
    if options.lookup(config, drawn) is not None or std == float("inf"):
        options.positive(config, drawn, allow_zero=True)


def _check_command(config: options.Config, command: str, needed: str, foreign: set[str]) -> None:
    """An experiment of one command given to the other adds keys that nothing would read."""
    unread = sorted(foreign & set(config))
    if needed not in config or unread:
        raise ConfigError(f"{command}.py must get a configuration or experiment of its own, got one with {unread}")


def _only(config: options.Config, key: str, known: set[str]) -> None:
    """Keys that nothing reads: from `+key=value`, or from an experiment of the other command."""
    unknown = sorted(set(options.lookup(config, key) or {}) - known)
    if unknown:
        raise ConfigError(f"{key} must have no other keys than {', '.join(sorted(known))}, got {', '.join(unknown)}")


def _check_threads(config: options.Config) -> None:
    if options.lookup(config, "torch_threads") is not None:
        options.integer(config, "torch_threads", low=1)
