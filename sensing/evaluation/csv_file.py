"""CSV files that appear whole or not at all."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from sensing.data.atomic import atomic_path


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; None is an empty cell.

    Args:
        path: of the file.
        heads: names of the columns.
        rows: cells, as they are to be read.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(rows)
