"""Command line entry points. Nothing heavy is imported here, so that `--help` answers in about a second."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from sensing.errors import SensingError
from sensing.sweeps.callback import report_sweep
from sensing.sweeps.record import recorded


def conf_dir() -> str:
    """Folder of the YAML files: inside the installed package, or next to it in a checkout.

    Raises:
        FileNotFoundError: neither place holds one.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return str(folder)
    raise FileNotFoundError(f"no conf/train.yaml in {package} or next to it: the installation of sensing is incomplete")


def run_command(config_name: str, task: Callable[[Any], Any], check: Callable[[Any], Any]) -> None:
    """Run `task(config)` under Hydra, with the arguments of the command line.

    `check` sees the configuration as plain containers first, before `task` imports what takes seconds.
    An error that the package raises on purpose ends the command with its message and exit code 1; HYDRA_FULL_ERROR=1
    shows the traceback. In a sweep the other jobs still run, each leaves a record, and the end is a table and a figure.
    """

    def checked(config: Any) -> Any:
        check(OmegaConf.to_container(config, resolve=True))
        return task(config)

    @functools.wraps(task)
    def job(config: Any) -> Any:
        logging.getLogger("matplotlib").setLevel(logging.WARNING)  # Hydra shows INFO of every library
        known = HydraConfig.get()
        try:
            if known.mode == RunMode.MULTIRUN:
                return recorded(checked, config, Path(known.runtime.output_dir), list(known.overrides.task))
            return checked(config)
        except SensingError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            # the one exception that Hydra prints without a traceback
            raise CompactHydraException(f"{type(error).__name__}: {error}") from None

    try:
        hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)(job)()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    finally:
        report_sweep()
