"""The jobs of a sweep as their records and results say, and one table of all their numbers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sensing.evaluation.csv_file import write_csv
from sensing.sweeps.record import NAME, Record, read_record

RESULTS = ("results.csv", "training.csv")
"""Tables of a job, of evaluate.py and of train.py; the first that exists goes into that of the sweep."""


class Job(NamedTuple):
    """One job of a sweep."""

    name: str  # its folder, usually its number
    record: Record
    varied: dict[str, str]  # overrides that are not the same in all jobs
    results: list[dict[str, str]]  # rows of its table


def read_jobs(folder: Path) -> list[Job]:
    """Jobs of a sweep in the order of their numbers."""
    found = {path.parent: read_record(path.parent) for path in folder.rglob(NAME)}
    records = {path: record for path, record in sorted(found.items(), key=_place) if record is not None}
    values = {path: dict(map(_split, record.overrides)) for path, record in records.items()}
    keys = list(dict.fromkeys(key for each in values.values() for key in each))
    varied = [key for key in keys if len({each.get(key) for each in values.values()}) > 1]
    return [
        Job(
            str(path.relative_to(folder)), record, {key: values[path].get(key, "") for key in varied}, _read_table(path)
        )
        for path, record in records.items()
    ]


def write_jobs(path: Path, jobs: Sequence[Job]) -> None:
    """Write sweep.csv: a row for each row of each job's table, and one for a job without; all values as they were."""
    varied = list(jobs[0].varied)
    columns = list(dict.fromkeys(key for job in jobs for row in job.results for key in row))
    heads = ["job", "status", "reason", "seconds", "objective", "objective_value", *varied]
    named = [f"results_{key}" if key in heads else key for key in columns]
    rows = []
    for job in jobs:
        record = job.record
        of_job = [job.name, record.status, record.reason, f"{record.seconds:.1f}", record.objective, record.value]
        for result in job.results or [{}]:
            rows.append([*of_job, *job.varied.values(), *(result.get(key) for key in columns)])
    write_csv(path, [*heads, *named], rows)


def _place(item: tuple[Path, Record | None]) -> tuple[bool, int, str]:
    """By number, then by name."""
    name = item[0].name
    return (not name.isdigit(), int(name) if name.isdigit() else 0, str(item[0]))


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def _read_table(folder: Path) -> list[dict[str, str]]:
    for name in RESULTS:
        if (folder / name).is_file():
            with (folder / name).open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
    return []
