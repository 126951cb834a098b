"""A self-contained HTML page from a template: it loads nothing from anywhere, and appears whole or not at all."""

import base64
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sensing.data.atomic import atomic_path

PACKAGES = ("sensing", "torch", "lightning", "numpy", "scipy", "h5py", "hydra-core", "matplotlib")


def write_page(
    path: str | Path,
    template: str,
    title: str,
    facts: Mapping[str, str],
    figures: Sequence[tuple[str, Path, str]],
    config: str,
    **values: Any,
) -> Path:
    """Write a page.

    Args:
        path: of the page.
        template: its name; it extends `page.html`.
        title: heading.
        facts: how the page came about, by name.
        figures: name, PNG file and caption.
        config: configuration as text.
        values: what else the template shows.

    Returns:
        The path.
    """
    environment = Environment(
        loader=PackageLoader("sensing.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(
        title=title,
        facts=facts,
        figures=[
            (name, base64.b64encode(file.read_bytes()).decode("ascii"), caption) for name, file, caption in figures
        ],
        config=config,
        versions={"python": platform.python_version()} | versions(),
        **values,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
