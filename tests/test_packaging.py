"""The wheel carries the configuration and works outside a checkout."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import sensing
from sensing.cli import conf_dir
from sensing.pretrained import shipped

ROOT = Path(__file__).parents[1]


def build(kind, tmp_path_factory):
    """A package built from the checkout, without network."""
    pytest.importorskip("hatchling")
    if not (ROOT / "README.md").is_file():
        pytest.skip("the checkout has no README.md, which the package's description is taken from")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("sensing-*"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory)


def test_wheel_holds_the_package_with_all_of_conf_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        *("sensing", "hydra_plugins", f"sensing-{sensing.__version__}.dist-info")
    }
    assert "hydra_plugins/sensing_optuna/sweeper.py" in names
    assert "hydra_plugins/__init__.py" not in names  # a namespace that other packages share
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert wanted
    assert {name.removeprefix("sensing/") for name in names if name.endswith(".yaml")} == wanted
    assert any(name.endswith("LICENSE") for name in names)
    assert "sensing/py.typed" in names
    weights = {f"sensing/pretrained/{name}.safetensors" for name in shipped()}
    assert {name for name in names if name.endswith(".safetensors")} == weights
    assert "sensing/pretrained/__init__.py" in names


def test_source_package_holds_the_weights(tmp_path_factory):
    with tarfile.open(build("sdist", tmp_path_factory)) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    weights = {f"sensing/pretrained/{name}.safetensors" for name in shipped()}
    assert {name for name in names if name.endswith(".safetensors")} == weights
    assert {"conf/train.yaml", "sensing/__init__.py", "constraints.txt"} <= names


def test_unpacked_wheel_finds_its_own_conf_and_shows_help(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "from sensing.cli import conf_dir; print(conf_dir())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(tmp_path / "site" / "sensing" / "conf"), done.stderr
    for command in ("train", "evaluate"):
        shown = subprocess.run(
            [sys.executable, "-P", "-m", f"sensing.cli.{command}", "--cfg", "job"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stderr
        assert f"name: {command}" in shown.stdout


def test_wheel_declares_scripts_and_requirements(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"sensing-{sensing.__version__}.dist-info"
    scripts = archive.read(f"{info}/entry_points.txt").decode()
    assert "sensing-train = sensing.cli.train:main" in scripts
    assert "sensing-evaluate = sensing.cli.evaluate:main" in scripts
    plain = re.findall(r"^Requires-Dist: ([A-Za-z0-9-]+)[^;\n]*$", archive.read(f"{info}/METADATA").decode(), re.M)
    assert set(plain) == {
        *("torch", "lightning", "numpy", "hydra-core", "tensorboard"),
        *("scipy", "h5py", "matplotlib", "jinja2", "rich", "safetensors"),
    }


def test_conf_dir_is_that_of_the_checkout():
    assert Path(conf_dir()) == ROOT / "conf"


def test_constraints_pin_every_dependency_without_cuda_packages():
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in pinned)
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)
    dev = re.search(r"^dev = \[(.*?)^\]", text, re.M | re.S)
    assert needed
    assert dev
    names = set(re.findall(r'"([A-Za-z0-9-]+)', needed[1] + dev[1])) - {"sensing"}
    assert names <= pinned


def test_installed_versions_satisfy_the_declared_floors():
    assert tuple(int(part) for part in metadata.version("torch").split(".")[:2]) >= (2, 9)
    assert metadata.version("lightning").startswith("2.6.")
    assert metadata.version("hydra-core").startswith("1.3.")
