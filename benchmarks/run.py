"""Ratios to peers, one command: `python benchmarks/run.py [row ...] [--repeats N] [--csv FILE]`.

One thread, both sides in one process and in turns, results checked equal; a failed check makes the run fail. A peer
that is not installed is named in its row: `pip install -e ".[bench]"` brings most of them.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch start their threads
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import csv
import math
import sys
from importlib import import_module
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.frame import Timing, measure

ROWS = ("music", "channel", "lmmse", "omp", "gospa", "bound", "fusion", "detection", "pipeline", "coverage", "memory")
COLUMNS = ("row", "what", "size", "ours", "peer", "peer's time", "ratio (10-90 %)", "target", "error", "note")


def milliseconds(seconds: float, per: str) -> str:
    """Three significant digits."""
    return "" if math.isnan(seconds) else f"{1e3 * seconds:.3g} ms/{per}"


def cells(row: str, timing: Timing, install: str | None) -> dict[str, str]:
    """One line of the table."""
    case, (low, middle, high) = timing.case, timing.ratio
    absent = "" if install is None else f"absent: {install}"
    values = (
        row,
        case.what,
        case.size,
        milliseconds(timing.ours, case.per[1]),
        absent if case.peer is None else case.peer_name,
        milliseconds(timing.peer, case.per[1]),
        "" if math.isnan(middle) else f"{middle:.3g} ({low:.3g}-{high:.3g})",
        "" if case.target is None else f">= {case.target:g}",
        f"{timing.error:.1e}" + (f" FAILED, tolerance {case.tolerance:.0e}" if timing.failed else ""),
        case.note,
    )
    return dict(zip(COLUMNS, values, strict=True))


def main() -> int:
    """Print a Markdown table line by line; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--csv", type=Path, metavar="FILE")
    args = parser.parse_args()
    unknown = sorted(set(args.rows) - set(ROWS))
    if unknown or args.repeats < 1:
        parser.error(f"rows must be of {ROWS}, got {unknown}" if unknown else "--repeats must be at least 1")
    torch.set_num_threads(1)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    table, failed = [], False
    for row in args.rows or ROWS:
        module = import_module(f"benchmarks.{row}")
        for case in module.cases(tiny=False):
            timing = measure(case, args.repeats)
            table.append(cells(row, timing, module.INSTALL))
            failed |= timing.failed
            print("| " + " | ".join(table[-1].values()) + " |", flush=True)
    if args.csv is not None:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
