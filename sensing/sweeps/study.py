"""Trials of an Optuna study as jobs of a sweep: the number of a trial is that of its job."""

import itertools
import logging
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import optuna
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from optuna.trial import Trial, TrialState

from sensing.errors import ConfigError
from sensing.sweeps.space import distribution

FIXED = "fixed overrides"
log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A trial that is to run."""

    trial: Trial
    overrides: list[str]

    @property
    def number(self) -> int:
        """Of the trial and of its job."""
        return self.trial.number


class Search:
    """A search for the overrides with the lowest result.

    Every trial is proposed by a sampler of its own, seeded with `seed` and the number of trials before it, so that a
    search which was interrupted continues as it would have done.

    Args:
        overrides: the search space, and what is the same in all trials.
        storage: address of the database, `sqlite:///FILE`.
        study_name: of the study in it, continued where it exists.
        n_startup_trials: trials drawn at random.
        seed: of the sampler.

    Raises:
        ConfigError: nothing varies, a space is none, or the study was about something else.
    """

    def __init__(
        self, overrides: Iterable[Override], storage: str, study_name: str, n_startup_trials: int, seed: int
    ) -> None:
        given = {each.get_key_element(): each for each in overrides}  # the later one counts, from the command line
        self.space = {key: distribution(each) for key, each in given.items() if each.is_sweep_override()}
        self.fixed = [
            f"{key}={each.get_value_element_as_str()}" for key, each in given.items() if not each.is_sweep_override()
        ]
        if not self.space:
            raise ConfigError("hydra.sweeper.params must name something to search, got nothing that varies")
        self.n_startup_trials, self.seed = n_startup_trials, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(storage=storage, study_name=study_name, load_if_exists=True)
        except Exception as error:  # whatever the database raises
            raise ConfigError(f"hydra.sweeper.storage must be a database of Optuna, got {storage}: {error}") from error
        self._check_same_search(study_name)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.interrupted = [Asked(Trial(self.study, each._trial_id), self._overrides(each.params)) for each in running]

    def next_batch(self, size: int, total: int) -> list[Asked]:
        """Trials with consecutive numbers, at most `size`: first those that were interrupted, then new ones.

        Args:
            size: of the batch.
            total: trials of the whole study.

        Returns:
            None left: an empty list.
        """
        if self.interrupted:
            first = self.interrupted[0].number
            count = sum(1 for at, each in enumerate(self.interrupted[:size]) if each.number == first + at)
            batch, self.interrupted = self.interrupted[:count], self.interrupted[count:]
            return batch
        return [self._ask() for _ in range(min(size, total - len(self.study.get_trials(deepcopy=False))))]

    def tell(self, asked: Asked, result: JobReturn) -> None:
        """Report what became of a trial; one without a finite number has failed."""
        value = result._return_value
        if result.status != JobStatus.COMPLETED:
            self.fail(asked, value)
        elif isinstance(value, int | float) and math.isfinite(value):
            self.study.tell(asked.trial, float(value))
        else:
            self.fail(asked, ValueError(f"the result must be a finite number, got {value!r}"))

    def fail(self, asked: Asked, error: BaseException) -> None:
        """Report a trial that failed, with its reason."""
        asked.trial.set_user_attr("reason", f"{type(error).__name__}: {error}".splitlines()[0][:300])
        self.study.tell(asked.trial, state=TrialState.FAIL)

    def check_success(self) -> None:
        """Raise ConfigError where not one trial of the study has a result."""
        trials = self.study.get_trials(deepcopy=False)
        if not any(trial.state is TrialState.COMPLETE for trial in trials):
            reason = trials[-1].user_attrs.get("reason", "unknown") if trials else "hydra.sweeper.n_trials is 0"
            raise ConfigError(
                f"a search must have a trial with a result, got none of {len(trials)}; the last: {reason}"
            )

    def _ask(self) -> Asked:
        before = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.n_startup_trials, seed=self.seed + before, constant_liar=True
        )
        trial = self.study.ask(self.space)
        return Asked(trial, self._overrides(trial.params))

    def _overrides(self, params: dict[str, Any]) -> list[str]:
        return [*(f"{key}={params[key]}" for key in self.space), *self.fixed]

    def _check_same_search(self, name: str) -> None:
        """A study is about one space and one set of fixed overrides; other results would not compare."""
        trials = self.study.get_trials(deepcopy=False)
        if not trials:
            self.study.set_user_attr(FIXED, self.fixed)
            return
        old = {FIXED: sorted(self.study.user_attrs.get(FIXED, []))} | trials[0].distributions
        new = {FIXED: sorted(self.fixed)} | self.space
        for key in dict.fromkeys(itertools.chain(old, new)):
            if old.get(key) != new.get(key):
                raise ConfigError(
                    f"hydra.sweeper.study_name={name} must be continued with the same search, got {key} {new.get(key)} "
                    f"instead of {old.get(key)}; a new hydra.sweep.dir or study_name starts another"
                )
