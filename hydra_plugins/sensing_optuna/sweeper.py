"""The sweeper `optuna_study`: jobs are trials of an Optuna study in a database, which a later run continues.

The official plugin for Hydra 1.3 is bound to Optuna 2 and to database libraries of its time. Hydra imports this file at
every start, hence Optuna only where a sweep begins.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sensing.errors import SensingError


@dataclass
class OptunaStudyConf:
    """Settings, `hydra.sweeper.*`."""

    _target_: str = "hydra_plugins.sensing_optuna.sweeper.OptunaStudySweeper"
    storage: str = "sqlite:///${hydra.sweep.dir}/study.db"  # any database that Optuna takes
    study_name: str = "sweep"
    n_trials: int = 20  # of the whole study, with those that failed
    n_jobs: int = 1  # trials that the launcher gets at once
    n_startup_trials: int = 10  # drawn at random before the tree-structured Parzen estimator takes over
    seed: int = 0  # of the search
    params: dict[str, str] = field(default_factory=dict)  # search space, in Hydra's words for sweeps


ConfigStore.instance().store(group="hydra/sweeper", name="optuna_study", node=OptunaStudyConf, provider="sensing")


class OptunaStudySweeper(Sweeper):
    """Minimises what the task returns."""

    def __init__(self, params: dict[str, str], n_trials: int, n_jobs: int, **study: Any) -> None:
        self.params, self.n_trials, self.n_jobs, self.study = params, n_trials, n_jobs, study

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Prepare the launcher, as every sweeper does."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has as many as asked for; a trial that fails is one that failed."""
        assert self.config is not None and self.hydra_context is not None and self.launcher is not None  # noqa: PT018
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = [f"{key}={value}" for key, value in self.params.items()]
        try:
            from sensing.sweeps.study import Search

            search = Search(parser.parse_overrides([*words, *arguments]), **self.study)
            while batch := search.next_batch(self.n_jobs, self.n_trials):
                overrides = [trial.overrides for trial in batch]
                try:
                    self.validate_batch_is_legal(overrides)
                except Exception as error:  # a value of the space that no configuration takes
                    for trial in batch:
                        search.fail(trial, error)
                    raise
                results = self.launcher.launch(overrides, initial_job_idx=batch[0].number)
                for trial, result in zip(batch, results, strict=True):
                    search.tell(trial, result)
            search.check_success()
        except SensingError as error:
            raise CompactHydraException(f"{type(error).__name__}: {error}") from None
