"""Search spaces in Hydra's words for sweeps: `choice(a,b)`, `range(1,9)`, `tag(log, interval(1e-3,1))`."""

from typing import TYPE_CHECKING, Any

from sensing.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution


def distribution(override: "Override") -> "BaseDistribution":
    """The distribution that an override sweeps over.

    A choice is categorical, a range has its steps, an interval is continuous, or whole numbers under `int()`; the tag
    `log` makes the last two logarithmic.

    Raises:
        ConfigError: its limits are no space.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    try:
        if override.is_choice_sweep():
            return CategoricalDistribution(list(override.sweep_string_iterator()))
        log = "log" in sweep.tags
        if override.is_range_sweep():
            values = list(sweep.range())
            whole = all(isinstance(value, int) for value in values)
            kind = IntDistribution if whole else FloatDistribution
            return kind(values[0], values[-1], log=log) if log else kind(values[0], values[-1], step=abs(sweep.step))
        if isinstance(sweep.start, int) and isinstance(sweep.end, int):
            return IntDistribution(sweep.start, sweep.end, log=log)
        return FloatDistribution(float(sweep.start), float(sweep.end), log=log)
    except (ValueError, IndexError) as error:
        raise ConfigError(
            f"hydra.sweeper.params.{override.get_key_element()} must be a search space: {error}"
        ) from None
