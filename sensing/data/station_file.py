"""Stations' ranges and angles of targets as a CSV file: one row for each drop and station (docs/fusion.md).

    drop,station,x_m,y_m,z_m,range_m,azimuth_deg,elevation_deg,range_std_m,angle_std_deg[,true_x_m,true_y_m,true_z_m]

An empty range, or two empty angles, mean that the station did not measure it. A drop may have any number of stations.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from sensing.data.atomic import atomic_path
from sensing.errors import FileFormatError
from sensing.fusion.measurements import LARGEST, SHARPEST, StationMeasurements

PLACE = ("x_m", "y_m", "z_m")
COLUMNS = ("drop", "station", *PLACE, "range_m", "azimuth_deg", "elevation_deg", "range_std_m", "angle_std_deg")
TRUTH = ("true_x_m", "true_y_m", "true_z_m")
LIMITS = {
    "range_m": (0.0, 1e9),
    "azimuth_deg": (-360.0, 360.0),
    "elevation_deg": (-90.0, 90.0),
    **dict.fromkeys((*PLACE, *TRUTH), (-1e9, 1e9)),
}


class StationDrop(NamedTuple):
    """One target as its stations see it."""

    name: str
    stations: list[str]
    measured: StationMeasurements  # [1 bs]; deviations infinite where not measured
    position: Tensor | None  # [xyz] the true one, where the file tells [m]

    @property
    def num_stations(self) -> int:
        """Stations that measured something."""
        return int((self.measured.precision > 0).any(-2).sum())

    @property
    def modality(self) -> str:
        """`toa` where there are only ranges, `aoa` where only directions, else `hybrid`."""
        ranges, directions = (self.measured.precision > 0).any(-1)[0].tolist()
        return "toa" if ranges and not directions else "aoa" if directions and not ranges else "hybrid"


class StationFile(NamedTuple):
    """What a file holds."""

    drops: list[StationDrop]  # in the order of their first rows
    ignored: list[str]  # columns that nobody reads


class _Row(NamedTuple):
    """A row whose cells have been checked one by one."""

    line: int
    value: dict[str, float | None]  # None: empty cell


def read_stations(path: str | Path) -> StationFile:
    """Read and check a file.

    Args:
        path: of the CSV file, with the columns of the module's docstring in any order.

    Returns:
        The drops, and the names of further columns.

    Raises:
        FileFormatError: a column is missing, or a cell does not fit; the message names line and column.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path} must be a readable CSV file, got {type(error).__name__}: {error}") from error
    if not lines:
        raise FileFormatError(f"{path} must have a line with the names of its columns, got an empty file")
    heads = lines[0][1]
    missing = [name for name in COLUMNS if name not in heads]
    if any(name in heads for name in TRUTH):
        missing += [name for name in TRUTH if name not in heads]
    if missing or len(set(heads)) < len(heads):
        raise FileFormatError(f"{path} must have each column once, separated by commas; missing {missing}, got {heads}")
    if len(lines) == 1:
        raise FileFormatError(f"{path} must have a row below the names of its columns, got none")
    drops: dict[str, dict[str, _Row]] = {}
    homes: dict[str, _Row] = {}
    for line, cells in lines[1:]:
        if len(cells) != len(heads):
            raise FileFormatError(f"{path}, line {line} must have {len(heads)} cells as line 1 has, got {len(cells)}")
        _add(_Row(line, {}), dict(zip(heads, cells, strict=True)), drops, homes, path)
    found = [_drop(name, stations, path) for name, stations in drops.items()]
    return StationFile(found, [name for name in heads if name not in (*COLUMNS, *TRUTH)])


def _add(
    row: _Row, cells: Mapping[str, str], drops: dict[str, dict[str, _Row]], homes: dict[str, _Row], path: Path
) -> None:
    """Check a row, and put it with the others of its drop."""
    for name in ("drop", "station"):
        if not cells[name]:
            _refuse(path, row.line, name, "a name", "an empty cell")
    for name in (*COLUMNS[2:], *(name for name in TRUTH if name in cells)):
        row.value[name] = _number(cells[name], name, row.line, path)
    value = row.value
    for name in PLACE:
        if value[name] is None:
            _refuse(path, row.line, name, "a number", "an empty cell")
    for first, second in (("azimuth_deg", "elevation_deg"), ("elevation_deg", "azimuth_deg")):
        if value[first] is not None and value[second] is None:
            _refuse(path, row.line, second, f"given where {first} is", "an empty cell")
    for measured, std in (("range_m", "range_std_m"), ("azimuth_deg", "angle_std_deg")):
        if value[measured] is not None and value[std] is None:
            _refuse(path, row.line, std, f"given where {measured} is", "an empty cell")
    drop, station = cells["drop"], cells["station"]
    rows = drops.setdefault(drop, {})
    if station in rows:
        first_line = rows[station].line
        _refuse(path, row.line, "station", f"once in drop {drop!r}", f"{station!r} again, first in line {first_line}")
    home = homes.setdefault(station, row)
    _same(row, home, PLACE, f"station {station!r} (a station that moves needs a name for each place)", path)
    if rows:
        _same(row, next(iter(rows.values())), [name for name in TRUTH if name in cells], f"drop {drop!r}", path)
    rows[station] = row


def _number(text: str, name: str, line: int, path: Path) -> float | None:
    """A cell as a number in its range; None where it is empty."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        _refuse(path, line, name, "a number", repr(text))
    low, high = LIMITS.get(name, (0.0, math.inf))
    if name.endswith(("_std_m", "_std_deg")):
        if not (value > 0 and SHARPEST <= (math.radians(value) if name.endswith("_deg") else value) <= LARGEST):
            expected = f"a number > 0 from {SHARPEST:g} to {LARGEST:g} m or rad (without a measurement: an empty cell)"
            _refuse(path, line, name, expected, text)
    elif not low <= value <= high:  # refuses NaN too
        _refuse(path, line, name, f"from {low:g} to {high:g}", text)
    return value


def _same(row: _Row, first: _Row, names: Sequence[str], whose: str, path: Path) -> None:
    """Raise FileFormatError unless two rows agree."""
    for name in names:
        old, new = ("empty" if r.value[name] is None else f"{r.value[name]:.12g}" for r in (first, row))
        if old != new:
            _refuse(path, row.line, name, f"{old} as in line {first.line}, both of {whose}", new)


def _refuse(path: Path, line: int, column: str, expected: str, got: str) -> NoReturn:
    raise FileFormatError(f"{path}, line {line}, column {column} must be {expected}, got {got}")


def _drop(name: str, stations: Mapping[str, _Row], path: Path) -> StationDrop:
    """The rows of a drop as tensors."""
    rows = list(stations.values())

    def column(key: str, absent: float, given_by: str) -> Tensor:
        found = [absent if row.value[given_by] is None else row.value[key] for row in rows]
        return torch.tensor([found], dtype=torch.float64)

    measured = StationMeasurements(
        bs_position=torch.tensor([[row.value[key] for key in PLACE] for row in rows], dtype=torch.float64),
        range_m=column("range_m", 0.0, "range_m"),
        azimuth=column("azimuth_deg", 0.0, "azimuth_deg").deg2rad(),
        elevation=column("elevation_deg", 0.0, "azimuth_deg").deg2rad(),
        range_std=column("range_std_m", math.inf, "range_m"),
        angle_std=column("angle_std_deg", math.inf, "azimuth_deg").deg2rad(),
    )
    truth = [rows[0].value.get(key) for key in TRUTH]
    known = [value for value in truth if value is not None]
    if len(known) in (1, 2):
        column_name = TRUTH[truth.index(None)]
        _refuse(path, rows[0].line, column_name, "given where the other coordinates are", "an empty cell")
    position = torch.tensor(known, dtype=torch.float64) if known else None
    return StationDrop(name, list(stations), measured, position)


def write_stations(path: str | Path, measured: StationMeasurements, position: Tensor | None = None) -> Path:
    """Write measurements, such as those made of a detector's output, as a file that `read_stations` reads.

    Args:
        path: of the file.
        measured: [drop bs]; deviations infinite where not measured.
        position: [drop xyz] true ones, where known [m].

    Returns:
        The path.

    Raises:
        ShapeError, DomainError: a field does not fit.
    """
    where = measured.bs_position.expand(*measured.range_m.shape, 3)
    seen = measured.members.any(-1)  # a drop without any measurement is fine
    StationMeasurements(where[seen], *(field[seen] for field in measured[1:])).validate()
    place = where.tolist()
    ranges = zip(measured.range_m.tolist(), measured.range_std.tolist(), strict=True)
    angles = (field.rad2deg().tolist() for field in (measured.azimuth, measured.elevation, measured.angle_std))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(TRUTH if position is not None else ())])
        for drop, (where, (metres, deviation), turned, up, spread) in enumerate(
            zip(place, ranges, *angles, strict=True)
        ):
            truth = [] if position is None else [f"{value:.9g}" for value in position[drop].tolist()]
            for b in range(len(where)):
                has_range, has_angle = math.isfinite(deviation[b]), math.isfinite(spread[b])
                cells = [metres[b] if has_range else None, *((turned[b], up[b]) if has_angle else (None, None))]
                cells += [deviation[b] if has_range else None, spread[b] if has_angle else None]
                numbers = ["" if value is None else f"{value:.9g}" for value in [*where[b], *cells]]
                writer.writerow([drop, b, *numbers, *truth])
    return Path(path)
