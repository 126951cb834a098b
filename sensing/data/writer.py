"""Write an observation file from a measurement or from simulated scenes (HDF5, see docs/observation_file.md)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from sensing.containers import Deployment, Observation, Scene
from sensing.data.atomic import atomic_path
from sensing.data.schema import DEPLOYMENT, FIELDS, FORMAT, VERSION, Field, check_layout, unpack
from sensing.errors import ConfigError, DomainError, ShapeError
from sensing.simulation import Simulator

_STORED = {"real": np.float64, "complex": np.complex64, "bool": np.bool_}


def write_observations(
    path: str | Path,
    deployment: Deployment,
    observation: Observation,
    *,
    scene: Scene | None = None,
    channel: Tensor | np.ndarray | None = None,
    los_exists: Tensor | np.ndarray | None = None,
    source: str = "measured",
) -> None:
    """Write an observation file, after the reader's own checks; it appears under `path` whole or not at all.

    The fields of all containers may be tensors, numpy arrays or lists.

    Args:
        path: file to write, replaced if it exists.
        deployment: stations, array, pilots and priors.
        observation: y [scene bs ant sc] (stored in single precision), noise_var [scene bs] (None or NaN: unknown).
        scene: the truth where it is known. A part that is None, or NaN throughout, is left out. Gains are not stored,
            and points that no station sees become padding.
        channel: [scene bs ant sc] noise-free y.
        los_exists: [scene bs] bool.
        source: where the data come from.

    Raises:
        ShapeError, DomainError, FileFormatError: names the field, as the file calls it.
    """
    values: dict[str, Any] = {name: getattr(deployment, field) for field, name in DEPLOYMENT.items()}
    values |= {"y": observation.y, "noise_var": observation.noise_var}
    values |= {"truth/channel": channel, "truth/los_exists": los_exists}
    if scene is not None:
        values |= {"truth/ue_position_m": scene.ue_position, "truth/clock_offset_s": scene.clock_offset}
        values |= {"truth/scatterer_position_m": scene.scatterer_position, "truth/scatterer_visible": scene.visible}
    raw = {name: _to_numpy(name, value) for name, value in values.items() if value is not None or FIELDS[name].needed}
    raw = {name: array for name, array in raw.items() if not _unknown(FIELDS[name], array)}
    carrier = _to_numpy("carrier_hz", deployment.carrier_hz)
    if carrier.size != 1 or carrier.dtype.kind not in "fiu" or not isinstance(source, str):
        raise DomainError(f"carrier_hz must be a number and source a text, got {carrier!r} and {source!r}")
    check_layout({name: (array.shape, array.dtype) for name, array in raw.items()})
    arrays = {name: np.require(array, _STORED[FIELDS[name].kind], ["C", "W"]) for name, array in raw.items()}
    arrays["prior/clock_offset_std_s"] = arrays["prior/clock_offset_std_s"].reshape(())
    if "truth/scatterer_visible" in arrays:
        seen = np.any(arrays["truth/scatterer_visible"], axis=1, keepdims=True).swapaxes(1, 2)  # [scene point 1]
        arrays["truth/scatterer_position_m"] = np.where(seen, arrays["truth/scatterer_position_m"], np.nan)
    unpack(arrays, carrier.item(), source)
    # headers of HDF5 1.8, unlike those of 1.6, carry checksums: damage is noticed on reading
    with atomic_path(path) as temporary, h5py.File(temporary, "x", libver=("v108", "v110")) as file:
        file.attrs.update({"format": FORMAT, "version": VERSION, "carrier_hz": float(carrier.item()), "source": source})
        for name, array in arrays.items():
            large = FIELDS[name].kind == "complex"  # chunks by scene and station: scenes can be read one by one
            file.create_dataset(
                name,
                data=array,
                chunks=(1, 1, *array.shape[2:]) if large else None,
                compression="gzip" if large else None,
                shuffle=large or None,
            )


def _to_numpy(name: str, value: Any) -> np.ndarray:
    try:
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} must be a regular array, got rows of unequal length") from error


def _unknown(field: Field, array: np.ndarray) -> bool:
    """Noise or truth that the reader returned as unknown: NaN throughout, or no scatterers."""
    if not (field.name.startswith("truth/") or field.name == "noise_var") or array.dtype.kind == "c":
        return False
    return array.size == 0 or (array.dtype.kind == "f" and bool(np.isnan(array).all()))


def export_scenes(
    simulator: Simulator, path: str | Path, split: str, indices: Sequence[int], snr_db: Tensor | float
) -> None:
    """Write simulated scenes, with their truth, to an observation file.

    Args:
        simulator: deployment, law of the scenes and seed.
        path: file to write.
        split: train, val, test or sample.
        indices: scene numbers.
        snr_db: one value or one per scene [dB].
    """
    indices = list(indices)
    if not indices:
        raise ConfigError("indices must hold at least one scene number, got none")
    example = simulator.examples(split, indices, snr_db)
    levels = ", ".join(f"{level:g}" for level in torch.as_tensor(snr_db).reshape(-1).unique().tolist())
    source = f"simulated; seed {simulator.seed}; split {split}; scenes {indices[0]} to {indices[-1]}; SNR {levels} dB"
    write_observations(
        path, simulator.deployment, example.observation, scene=example.scene, channel=example.channel, source=source
    )
