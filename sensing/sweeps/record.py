"""What a job of a sweep leaves in its folder: `job.json` says what it was, whether it finished, and why not.

A sweep that is started again in the same folder takes finished jobs from their records and continues the others. The
command line writes the records, in whatever process the launcher runs a job; nothing heavy is imported at the top.
"""

import json
import logging
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sensing.errors import ConfigError

NAME = "job.json"
RUNNING, DONE, FAILED = "running", "done", "failed"
log = logging.getLogger(__name__)


class Record(NamedTuple):
    """One job."""

    overrides: list[str]
    status: str  # running, done or failed; an interrupted job is left running
    reason: str = ""  # of a failure
    seconds: float = 0.0
    value: float | None = None  # what a sweep minimises
    objective: str = ""  # its name


def read_record(folder: Path) -> Record | None:
    """The record of a folder, None where there is none that can be read."""
    try:
        return Record(**json.loads((folder / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Write the record; it appears whole or not at all."""
    from sensing.data.atomic import atomic_path  # its package imports torch

    with atomic_path(folder / NAME) as part:
        part.write_text(json.dumps(record._asdict(), indent=1), encoding="utf-8")


def recorded(task: Callable[[Any], Any], config: Any, folder: Path, overrides: list[str]) -> Any:
    """Run a job of a sweep and keep its record.

    A job that its record calls done is not run again; one that did not finish resumes from its last checkpoint, where
    it has one.

    Args:
        task: what the job does with its configuration.
        config: configuration of the job.
        folder: its run folder.
        overrides: what distinguishes it.

    Returns:
        What the task returns; for a job that was done before the number that a sweep minimises.

    Raises:
        ConfigError: the folder holds another job that did not fail.
    """
    before = read_record(folder)
    if before is not None and sorted(before.overrides) != sorted(overrides):
        if before.status != FAILED:
            there, here = (
                " ".join(word for word in one if word not in other)
                for one, other in ((before.overrides, overrides), (overrides, before.overrides))
            )
            raise ConfigError(
                f"hydra.sweep.dir must be new or that of the same sweep, got {folder} with a job of {there or 'less'} "
                f"instead of {here or 'less'}"
            )
        _set_aside(folder)
        before = None
    if before is not None and before.status == DONE:
        log.info("done before, not run again: %s", folder)
        return before.value
    if before is not None and config.get("ckpt_path", folder) is None and (good := _checkpoint(folder)) is not None:
        log.info("continued from %s", good)
        config.ckpt_path = str(good)
    record = Record(overrides, RUNNING, objective=str(config.get("objective", "")))
    write_record(folder, record)
    start = time.monotonic()
    try:
        value = task(config)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        write_record(folder, record._replace(status=FAILED, reason=reason, seconds=time.monotonic() - start))
        raise
    number = float(value) if isinstance(value, int | float) else None
    write_record(folder, record._replace(status=DONE, value=number, seconds=time.monotonic() - start))
    return value


def _set_aside(folder: Path) -> None:
    """Keep the checkpoints of a failed job apart from those of the job that replaces it."""
    if (saved := folder / "checkpoints").is_dir():
        number = len(list(folder.glob("checkpoints_failed_*")))
        saved.rename(folder / f"checkpoints_failed_{number}")


def _checkpoint(folder: Path) -> Path | None:
    """The checkpoint from which an interrupted job continues; one that was being written is removed."""
    for name in ("last.ckpt", "best.ckpt"):
        path = folder / "checkpoints" / name
        if path.is_file() and zipfile.is_zipfile(path):
            return path
        if path.is_file():
            log.warning("removed, the interruption left it unreadable: %s", path)
            path.unlink()
    return None
