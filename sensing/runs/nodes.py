"""Parts of a configuration: the call that a `_target_` asks for, plain containers for checks, and torch's threads.

There is no registry: a `_target_` in a YAML file names the function or class that is called with the keys beside it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sensing.errors import ConfigError, SensingError


def make(config: Any, key: str, **values: Any) -> Any:
    """Instantiate a node of the configuration.

    Args:
        config: node with a `_target_`.
        key: its dotted name, for messages.
        values: further arguments of the target, or replacements.

    Returns:
        What the target returns.

    Raises:
        SensingError: the target's own, or ConfigError where the target does not exist or refuses its arguments.
    """
    try:
        return instantiate(config, _convert_="all", **values)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, SensingError):
            raise type(cause)(f"{cause} (in {key})") from error
        what = str(error if cause is None else cause).splitlines()[0]
        raise ConfigError(f"{key} must fit {config.get('_target_')}, got: {what}") from error


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, the form in which checks, checkpoints and reports take it."""
    containers = OmegaConf.to_container(config, resolve=True)
    assert isinstance(containers, dict)
    return {str(key): value for key, value in containers.items() if key != "hydra"}


def set_threads(settings: Mapping[str, Any]) -> None:
    """CPU threads of torch, `torch_threads`; null leaves torch's choice."""
    if settings["torch_threads"] is not None:
        torch.set_num_threads(settings["torch_threads"])
