"""Task `refinement`: iterations of all kinds, classical and learned, on the same scenes from the same starts."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sensing.data.scenes import SceneDataModule, Task
from sensing.errors import ConfigError
from sensing.estimator import LocationEstimator
from sensing.evaluation.refinement_output import write_refinement
from sensing.evaluation.statistics import Floats
from sensing.evaluation.sweep import progress_bar
from sensing.evaluation.task import Build
from sensing.inference.iteration import column_operator
from sensing.inference.unrolled import Unrolled
from sensing.metrics import nmse_db

DETECTED = "detected"
"""Start that the front end finds, instead of one that is so many standard deviations of the bound off the truth."""


class Method(NamedTuple):
    """A row of the table: iterations, once for every seed of their training."""

    unrolled: list[Unrolled]
    training_scenes: int  # of one seed; 0: nothing is learned

    @property
    def parameters(self) -> int:
        """Learned numbers."""
        learned = (p.numel() for p in self.unrolled[0].parameters() if p.requires_grad)
        return sum(learned) if self.training_scenes else 0


class Found(NamedTuple):
    """What a method did in one case, from one start, at one SNR."""

    case: str
    start: str
    snr_db: float
    method: str
    over_peb: Floats  # [seed scene] user error over the bound
    nmse_db: Floats  # [seed scene]
    fallback: NDArray[np.bool_]  # [seed scene]
    near: NDArray[np.bool_]  # [seed scene]
    seconds: float  # CPU time per scene


def refinement(
    build: Build,
    folder: str | Path,
    methods: Mapping[str, Mapping[str, Any]],
    starts: Sequence[float | str] = (8.0,),
    cases: Mapping[str, Mapping[str, Any]] | None = None,
    snr_db: Sequence[float] = (10.0,),
    reference: str = "",
    num_scenes: int = 600,
    split: str = "test",
    batch_size: int = 25,
    progress: bool = True,
    settings: str = "",
    command: str = "",
    notes: Mapping[str, str] | None = None,
) -> list[Found]:
    """Run all methods; write results.csv, per_scene.npz and report.html.

    Args:
        build: builds scenes and reads checkpoints.
        folder: run folder, made if absent.
        methods: by name, arguments of `Unrolled`, or `checkpoints`, those of one training with several seeds.
        starts: how far they are off the truth in standard deviations of the bound, or `detected`.
        cases: by name, values of the configuration that differ, by dotted key; None: none do.
        snr_db: SNR points [dB].
        reference: method with which the others are compared, scene by scene; empty: the first.
        num_scenes: scenes of each case.
        split: which stream of scenes.
        batch_size: scenes at once.
        progress: show a progress bar.
        settings: configuration as text, for the report.
        command: the command that made it, for the report.
        notes: further facts for the report, by name.

    Raises:
        SensingError: a value does not fit, before any work is done.
    """
    if not methods or (reference and reference not in methods):
        raise ConfigError(f"task.reference must be one of task.methods, got {reference!r} of {sorted(methods)}")
    for name, value in (("num_scenes", num_scenes), ("batch_size", batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"task.{name} must be a whole number >= 1, got {value!r}")
    for start in starts:
        if start != DETECTED and not (isinstance(start, int | float) and start >= 0):
            raise ConfigError(f"task.starts must be numbers >= 0 or {DETECTED!r}, got {start!r}")
    if split not in ("val", "test"):
        raise ConfigError(f"task.split must be val or test, got {split!r}")
    built = {name: _method(build, name, each) for name, each in methods.items()}
    plans = {name: build.varied(values) for name, values in (cases or {"default": {}}).items()}
    scenes = {name: plan.simulator() for name, plan in plans.items()}
    found: list[Found] = []
    total = num_scenes * len(plans) * len(snr_db) * len(starts)
    with progress_bar(progress) as bar:
        task = bar.add_task("refining", total=total)
        for case, plan in plans.items():
            for snr in snr_db:
                for start in starts:
                    bar.update(task, description=f"{case}, {snr:g} dB, start {start}")
                    amplitude = 0.0 if start == DETECTED else float(start)
                    data = SceneDataModule(
                        scenes[case], batch_size, val_scenes=num_scenes, test_scenes=num_scenes, val_snr_db=float(snr),
                        val_amplitude=amplitude, test_amplitude=amplitude, detected_every=0,
                    )  # fmt: skip
                    front_end = plan.classical() if start == DETECTED else None
                    parts = []
                    for first in range(0, num_scenes, batch_size):
                        numbers = range(first, min(first + batch_size, num_scenes))
                        drawn = torch.utils.data.default_collate([data.datasets[split][i] for i in numbers])
                        parts.append(_batch(built, data.task(drawn, split), front_end))
                        bar.advance(task, len(numbers))
                    found += [_joined(case, str(start), float(snr), name, [p[name] for p in parts]) for name in built]
    write_refinement(found, built, reference or next(iter(methods)), Path(folder), settings, command, notes)
    return found


def _method(build: Build, name: str, settings: Mapping[str, Any]) -> Method:
    if "checkpoints" not in settings:
        try:
            return Method([Unrolled(**settings)], 0)
        except TypeError as error:
            raise ConfigError(f"task.methods.{name} must hold arguments of Unrolled, got: {error}") from error
    if set(settings) != {"checkpoints"} or not settings["checkpoints"]:
        raise ConfigError(f"task.methods.{name} must hold nothing but a list of checkpoints, got {dict(settings)}")
    trained = [build.unrolled(each) for each in settings["checkpoints"]]
    return Method([each.unrolled for each in trained], trained[0].scenes)


class _Part(NamedTuple):
    over_peb: Floats
    nmse_db: Floats
    fallback: NDArray[np.bool_]
    near: NDArray[np.bool_]
    seconds: float  # of all scenes and seeds


def _batch(methods: Mapping[str, Method], task: Task, front_end: LocationEstimator | None) -> dict[str, _Part]:
    """All methods on one batch, in turns, so that whatever the machine does hits all."""
    example, deployment = task.example, task.deployment
    assert example.scene is not None
    assert example.channel is not None
    found = {}
    with torch.no_grad():
        coarse = None if front_end is None else _coarse(front_end, task)
        for name, method in methods.items():
            each, began = [], time.process_time()
            for unrolled in method.unrolled:
                if coarse is None:
                    assert task.start is not None
                    each.append(unrolled(example.observation, deployment, task.start))
                else:
                    assert front_end is not None
                    front_end.unrolled = unrolled
                    each.append(front_end.refine(example.observation, deployment, coarse)[0])
            seconds = time.process_time() - began
            errors = [(r.final.geometry.ue_position - example.scene.ue_position).norm(dim=-1) / task.peb for r in each]
            channels = [column_operator(r.final.geometry, deployment).matvec(r.final.expectation.mean) for r in each]
            found[name] = _Part(
                torch.stack(errors).numpy(),
                torch.stack([nmse_db(channel, example.channel) for channel in channels]).numpy(),
                torch.stack([r.fallback for r in each]).numpy(),
                torch.stack([r.near for r in each]).numpy(),
                seconds,
            )
    return found


def _coarse(front_end: LocationEstimator, task: Task) -> Any:
    observation, paths = front_end.detect(task.example.observation, task.deployment)
    return front_end.with_weak_paths(observation, task.deployment, paths, front_end.localizer(paths, task.deployment))


def _joined(case: str, start: str, snr_db: float, method: str, parts: Sequence[_Part]) -> Found:
    arrays = (np.concatenate([getattr(part, name) for part in parts], -1) for name in _Part._fields[:-1])
    over_peb, nmse, fallback, near = arrays
    return Found(
        case, start, snr_db, method, over_peb, nmse, fallback, near, sum(p.seconds for p in parts) / over_peb.size
    )
