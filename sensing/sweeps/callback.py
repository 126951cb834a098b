"""The end of a sweep, whichever way it comes: table, figure and summary line, for every launcher and sweeper."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

_started: list[Path] = []
"""Folder of the sweep that this process runs. Hydra does not call its callbacks at the end where a job failed."""


class SweepReport(Callback):
    """Remembers, in the process that starts a sweep, where it goes."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Keep the folder."""
        _started.append(Path(config.hydra.sweep.dir))


def report_sweep() -> None:
    """Write the tables and the figure and print the summary, if this process has run a sweep that began its jobs."""
    while _started:
        folder = _started.pop()
        from sensing.sweeps.figure import draw_jobs  # pull matplotlib and rich, which take time to import
        from sensing.sweeps.jobs import read_jobs, write_jobs
        from sensing.sweeps.summary import print_jobs, settings, write_settings

        if jobs := read_jobs(folder):
            write_jobs(folder / "sweep.csv", jobs)
            if found := settings(jobs):
                write_settings(folder / "sweep_mean.csv", found)
            draw_jobs(folder / "sweep.png", jobs)
            print_jobs(jobs, found, folder)
