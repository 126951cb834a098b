"""Checks of configuration values, before any work is done.

Each takes the configuration as plain nested dictionaries and a dotted key, returns the value, and raises a ConfigError
that names the key, what was expected and what came.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sensing.errors import ConfigError
from sensing.pretrained import checkpoint_path, of_scene, shipped

Config = Mapping[str, Any]


_NO_SIZES = ("_target_", "severity", "diffuse_decay_m")
"""Keys of the group `impairments` that are no size of one."""


def lookup(config: Config, key: str) -> Any:
    """Value of a dotted key, None where a part of it is missing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def refuse(key: str, expected: str, got: Any) -> NoReturn:
    """Raise the ConfigError of a key."""
    raise ConfigError(f"{key} must be {expected}, got {got!r}")


def integer(config: Config, key: str, low: int) -> int:
    """A whole number of at least `low`."""
    value = lookup(config, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        refuse(key, f"a whole number >= {low}", value)
    return value


def positive(config: Config, key: str, allow_zero: bool = False, allow_infinite: bool = False) -> float:
    """A positive number, finite unless infinity is allowed."""
    value = lookup(config, key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if not number or value < 0 or (value == 0 and not allow_zero) or (math.isinf(value) and not allow_infinite):
        refuse(
            key, ("a number >= 0" if allow_zero else "a number > 0") + (" (or inf)" if allow_infinite else ""), value
        )
    return float(value)


def numbers(
    config: Config, key: str, length: int | None = None, low: float = -math.inf, allow_infinite: bool = False
) -> list[float]:
    """A list of numbers, not empty and without duplicates; finite unless infinity is allowed."""
    value = lookup(config, key)
    kind = "finite numbers" if low == -math.inf else f"numbers >= {low:g}{' (or inf)' if allow_infinite else ''}"
    expected = f"a list of {kind} without duplicates" if length is None else f"a list of {length} {kind}"
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or length not in (None, len(value)):
        refuse(key, expected, value)
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v >= low for v in value):
        refuse(key, expected, value)
    if not all(math.isfinite(v) or (allow_infinite and v == math.inf) for v in value):
        refuse(key, expected, value)
    if length is None and len(set(value)) < len(value):
        refuse(key, expected, value)
    return [float(v) for v in value]


def names(config: Config, key: str, available: Iterable[str]) -> list[str]:
    """A list of names out of the available ones, not empty and without duplicates."""
    value, choices = lookup(config, key), list(available)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        refuse(key, f"a list of names out of {choices}", value)
    unknown = [name for name in value if name not in choices]
    if unknown:
        raise ConfigError(f"{key} must name estimators out of {choices}, got unknown {unknown}")
    if len(set(value)) < len(value):
        refuse(key, "a list without duplicates", value)
    return list(value)


def choice(config: Config, key: str, choices: Sequence[Any]) -> Any:
    """One of the given values."""
    value = lookup(config, key)
    if value not in choices:
        refuse(key, f"one of {list(choices)}", value)
    return value


def existing_file(config: Config, key: str, optional: bool = False) -> Path | None:
    """A path to a file that exists; None only where the key is optional and null."""
    value = lookup(config, key)
    if value is None and optional:
        return None
    if not isinstance(value, str) or not value:
        refuse(key, f"the path of a file (say {key}=FILE)", value)
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"{key} must be an existing file, got {value!r}: {'a folder' if path.is_dir() else 'not found'}"
        )
    return path


def checkpoint(config: Config, key: str) -> Path | None:
    """The file of trained weights, by path or by the name of shipped ones; None where the key is null."""
    value = lookup(config, key)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        refuse(key, f"the path of a checkpoint or one of the shipped {shipped()}", value)
    return checkpoint_path(value, key)


def unfolded_weights(config: Config) -> str | None:
    """What `checkpoint` stands for: a path, a shipped name, or None for untrained; checked.

    `auto` is the shipped weights that have the name of the scene, if there are any; scenes of a file have none.
    """
    if lookup(config, "checkpoint") != "auto":
        return None if checkpoint(config, "checkpoint") is None else str(lookup(config, "checkpoint"))
    return of_scene(lookup(config, "scene.name")) if lookup(config, "data.source") == "synthetic" else None


def impaired(config: Config) -> list[str]:
    """Names of the impairments that are not neutral."""
    sizes = {key: value for key, value in (config.get("impairments") or {}).items() if key not in _NO_SIZES}
    severe = lookup(config, "impairments.severity") != 0
    return [key for key, value in sizes.items() if severe and value != (1.0 if key == "clock_factor" else 0.0)]
