"""Command line entry points. Nothing heavy is imported here, so that `--help` answers in about a second."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import CompactHydraException, InstantiationException

from sensing.errors import SensingError

Task = Callable[[Any], Any]


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


def short_message(error: BaseException) -> str:
    """One or two lines that say what is wrong, without Hydra's wrapping."""
    key = ""
    if isinstance(error, InstantiationException):
        key = str(error).partition("full_key: ")[2].strip()
        cause = error.__cause__
        if not isinstance(cause, SensingError):
            return str(error)
        error = cause
    where = f" (in {key})" if key else ""
    return f"{type(error).__name__}: {error}{where}"


def command(config_name: str, task: Task) -> Callable[[], Any]:
    """A console command that runs `task(config)` under Hydra.

    An error that the package raises on purpose ends the command with its message and exit code 1; the traceback is shown
    with HYDRA_FULL_ERROR=1. In a sweep the other jobs still run.
    """

    @functools.wraps(task)
    def job(config: Any) -> Any:
        try:
            return task(config)
        except (SensingError, InstantiationException) as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            raise CompactHydraException(short_message(error)) from None

    main: Callable[[], Any] = hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)(job)
    return main


def run_command(main: Callable[[], Any]) -> None:
    """Run a command; Ctrl-C ends it with one line instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
