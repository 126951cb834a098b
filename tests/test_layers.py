"""Imports go one way: a module imports from its own layer or from one below, never from above."""

import ast
from pathlib import Path

import pytest

LAYERS = [
    "units errors",
    "checks",
    "containers",
    "waves",
    "geometry arrays ofdm walls resolution",
    "channel operators",
    "simulation fusion radar bounds",
    "coarse",
    "inference targets",
    "estimator paper_estimator",
    "adapted_estimator surroundings_fit",
    "metrics set_loss losses baselines",
    "data",
    "pretrained",
    "evaluation",
    "learning",
    "options preflight about runs sweeps",
    "cli",
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}
PACKAGE = Path(__file__).parents[1] / "sensing"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Names of the package's top-level modules that a file imports, with line numbers, function bodies included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: absolute imports only"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sensing" and len(parts) > 1:
                yield parts[1], node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = layer(path)
    assert own in RANK, f"{own} has no place in LAYERS"
    for name, line in imported(path):
        assert name in RANK, (
            f"{path.name}:{line}: sensing.{name} has no place in LAYERS; import the module, not the package"
        )
        assert RANK[name] <= RANK[own], f"{path.name}:{line}: {own} must not import {name}, which lies above it"


def test_nothing_is_forgotten():
    assert {layer(path) for path in FILES} <= set(RANK)
