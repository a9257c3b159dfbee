"""One multirun: plan, jobs that are not done yet, comparison; its own run in MLflow around all of it."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from joblib import cpu_count
from omegaconf import DictConfig

from tlexp import tracking
from tlexp.cache import JOBS
from tlexp.cli import SWEEP_PROCESS
from tlexp.config import Config, without_password
from tlexp.errors import JobFailed, JobsFailed, UsageError
from tlexp.stopping import stop_signals
from tlexp.sweep.checks import check_declared, check_early, check_measured
from tlexp.sweep.layout import LAYOUT, read_result
from tlexp.sweep.points import Point, Question, combinations, composed, in_order, parsed, point

if TYPE_CHECKING:
    from tlexp.compare.study import Result


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with a score, or with an error in one line; with neither where it was not started."""

    score: float | None = None
    error: str = ""
    unexpected: bool = False
    stopped: bool = False
    diverged: bool = False


class Multirun:
    """What a sweeper needs of Hydra, and what a grid and a search have in common.

    Args:
        master: the configuration of the multirun, Hydra's own part included.
        context: Hydra's.
        task: what a job runs.

    Attributes:
        config: the checked configuration without what varies.
        folder: of the sweep; jobs have folders of their own, which sweeps share.
    """

    def __init__(self, master: DictConfig, context: HydraContext, task: TaskFunction) -> None:
        self.master, self.loader = master, context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=master
        )
        self.spent = 0.0
        self.outcomes: dict[str, Outcome] = {}

    def grid(self, params: dict[str, Any], arguments: Sequence[str]) -> dict[str, Outcome]:
        """Answers every combination of the values that were given.

        Raises:
            JobsFailed: at the end, where a job failed.
        """
        question = parsed(self.loader, params, arguments)
        points = self.points(question, combinations(question.axes))
        with self.under_way(question) as parent:
            self.write(question, points, parent)  # before any job, since the family of tests is declared here
            self.evaluate(points, parent)
            self.conclude(question, points, parent)
        self.judge(points)
        return self.outcomes

    def points(self, question: Question, values: Iterable[dict[str, str]]) -> list[Point]:
        """Composes and checks every combination, before anything trains."""
        found = [point(self.loader, self.master, question, each) for each in values]
        check_measured(found)
        return found

    @contextmanager
    def under_way(self, question: Question) -> Iterator[tracking.Parent]:
        """Holds the sweep's folder and its run, and lets signals stop it in order.

        Raises:
            UsageError: where another process runs the same sweep, or the store fails.
        """
        self.config = self.plain(question)
        check_declared(self.config, question)
        axes = [name.rsplit(".", 1)[-1] for name in in_order(axis.name for axis in question.axes)]
        name = self.config.sweep.name or "-".join(axes) or "sweep"
        self.folder = Path(self.config.sweep.out).absolute() / f"{name}-{question.key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        tags = {
            f"axis.{axis.name.replace('@', '.')}": ",".join(axis.values) or axis.override.input_line or ""
            for axis in question.axes
        }
        try:
            with (
                stop_signals(),
                FileLock(self.folder / tracking.LOCK, timeout=1),
                tracking.sweep_tracked(self.config, self.folder, name, tags) as parent,
                environment({SWEEP_PROCESS: str(os.getpid()), JOBS: str(self.at_once)}),
            ):
                yield parent
        except Timeout:
            raise UsageError(f"{self.folder}: another process runs this sweep; wait for it or stop it") from None

    def plain(self, question: Question) -> Config:
        """Returns the configuration that all jobs share; axes, of which some must be set, have their first value."""
        first = [f"{axis.key}={axis.values[0]}" for axis in question.axes if axis.values]
        return composed(self.loader, self.master, [*question.fixed, *first])

    @property
    def at_once(self) -> int:
        """How many jobs the launcher runs at once."""
        asked = self.master.hydra.launcher.get("n_jobs", 1)
        return int(asked) if asked > 0 else int(cpu_count())

    # Jobs ------------------------------------------------------------------------------------------------------

    def evaluate(self, points: Sequence[Point], parent: tracking.Parent) -> None:
        """Runs the jobs of some points that are not done yet, each once; `outcomes` then has all of them."""
        jobs: dict[str, Point] = {}
        for each in points:
            jobs.setdefault(each.key, each)
        done = {key: folder for key, job in jobs.items() if (folder := self.complete(job)) is not None}
        for key, folder in done.items():
            self.count(jobs[key], folder, parent)
        waiting = [job for key, job in jobs.items() if key not in done]
        check_early(waiting)
        same = len(points) - len(jobs)
        said = f"{len(points)} points" + (f", {same} with the result of another" if same else "")
        say(f"{said}; {len(done)} of {len(jobs)} jobs are done, {len(waiting)} to run")
        size = self.chunk(len(waiting))
        for start in range(0, len(waiting), size):
            self.launch(waiting[start : start + size], start, len(waiting), parent)
            failed = [job for job in waiting[: start + size] if self.outcomes[job.key].error]
            if failed and self.config.sweep.fail_fast and start + size < len(waiting):
                left = len(waiting) - start - size
                say(f"sweep.fail_fast=true: {left} jobs are not started after the failure of {failed[0].name}")
                for job in waiting[start + size :]:
                    self.outcomes[job.key] = Outcome()
                return

    def chunk(self, waiting: int) -> int:
        """How many jobs a launcher is given at a time: one where it runs one, else all unless a failure is to stop."""
        if self.at_once == 1 and "n_jobs" not in self.master.hydra.launcher:
            basic = self.master.hydra.launcher._target_.startswith("hydra._internal")
            return 1 if basic or self.config.sweep.fail_fast else max(1, waiting)
        return self.at_once if self.config.sweep.fail_fast else max(1, waiting)

    def complete(self, job: Point) -> Path | None:
        """Returns the folder of a job that is done, whatever sweep it was done in."""
        for file in self.jobs_folder.glob(f"*-{job.key}/metrics.json"):
            return file.parent
        return None

    @property
    def jobs_folder(self) -> Path:
        """Where the folders of jobs are."""
        return Path(self.master.hydra.sweep.dir).absolute()

    def count(self, job: Point, folder: Path, parent: tracking.Parent) -> None:
        """Takes the result of a job that is done.

        Raises:
            UsageError: for one that is torn.
        """
        result = read_result(folder)
        self.outcomes[job.key] = Outcome(score=float(result["score"]))
        named = replace(job.config.tracking, parent=parent.run_id, run_name=job.name)
        parent.count(replace(job.config, tracking=named), folder, result)

    def launch(self, jobs: Sequence[Point], first: int, total: int, parent: tracking.Parent) -> None:
        """Runs jobs and notes how each ended; one that fails leaves the others alone."""
        if len(jobs) == 1:
            say(f"job {first + 1} of {total}: {jobs[0].name}{self.remaining(first, total)}")
        started = time.monotonic()
        try:
            lines = [self.line(job, parent) for job in jobs]
            returns: list[JobReturn | None] = [*self.launcher.launch(lines, initial_job_idx=first)]
        except Exception as error:  # a worker that was killed takes all others along
            line = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            say(f"the launcher fails: {line}")
            returns = [None] * len(jobs)
            if len(jobs) == 1:
                self.outcomes[jobs[0].key] = Outcome(error=line, unexpected=True)
            if len(jobs) > 1:
                say("the jobs that it left go on one by one, so that the one which fails does so alone")
                parent.close_jobs()
                for place, job in enumerate(jobs, first):
                    if self.complete(job) is None:
                        self.launch([job], place, total, parent)
        self.spent += time.monotonic() - started
        for job, returned in zip(jobs, returns, strict=True):
            if (folder := self.complete(job)) is not None:
                parent.forget(folder)
                self.count(job, folder, parent)
            elif returned is not None or job.key not in self.outcomes:
                self.outcomes[job.key] = failure(returned)

    def remaining(self, done: int, total: int) -> str:
        """Returns in words how long the rest will take, as the jobs before did."""
        if not done:
            return ""
        minutes = self.spent / done * (total - done) / 60
        return f" (about {minutes:.0f} min left)" if minutes >= 1 else " (less than a minute left)"

    def line(self, job: Point, parent: tracking.Parent) -> list[str]:
        """Returns the overrides that a launcher is given for a job."""
        place = [f"hydra.sweep.dir={quoted(str(self.jobs_folder))}", f"hydra.sweep.subdir={job.folder}"]
        nested = [f"tracking.parent={parent.run_id}", f"tracking.run_name={job.name}"] if parent.run_id else []
        return [*job.overrides, *nested, *place]

    # The end ---------------------------------------------------------------------------------------------------

    def conclude(self, question: Question, points: Sequence[Point], parent: tracking.Parent) -> None:
        """Compares, and sets the parent's status by its jobs."""
        layout = self.write(question, points, parent)
        failed = [outcome for outcome in self.outcomes.values() if outcome.error]
        if failed:
            parent.status = "KILLED" if all(outcome.stopped for outcome in failed) else "FAILED"
        parent.record.tags({"jobs": str(len(self.outcomes)), "jobs_failed": str(len(failed))})
        from tlexp.compare.report import report  # matplotlib and scipy only where there is something to compare
        from tlexp.report import screen

        report(layout, self.results(points, parent), self.folder, parent.record, screen)
        if address := parent.address:
            uri = without_password(self.config.tracking.uri) or ""
            local = uri.startswith("sqlite:")
            say(f"mlflow ui --backend-store-uri {uri}, then http://127.0.0.1:5000{address}" if local else uri + address)

    def results(self, points: Sequence[Point], parent: tracking.Parent) -> "dict[str, Result]":
        """Returns what the jobs measured, as MLflow has it; without a store, as their folders do."""
        from tlexp.compare.study import Result

        folders = {each.key: folder for each in points if (folder := self.complete(each)) is not None}
        found = {key: tracking.final_metrics(read_result(folder)) for key, folder in folders.items()}
        if parent.record.client is not None and parent.run_id is not None:
            with tracking.bookkeeping("the results could not be read back; they are taken from the jobs' folders"):
                found |= tracking.read_sweep(parent.record.client, parent.run_id)[1]
        return {key: Result(metrics["score"], metrics) for key, metrics in found.items()}

    def write(self, question: Question, points: Sequence[Point], parent: tracking.Parent) -> dict[str, Any]:
        """Writes down what the comparison needs to know beside the runs: axes, points, what is compared."""
        content = {
            "name": self.folder.name,
            "axes": [axis.name for axis in question.axes],
            "methods": self.declared_methods(question),
            "searched": self.config.sweep.trials is not None,
            "baseline": self.config.sweep.baseline,
            "metric": self.config.sweep.metric,
            "jobs": str(self.jobs_folder),
            "monitor": self.config.monitor,
            "task": task_of(self.config),
            "points": [{"values": each.values, "key": each.key} for each in points],
        }
        unfinished = self.folder / "unfinished.json"
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self.folder / LAYOUT)
        parent.record.artifact(self.folder / LAYOUT)
        parent.describe(content)
        return content

    def declared_methods(self, question: Question) -> list[str] | None:
        """Returns the axes that are compared as they were declared; of a search the strategies, if any."""
        if self.config.sweep.methods is not None or self.config.sweep.trials is None:
            return self.config.sweep.methods
        return [axis.name for axis in question.axes if axis.name in ("strategy", "terms")]

    def judge(self, points: Sequence[Point]) -> None:
        """Lets the command fail where a job did.

        Raises:
            JobsFailed: naming the first.
        """
        failed = {each.key: each for each in points if self.outcomes[each.key].error}
        if failed:
            first = next(iter(failed.values()))
            outcome = self.outcomes[first.key]
            unexpected = any(self.outcomes[key].unexpected for key in failed)
            raise JobsFailed(len(failed), len(self.outcomes), f"{first.name} ({outcome.error})", unexpected)


def task_of(config: Config) -> dict[str, Any]:
    """Returns what sweeps must share for their results to be compared: the target, its labels and its splits."""
    data = config.data
    names = ("shots", "fraction", "val", "test_fraction")
    return {"target": data.target["name"], "split_seed": config.split_seed, **{n: getattr(data, n) for n in names}}


def quoted(value: str) -> str:
    """Returns a value as an override takes it, whatever signs it has."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def failure(returned: JobReturn | None) -> Outcome:
    """Returns how a job ended that left no result."""
    error = getattr(returned, "_return_value", None)
    if isinstance(error, JobFailed):
        return Outcome(error=str(error), unexpected=error.unexpected, stopped=error.stopped, diverged=error.diverged)
    return Outcome(error="its process ended without a word" if error is None else str(error), unexpected=True)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes that start inside the block."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def say(line: str) -> None:
    """Prints a line of the sweep's own."""
    print(f"sweep: {line}", file=sys.stdout, flush=True)
