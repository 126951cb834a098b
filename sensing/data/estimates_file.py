"""What the estimators found, as a table for people (`estimates.csv`) and in full (`estimates.npz`)."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from sensing.checks import check_shape
from sensing.containers import Deployment, Estimate, Flag
from sensing.data.atomic import atomic_path

_AXES = {
    "channel": "scene bs ant sc",
    "ue_position": "scene xyz",
    "clock_offset": "scene bs",
    "covariance": "scene unknown unknown",
    "scatterer_position": "scene node xyz",
    "scatterer_covariance": "scene node xyz xyz",
    "scatterer_mask": "scene node",
    "support": "scene bs node",
    "gain": "scene bs node",
    "cost_per_dof": "scene",
    "flags": "scene",
}


def write_estimates(
    folder: str | Path, deployment: Deployment, estimates: Mapping[str, Estimate], scene_index: Sequence[int]
) -> tuple[Path, Path]:
    """Write `estimates.csv` and `estimates.npz`; both are complete before either appears under its name.

    The table has one row per scene and estimator; a cell is empty where the estimator has no such output, `flagged` is
    1 where it doubts its own solution. The archive has `scene` [scene], `estimators`, and per estimator, for example,
    `classical/ue_position`: every field of `Estimate` that is not None, and `classical/flag_reasons`, texts such as
    `poor_fit|second_mode`. Channels are stored in single precision.

    Args:
        folder: where to write; made when it does not exist.
        deployment: the stations of the estimates.
        estimates: estimates of the same scenes, by the name of the estimator; batch axis [scene].
        scene_index: number of every scene, for example its row in the observation file.

    Returns:
        The two paths.

    Raises:
        ShapeError: a field does not fit the deployment or the number of scenes.
    """
    arrays = {name: _to_numpy(name, estimate, deployment, len(scene_index)) for name, estimate in estimates.items()}
    stations = len(deployment.bs_position)
    header = ["scene", "estimator", *(f"ue_{axis}_m" for axis in "xyz"), *(f"var_{axis}_m2" for axis in "xyz")]
    header += [*(f"clock_offset_s_{station}" for station in range(stations)), "flagged"]
    table, archive = Path(folder) / "estimates.csv", Path(folder) / "estimates.npz"
    with atomic_path(table) as table_part, atomic_path(archive) as archive_part:
        with open(table_part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(_rows(arrays, scene_index, stations))
        with open(archive_part, "wb") as file:
            fields = {f"{name}/{field}": value for name, group in arrays.items() for field, value in group.items()}
            names = np.array(list(arrays), dtype=np.str_)
            np.savez(file, scene=np.asarray(scene_index, np.int64), estimators=names, **fields)  # type: ignore[arg-type]
    return table, archive


def _rows(arrays: Mapping[str, dict[str, np.ndarray]], scene_index: Sequence[int], stations: int) -> Iterator[list]:
    for i, scene in enumerate(scene_index):
        for name, fields in arrays.items():
            position = fields["ue_position"][i].tolist() if "ue_position" in fields else [""] * 3
            variance = fields["covariance"][i].diagonal()[:3].tolist() if "covariance" in fields else [""] * 3
            offset = fields["clock_offset"][i].tolist() if "clock_offset" in fields else [""] * stations
            flagged = int(fields["flags"][i] != 0) if "flags" in fields else ""
            yield [int(scene), name, *position, *variance, *offset, flagged]


def _to_numpy(name: str, estimate: Estimate, deployment: Deployment, scenes: int) -> dict[str, np.ndarray]:
    """Check the axes of an estimate and return the fields that it has."""
    stations = len(deployment.bs_position)
    sizes = {"scene": scenes, "bs": stations, "xyz": 3, "unknown": 3 + stations}
    sizes |= {"ant": len(deployment.antenna_local), "sc": len(deployment.pilot_freq)}
    arrays = {}
    for field, axes in _AXES.items():
        value: Tensor | None = getattr(estimate, field)
        if value is not None:
            sizes = check_shape(f"{name}.{field}", value, axes, **sizes)
            arrays[field] = value.detach().cpu().numpy()
    arrays["channel"] = arrays["channel"].astype(np.complex64)
    if "flags" in arrays:
        arrays["flag_reasons"] = np.array([Flag.describe(int(bits)) for bits in arrays["flags"]], dtype=np.str_)
    return arrays
