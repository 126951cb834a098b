"""`sensing-evaluate`: compare estimators with each other and with the bound, on synthetic scenes or on a file."""

from typing import Any

from sensing.cli import run_command
from sensing.preflight import check_evaluation


def task(config: Any) -> dict[str, str]:
    """Evaluate as the configuration says; torch is imported only now."""
    from sensing import runs

    return runs.evaluate(config)


def main() -> None:
    """Entry point of the console script and of evaluate.py."""
    run_command("evaluate", task, check_evaluation)


if __name__ == "__main__":
    main()
