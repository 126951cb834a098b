"""Builds objects from a configuration, trains and evaluates: the only file, besides the command line, that knows Hydra.

A `_target_` in a YAML file names the function or class that is called with the keys beside it; there is no registry.
"""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sensing import options
from sensing.containers import Deployment
from sensing.errors import ConfigError, SensingError
from sensing.simulation import Simulator


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


def build_deployment(config: DictConfig) -> Deployment:
    """Stations of a configuration. Offsets are configured in units of 1 / bandwidth, which is that of all subcarriers."""
    grid = {name: value for name, value in config.ofdm.items() if name != "carrier_hz"}
    return make(
        config.scene.deployment,
        "scene.deployment",
        array=make(config.array, "array"),
        pilot_freq=make(grid, "ofdm"),
        carrier_hz=config.ofdm.carrier_hz,
        clock_offset_std=config.scene.clock_offset_std_over_bandwidth / _bandwidth(config),
    )


def build_simulator(config: DictConfig) -> Simulator:
    """Seeded synthetic scenes of a configuration.

    Raises:
        SensingError: a value does not fit; names its key.
    """
    check_scene(_plain(config))
    drawn = config.scene.true_clock_offset_std_over_bandwidth
    std = None if drawn is None else drawn / _bandwidth(config)
    sampler = make(config.scene.sampler, "scene.sampler", clock_offset_std=std)
    return Simulator(build_deployment(config), sampler, config.seed)


def check_scene(config: options.Config) -> None:
    """Check the keys of scenes that no constructor checks."""
    options.integer(config, "seed", low=0)
    options.integer(config, "ofdm.num_subcarriers", low=1)
    options.integer(config, "ofdm.pilot_step", low=1)
    options.positive(config, "ofdm.spacing_hz")
    options.positive(config, "ofdm.carrier_hz")
    std = options.positive(config, "scene.clock_offset_std_over_bandwidth", allow_zero=True, allow_infinite=True)
    drawn = "scene.true_clock_offset_std_over_bandwidth"
    if options.lookup(config, drawn) is not None or std == float("inf"):
        options.positive(config, drawn, allow_zero=True)


def _bandwidth(config: DictConfig) -> float:
    return float(config.ofdm.num_subcarriers * config.ofdm.spacing_hz)


def _plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, the form in which checks, checkpoints and reports take it."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
