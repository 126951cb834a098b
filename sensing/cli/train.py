"""`sensing-train`: train an unfolded estimator. The returned float is what a sweep minimises."""

from typing import Any

from sensing.cli import run_command
from sensing.preflight import check_training


def task(config: Any) -> float:
    """Train as the configuration says; torch is imported only now."""
    from sensing import runs

    return runs.train(config)


def main() -> None:
    """Entry point of the console script and of train.py."""
    run_command("train", task, check_training)


if __name__ == "__main__":
    main()
