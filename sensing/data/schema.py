"""Layout of the observation file, version 1, and the way from its arrays to containers.

One table says what a file holds; reader and writer both check against it. See docs/observation_file.md.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensing.checks import check_finite, check_shape
from sensing.containers import Deployment, Example, Observation, Scene
from sensing.errors import DomainError, FileFormatError, ShapeError

FORMAT = "sensing-observations"
VERSION = 1
ATTRIBUTES = ("format", "version", "carrier_hz", "source")


class Field(NamedTuple):
    """One data set of the file."""

    name: str
    axes: str  # empty: a scalar
    kind: str  # real, complex or bool
    needed: bool = False


FIELDS = {
    field.name: field
    for field in (
        Field("bs/position_m", "bs xyz", "real", needed=True),
        Field("bs/rotation", "bs 3 3", "real", needed=True),
        Field("bs/antenna_local_m", "ant xyz", "real", needed=True),
        Field("ofdm/pilot_freq_hz", "sc", "real", needed=True),
        Field("y", "scene bs ant sc", "complex", needed=True),
        Field("noise_var", "scene bs", "real"),
        Field("prior/clock_offset_std_s", "", "real", needed=True),
        Field("prior/ue_height_range_m", "2", "real"),
        Field("prior/region_m", "2 xyz", "real"),
        Field("truth/ue_position_m", "scene xyz", "real"),
        Field("truth/clock_offset_s", "scene bs", "real"),
        Field("truth/channel", "scene bs ant sc", "complex"),
        Field("truth/scatterer_position_m", "scene point xyz", "real"),
        Field("truth/scatterer_visible", "scene bs point", "bool"),
        Field("truth/los_exists", "scene bs", "bool"),
    )
}

DEPLOYMENT = {
    "bs_position": "bs/position_m",
    "bs_rotation": "bs/rotation",
    "antenna_local": "bs/antenna_local_m",
    "pilot_freq": "ofdm/pilot_freq_hz",
    "clock_offset_std": "prior/clock_offset_std_s",
    "region": "prior/region_m",
    "ue_height_range": "prior/ue_height_range_m",
}
"""Deployment field to file field."""

COMPLEX_NAMES = ({"r", "i"}, {"real", "imag"})
"""Members of a compound that stands for a complex number: h5py's and MATLAB's."""


class ObservationSet(NamedTuple):
    """What an observation file says."""

    deployment: Deployment  # float64
    observation: Observation  # complex128, [scene bs ant sc]; noise_var NaN where the file has none
    truth: Example | None  # scene and channel, each None where the file has none
    los_exists: Tensor | None  # [scene bs] bool: nothing obstructs the line of sight
    source: str

    @property
    def channel(self) -> Tensor | None:
        """Noise-free y, [scene bs ant sc], where the file has it."""
        return None if self.truth is None else self.truth.channel


def check_layout(layout: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> dict[str, int]:
    """Check names, types and shapes, without looking at any value.

    Args:
        layout: shape and type of every data set, by name.

    Returns:
        Sizes of the axes by name.

    Raises:
        FileFormatError: a field is missing, unknown, or of another type.
        ShapeError: an axis does not fit, or is empty.
    """
    unknown = sorted(set(layout) - set(FIELDS))
    if unknown:
        raise FileFormatError(f"unknown field {', '.join(unknown)}; expected only {', '.join(FIELDS)}")
    wanted = {name for name, field in FIELDS.items() if field.needed}
    scatterers = {"truth/scatterer_position_m", "truth/scatterer_visible"}
    wanted |= scatterers if scatterers & set(layout) else set()  # one is useless without the other
    missing = [name for name in FIELDS if name in wanted and name not in layout]
    if missing:
        raise FileFormatError(f"missing field {', '.join(missing)}; got {', '.join(sorted(layout)) or 'none'}")
    sizes = {"xyz": 3}
    for name, field in FIELDS.items():
        if name not in layout:
            continue
        shape, dtype = layout[name]
        if not _is_kind(dtype, field.kind):
            raise FileFormatError(f"{name} must be {field.kind}, got type {dtype}")
        if field.axes or math.prod(shape) != 1:  # MATLAB has no scalars: [1 1] will do
            sizes = check_shape(name, torch.empty(shape, device="meta"), field.axes, **sizes)
        if 0 in shape and "point" not in field.axes:
            raise ShapeError(f"{name} must be [{field.axes}] without an empty axis, got {list(shape)}")
    return sizes


def _is_kind(dtype: np.dtype, kind: str) -> bool:
    if kind == "complex":
        return dtype.kind == "c" or (dtype.names is not None and set(dtype.names) in COMPLEX_NAMES)
    return dtype.kind in ("fiu" if kind == "real" else "biu")


def unpack(arrays: Mapping[str, np.ndarray], carrier_hz: float, source: str) -> ObservationSet:
    """Arrays of a file, their layout already checked, to validated containers.

    Args:
        arrays: real fields in float64, bool fields in bool, complex fields in either precision.
        carrier_hz: carrier frequency [Hz].
        source: where the data come from.

    Returns:
        Containers that share memory with the arrays.

    Raises:
        DomainError: a value is NaN, not positive, unsorted, or no rotation; the message names the field of the file.
    """
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with _file_names():
        deployment = Deployment(
            carrier_hz=torch.tensor(carrier_hz, dtype=torch.float64),
            **{field: tensors.get(name) for field, name in DEPLOYMENT.items()},  # type: ignore[arg-type]
        ).validate()
        unknown = torch.full(tensors["y"].shape[:2], math.nan, dtype=torch.float64)
        observation = Observation(tensors["y"], tensors.get("noise_var", unknown))
        observation.validate(deployment, noise_known="noise_var" in tensors)
    scene, channel = _scene(tensors), tensors.get("truth/channel")
    if channel is not None:
        check_finite("truth/channel", channel)
    truth = None if scene is None and channel is None else Example(observation, scene, channel)
    return ObservationSet(deployment, observation, truth, tensors.get("truth/los_exists"), source)


def _scene(tensors: Mapping[str, Tensor]) -> Scene | None:
    """The truth as a Scene: padding becomes a mask, what is unknown is NaN (user, offsets) or absent (scatterers)."""
    ue, offset = tensors.get("truth/ue_position_m"), tensors.get("truth/clock_offset_s")
    points, visible = tensors.get("truth/scatterer_position_m"), tensors.get("truth/scatterer_visible")
    if ue is None and offset is None and points is None:
        return None
    scenes, stations = tensors["y"].shape[:2]
    for name in ("truth/ue_position_m", "truth/clock_offset_s"):
        if name in tensors:
            check_finite(name, tensors[name])
    ue = torch.full((scenes, 3), math.nan, dtype=torch.float64) if ue is None else ue
    offset = torch.full((scenes, stations), math.nan, dtype=torch.float64) if offset is None else offset
    if points is None or visible is None:
        return Scene(ue, ue.new_zeros(scenes, 0, 3), torch.zeros(scenes, stations, 0, dtype=torch.bool), offset)
    absent = points.isnan().all(-1)
    check_finite("truth/scatterer_position_m (but for absent points, all NaN)", points[~absent])
    if bool((visible & absent[:, None]).any()):
        where = (visible & absent[:, None]).nonzero()[0].tolist()
        raise DomainError(f"truth/scatterer_visible must be false for absent (NaN) points, got true at index {where}")
    return Scene(ue, torch.where(absent[..., None], 0.0, points), visible, offset)


@contextmanager
def _file_names() -> Iterator[None]:
    """Messages of the containers start with the name of their field; replace it by the name in the file."""
    try:
        yield
    except (DomainError, ShapeError) as error:
        name, _, rest = str(error).partition(" ")
        raise type(error)(f"{DEPLOYMENT.get(name, name)} {rest}") from error
