"""Trained weights that ship with the package, by name: `hall` is the file `hall.safetensors` of this folder.

Nothing heavy is imported here, so that a wrong name is answered in a second; `files` reads and writes.
"""

from pathlib import Path

from sensing.errors import CheckpointError

FOLDER = Path(__file__).parent
SUFFIX = ".safetensors"
SCENES = ("hall", "hall_hard")
"""Scenes whose name is that of unfolded layers trained on them; other names are of other learners or settings."""


def shipped() -> list[str]:
    """Names of the weights that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def of_scene(name: str | None) -> str | None:
    """Name of the unfolded layers that ship for a scene, None where there are none."""
    return name if name in SCENES and name in shipped() else None


def checkpoint_path(name: str | Path, key: str = "checkpoint") -> Path:
    """The file behind a checkpoint's name.

    Args:
        name: a shipped name, or the path of a `.ckpt` or `.safetensors` file.
        key: what the message calls it.

    Raises:
        CheckpointError: neither; the message lists the shipped names.
    """
    if str(name) in shipped():
        return FOLDER / f"{name}{SUFFIX}"
    path = Path(name).expanduser()
    if str(name) and path.is_file():
        return path
    raise CheckpointError(
        f"{key} must be an existing file or one of the shipped {shipped()}, got {str(name)!r}: "
        f"{'a folder' if str(name) and path.is_dir() else 'not found'}"
    )
