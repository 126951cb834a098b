"""Read an observation file and check all of it (HDF5, see docs/observation_file.md)."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sensing.data.schema import ATTRIBUTES, FIELDS, FORMAT, VERSION, Field, ObservationSet, check_layout, unpack
from sensing.errors import ConfigError, DomainError, FileFormatError, SensingError


def read_observations(path: str | Path, scenes: slice | None = None) -> ObservationSet:
    """Read and check an observation file.

    Names, types and shapes are checked on the whole file before a value is read, values on the scenes that are read.

    Args:
        path: HDF5 file.
        scenes: read only these scenes; all by default.

    Returns:
        Deployment, observations and, where the file has it, the truth; in double precision.

    Raises:
        FileFormatError: the file cannot be read or does not follow the schema; says which file and field, what was
            expected and what came.
        ConfigError: `scenes` selects nothing.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            carrier_hz, source = _read_attributes(file)
            datasets = _datasets(file)
            sizes = check_layout({name: (dataset.shape, dataset.dtype) for name, dataset in datasets.items()})
            rows = _rows(scenes, sizes["scene"])
            arrays = {name: _read_dataset(dataset, FIELDS[name], rows) for name, dataset in datasets.items()}
        return unpack(arrays, carrier_hz, source)
    except ConfigError:
        raise
    except SensingError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # h5py's, depending on what is broken
        raise FileFormatError(f"{path}: must be a complete, readable HDF5 file, got: {error}") from error


def _read_attributes(file: h5py.File) -> tuple[float, str]:
    """Check format and version; return carrier and source."""
    found = {name: _plain(value) for name, value in file.attrs.items()}
    if found.get("format") != FORMAT:
        raise FileFormatError(f"attribute format must be {FORMAT!r}, got {found.get('format', 'nothing')!r}")
    if found.get("version") != VERSION:
        raise FileFormatError(f"attribute version must be {VERSION}, got {found.get('version', 'nothing')!r}")
    missing, unknown = [a for a in ATTRIBUTES if a not in found], sorted(set(found) - set(ATTRIBUTES))
    if missing or unknown:
        raise FileFormatError(f"attributes must be {', '.join(ATTRIBUTES)}; missing: {missing}, unknown: {unknown}")
    carrier, source = found["carrier_hz"], found["source"]
    if isinstance(carrier, bool) or not isinstance(carrier, int | float):
        raise FileFormatError(f"attribute carrier_hz must be a number, got {carrier!r}")
    if not isinstance(source, str):
        raise FileFormatError(f"attribute source must be a text, got {source!r}")
    return float(carrier), source


def _plain(value: Any) -> Any:
    """An attribute as a Python value: MATLAB writes arrays of one number, and texts as bytes."""
    value = np.asarray(value)
    value = value.item() if value.size == 1 else value.tolist()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    groups = {name.split("/")[0] for name in FIELDS if "/" in name}
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = node
        elif name not in groups:
            raise FileFormatError(f"unknown group {name}; expected only {', '.join(sorted(groups))}")

    file.visititems(visit)
    return found


def _rows(scenes: slice | None, count: int) -> slice:
    start, stop, step = (slice(None) if scenes is None else scenes).indices(count)
    if step < 1 or len(range(start, stop, step)) == 0:
        raise ConfigError(f"scenes must select some of the file's {count} scenes in rising order, got {scenes}")
    return slice(start, stop, step)


def _read_dataset(dataset: h5py.Dataset, field: Field, rows: slice) -> np.ndarray:
    raw = dataset[rows] if field.axes.startswith("scene") else dataset[()]
    if field.kind == "complex":
        if raw.dtype.names is None:
            return raw.astype(np.complex128)
        real, imag = ("real", "imag") if "real" in raw.dtype.names else ("r", "i")
        return raw[real] + 1j * raw[imag].astype(np.float64)
    if field.kind == "bool":
        if not np.isin(raw, (0, 1)).all():
            raise DomainError(f"{field.name} must be true or false (1 or 0), got {raw.min()} to {raw.max()}")
        return raw.astype(np.bool_)
    return np.asarray(raw, np.float64).reshape(raw.shape if field.axes else ())
