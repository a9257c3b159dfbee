"""The jobs of a sweep: those that are complete are taken as they are, the others run, each once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from joblib import cpu_count
from omegaconf import DictConfig

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.errors import JobFailedError
from tlexp.overrides import quoted
from tlexp.sweeps.checkpoints import CheckpointKeeper, expected_size
from tlexp.sweeps.points import GridPoint
from tlexp.sweeps.time_left import TimeLeft
from tlexp.sweeps.validation import is_shared, mistake_of, validate_jobs
from tlexp.tracking.orphans import DIED
from tlexp.tracking.sweeps import SweepRun

POLL_SECONDS = 1.0  # between two looks at a job that another sweep runs


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a score, or with an error in one line; with neither if it was not started."""

    score: float | None = None
    error: str = ""
    unexpected: bool = False
    stopped: bool = False
    diverged: bool = False
    in_use: bool = False

    @property
    def mistake(self) -> str:
        """The error where it is the user's mistake, which another job may share; else empty."""
        others = self.unexpected or self.stopped or self.diverged or self.in_use
        return "" if others else self.error


class JobRunner:
    """Runs jobs with a launcher of Hydra's.

    Args:
        launcher: Hydra's.
        hydra: the section `hydra` of the multirun's configuration.
        sweep: the run that jobs are nested under.
        config: that all jobs share.

    Attributes:
        outcomes: how every job so far ended, by key.
    """

    def __init__(self, launcher: Launcher, hydra: DictConfig, sweep: SweepRun, config: Config) -> None:
        self._launcher, self._options, self._sweep = launcher, hydra.launcher, sweep
        self._fail_fast, self._keep = config.sweep.fail_fast, config.sweep.keep
        self._keeper = CheckpointKeeper(config)
        self._points: dict[str, list[GridPoint]] = {}
        self.folder = jobs_folder(hydra)
        self.outcomes: dict[str, Outcome] = {}
        self._time_left = TimeLeft()

    def evaluate(self, points: Sequence[GridPoint], compared: Sequence[str] = ()) -> None:
        """Runs the jobs of some grid points that are not complete; `outcomes` then has all of them.

        Args:
            points: the grid points.
            compared: the axes that tell methods and problems apart, for the checkpoints that stay.
        """
        jobs: dict[str, GridPoint] = {}
        for point in points:
            jobs.setdefault(point.key, point)
            self._points.setdefault(point.key, []).append(point)
        self._keeper.compared = compared
        waiting = [job for job in jobs.values() if not self.take_result(job)]
        validate_jobs(waiting)
        done = len(jobs) - len(waiting)
        size = expected_size(waiting, self._keep, self.folder)
        counts = f"{len(points)} grid points, {len(jobs)} unique jobs: {done} done, {len(waiting)} to run"
        echo(f"{counts}; {size}" if size else counts)
        waiting.sort(key=self._in_use)  # stable: another sweep's come last
        chunk = self._chunk_size(len(waiting))
        # Jobs that start together would all report what they share; where one has a result, they share none.
        untried = not any(outcome.score is not None for outcome in self.outcomes.values())
        if untried and min(chunk, len(waiting)) > 1 and (mistake := mistake_of(waiting[0])):
            self.outcomes[waiting[0].key] = Outcome(error=mistake)
            if self._stops(waiting[:1], waiting[1:]):
                return
        for start in range(0, len(waiting), chunk):
            launched, rest = waiting[: start + chunk], waiting[start + chunk :]
            self._launch(waiting[start : start + chunk], waiting[start:], len(waiting))
            if rest and self._stops(launched, rest):
                return
        self._wait_for_others([job for job in waiting if self.outcomes[job.key].in_use])

    def _stops(self, launched: Sequence[GridPoint], rest: Sequence[GridPoint]) -> bool:
        """Returns whether the remaining jobs are not started, and then says why."""
        if reason := self._reason_to_stop(launched, rest):
            echo(f"{reason}, so {len(rest)} jobs are not started")
            self.outcomes |= {job.key: Outcome() for job in rest}
        return bool(reason)

    def _reason_to_stop(self, launched: Sequence[GridPoint], rest: Sequence[GridPoint]) -> str:
        """Returns why the remaining jobs should not be started; empty where they should."""
        failed = [job for job in launched if self.outcomes[job.key].error and not self.outcomes[job.key].in_use]
        if not failed:
            return ""
        if self._fail_fast:
            return f"sweep.fail_fast=true: {failed[0].name} failed"
        mistake = self.outcomes[launched[0].key].mistake
        if len(launched) == 1 and mistake and is_shared(mistake, launched[0], rest):
            return f"{launched[0].name} failed by a mistake that all jobs share"
        return ""

    def _in_use(self, job: GridPoint) -> bool:
        folder = self._folder_of(job)
        return folder.is_dir() and run_folder.is_locked(folder)

    def _folder_of(self, job: GridPoint) -> Path:
        """Returns the folder of a job, which an earlier version may have begun under another name."""
        return next(iter(sorted(self.folder.glob(f"*-{job.key}"))), self.folder / job.folder)

    def _wait_for_others(self, jobs: Sequence[GridPoint]) -> None:
        """Takes the results of jobs that other sweeps run, and runs those that end without one."""
        for job in jobs:
            echo(f"{job.name} runs in another sweep; waiting for it")
            while self.outcomes[job.key].in_use:
                while self._in_use(job):
                    time.sleep(POLL_SECONDS)
                if not self.take_result(job):
                    self._launch([job], [job], 1)

    def take_result(self, job: GridPoint) -> bool:
        """Takes the result of a job if it is complete, whatever sweep ran it.

        Raises:
            UsageError: for a corrupt result.
        """
        folder = run_folder.find_job(self.folder, job.key)
        if folder is None:
            return False
        result = run_folder.read_metrics(folder)
        self._time_left.add(job.values, float(result.get("seconds", 0)))
        self.outcomes[job.key] = Outcome(score=float(result["score"]))
        tracking = replace(job.config.tracking, parent=self._sweep.run_id, run_name=job.name)
        self._sweep.adopt(replace(job.config, tracking=tracking), folder, result)
        points = self._points.get(job.key, [job])
        self._keeper.add(points, folder, float(result["score"]), run_folder.is_own(folder))
        return True

    def _chunk_size(self, waiting: int) -> int:
        """Returns how many jobs a launcher gets at a time.

        One where it runs one, so that progress can be shown; else all, unless a failure is to stop the rest.
        """
        if concurrent_jobs(self._options) == 1 and "n_jobs" not in self._options:
            in_process = self._options._target_.startswith("hydra._internal")
            return 1 if in_process or self._fail_fast else max(1, waiting)
        return concurrent_jobs(self._options) if self._fail_fast else max(1, waiting)

    def _launch(self, jobs: Sequence[GridPoint], left: Sequence[GridPoint], total: int) -> None:
        """Runs jobs, the first of those that are left, and records how each ended.

        One that fails does not affect the others.
        """
        first = total - len(left)
        if len(jobs) == 1:
            time_left = self._time_left.in_words(job.values for job in left)
            echo(f"job {first + 1} of {total}: {jobs[0].name}{time_left}")
        try:
            returns: list[Any] = [*self._launcher.launch([self._overrides(job) for job in jobs], initial_job_idx=first)]
        except Exception as error:  # a worker that was killed takes all others with it
            message = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            echo(f"the launcher failed: {message}")
            returns = [None] * len(jobs)
            if len(jobs) == 1:
                self.outcomes[jobs[0].key] = Outcome(error=message, unexpected=True)
            else:
                echo("the remaining jobs run one at a time, so that only the one at fault fails")
                self._sweep.close_jobs()
                for number, job in enumerate(jobs):
                    if run_folder.find_job(self.folder, job.key) is None:
                        self._launch([job], left[number:], total)
        for job, returned in zip(jobs, returns, strict=True):
            if (folder := run_folder.find_job(self.folder, job.key)) is not None:
                self._sweep.forget(folder)
                self.take_result(job)
            elif returned is not None or job.key not in self.outcomes:
                self.outcomes[job.key] = failure(returned)

    def _overrides(self, job: GridPoint) -> list[str]:
        """Returns the overrides that a launcher gets for a job."""
        folder = [f"hydra.sweep.dir={quoted(str(self.folder))}", f"hydra.sweep.subdir={self._folder_of(job).name}"]
        run_id = self._sweep.run_id
        nested = [f"tracking.parent={run_id}", f"tracking.run_name={job.name}"] if run_id else []
        return [*job.overrides, *nested, *folder]


def jobs_folder(hydra: DictConfig) -> Path:
    """Returns where the folders of jobs are, which sweeps share."""
    return Path(hydra.sweep.dir).absolute()


def concurrent_jobs(launcher: DictConfig) -> int:
    """Returns how many jobs a launcher runs at once."""
    n_jobs = launcher.get("n_jobs", 1)
    return int(n_jobs) if n_jobs > 0 else int(cpu_count())


def failure(returned: JobReturn | None) -> Outcome:
    """Returns how a job ended that left no result."""
    error = getattr(returned, "_return_value", None)
    if isinstance(error, JobFailedError):
        kind = {name: getattr(error, name) for name in ("unexpected", "stopped", "diverged", "in_use")}
        return Outcome(error=str(error), **kind)
    message = DIED if error is None else str(error)
    return Outcome(error=message, unexpected=True)


def echo(line: str) -> None:
    """Prints a line about the sweep itself."""
    print(f"sweep: {line}", flush=True)
