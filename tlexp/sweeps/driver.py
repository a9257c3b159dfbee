"""One multirun from its proposed grid points to the comparison, inside its own MLflow run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from tlexp import run_folder
from tlexp.comparison.axes import REPLICATES, is_problem, method_axes
from tlexp.config.schema import Config, ui_command
from tlexp.errors import JobsFailedError
from tlexp.processes import CONCURRENT_JOBS, SWEEP_OWNER, SWEEP_TOKEN
from tlexp.signals import Stopped, stop_signals
from tlexp.sweeps.confirmation import confirming_manifest, confirming_points
from tlexp.sweeps.jobs import JobRunner, Outcome, concurrent_jobs, echo, jobs_folder
from tlexp.sweeps.points import Composer, GridPoint, axes_with_other_tests
from tlexp.sweeps.validation import validate_spec
from tlexp.tracking.mlflow_run import MLflowRun
from tlexp.tracking.sweeps import SweepRun, track_sweep


class Proposer(Protocol):
    """Decides which grid points a sweep evaluates."""

    def open(self, folder: Path, config: Config, concurrent: int) -> list[tuple[GridPoint, bool]]:
        """Starts, or continues what `folder` holds.

        Returns:
            The grid points that an earlier command evaluated, each with whether its trial diverged.
        """

    def propose(self) -> Iterator[list[GridPoint]]:
        """Yields batches of grid points; each is observed before the next is asked for."""

    def observe(self, outcomes: Mapping[str, Outcome]) -> None:
        """Learns how the jobs of the last batch ended."""

    def close(self, run: MLflowRun) -> None:
        """Logs its summary to the sweep's run."""


class SweepDriver:
    """Runs a multirun.

    Args:
        master: the configuration of the multirun, Hydra's own part included.
        context: Hydra's.
        task: what a job runs.
        composer: of the multirun's configurations.
    """

    def __init__(self, master: DictConfig, context: HydraContext, task: TaskFunction, composer: Composer) -> None:
        self._hydra, self._composer = master.hydra, composer
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=master
        )

    def run(self, proposer: Proposer) -> Path:
        """Evaluates all grid points that a proposer asks for and compares them; returns the sweep's folder.

        Raises:
            UsageError: where another process runs the same sweep, or the store fails.
            JobsFailedError: at the end, where jobs failed.
        """
        config, spec = self._composer.shared(), self._composer.spec
        validate_spec(config, spec)
        name = config.sweep.name or spec.label
        folder = Path(config.sweep.out).absolute() / f"{name}-{spec.key}"
        folder.mkdir(parents=True, exist_ok=True)
        with self._opened(config, folder, name) as sweep:
            runner = JobRunner(self._launcher, self._hydra, sweep, config)
            earlier = proposer.open(folder, config, concurrent_jobs(self._hydra.launcher))
            points = [point for point, _ in earlier]
            self._write_manifest(config, folder, points, sweep)
            lost = [(point, diverged) for point, diverged in earlier if not runner.take_result(point)]
            runner.outcomes |= {
                point.key: Outcome(error="diverged in an earlier run", diverged=True)
                for point, diverged in lost
                if diverged
            }
            # The folders of these are gone, or of an old version.
            if again := [point for point, diverged in lost if not diverged]:
                runner.evaluate(again, self._told_apart(config, points))
            for batch in proposer.propose():
                points += batch
                # Before any job: the family of tests is declared here, and a kill leaves what can be compared.
                self._write_manifest(config, folder, points, sweep)
                runner.evaluate(batch, self._told_apart(config, points))
                proposer.observe(runner.outcomes)
                if config.sweep.fail_fast and any(outcome.error for outcome in runner.outcomes.values()):
                    break
            self._conclude(config, folder, points, runner, sweep)
            proposer.close(sweep.run)
            if config.sweep.confirm and any(outcome.score is not None for outcome in runner.outcomes.values()):
                points += self._confirm(config, folder, points, runner, sweep)
        raise_on_failures(points, runner.outcomes)
        return folder

    def _confirm(
        self, config: Config, folder: Path, points: Sequence[GridPoint], runner: JobRunner, sweep: SweepRun
    ) -> list[GridPoint]:
        """Runs what was selected on fresh draws and seeds and compares these runs alone; returns their grid points."""
        manifest = run_folder.read_manifest(folder)
        count = config.sweep.confirm or 0
        confirming = confirming_points(manifest, read_results(points, runner.folder), points, self._composer, count)
        echo(f"confirming the selected configurations on {count} fresh label draws and seeds")
        runner.evaluate(confirming, self._told_apart(config, points))
        from tlexp.comparison.report import report
        from tlexp.reporting.console import terminal

        manifest = confirming_manifest(manifest, confirming)
        comparison = report(manifest, read_results(confirming, runner.folder), folder / "confirmed", terminal())
        if comparison is not None:
            run_folder.write_manifest(folder / "confirmed", manifest)
            for file in comparison.files:
                sweep.run.log_artifact(file, "confirmed")
            sweep.run.set_tags({"mlflow.note.content": comparison.description})
            sweep.run.log_metrics({f"confirmed/{name}": value for name, value in comparison.best.items()}, step=0)
        return confirming

    @contextmanager
    def _opened(self, config: Config, folder: Path, name: str) -> Iterator[SweepRun]:
        """Holds the sweep's folder and its run, and lets signals stop it in order."""
        axes = self._composer.spec.axes
        tags = {
            f"axis.{axis.name.replace('@', '.')}": ",".join(axis.values) or axis.override.input_line or ""
            for axis in axes
        }
        concurrent = str(concurrent_jobs(self._hydra.launcher))
        with (
            stop_signals(),
            run_folder.locked(folder, "another process runs this sweep; wait for it or stop it"),
            track_sweep(config, folder, name, tags) as sweep,
            environment({SWEEP_OWNER: str(os.getpid()), SWEEP_TOKEN: uuid4().hex, CONCURRENT_JOBS: concurrent}),
        ):
            try:
                yield sweep
            except Stopped:
                echo("interrupted: the same command runs the rest")
                raise

    def _conclude(
        self, config: Config, folder: Path, points: Sequence[GridPoint], runner: JobRunner, sweep: SweepRun
    ) -> None:
        """Compares, and sets the status of the sweep's run by its jobs."""
        manifest = self._write_manifest(config, folder, points, sweep)
        failed = [outcome for outcome in runner.outcomes.values() if outcome.error]
        if failed:
            sweep.close_as("KILLED" if all(outcome.stopped for outcome in failed) else "FAILED")
        sweep.run.set_tags({"jobs": str(len(runner.outcomes)), "jobs_failed": str(len(failed))})
        from tlexp.comparison.report import report  # matplotlib and scipy only where there is something to compare
        from tlexp.reporting.console import terminal

        comparison = report(manifest, read_results(points, runner.folder), folder, terminal())
        if comparison is not None:
            for file in comparison.files:
                sweep.run.log_artifact(file, "comparison")
            sweep.run.set_tags({"mlflow.note.content": comparison.description})
            sweep.run.log_metrics(comparison.best, step=0)
        if address := sweep.address:
            opened = ui_command(config.tracking.uri or "")
            local = opened.startswith("mlflow ui")
            echo(f"{opened}, then http://127.0.0.1:5000{address}" if local else opened + address)

    def _declared_methods(self, config: Config) -> list[str] | None:
        """Returns the axes that are compared; None where the axes themselves suggest them."""
        methods = config.sweep.methods
        if methods is None and config.sweep.trials is not None:  # values of a search are tuned, not compared
            return [axis.name for axis in self._composer.spec.axes if axis.name in ("strategy", "terms")]
        return methods

    def _told_apart(self, config: Config, points: Sequence[GridPoint]) -> list[str]:
        """Returns the axes of methods and of problems: of each combination the best checkpoint stays."""
        axes = [axis.name for axis in self._composer.spec.axes]
        other_tests, methods = axes_with_other_tests(axes, points), self._declared_methods(config)
        methods = method_axes(axes, other_tests) if methods is None else methods
        problems = [axis for axis in axes if is_problem(axis) or axis in other_tests]
        return [axis for axis in axes if axis in (*methods, *problems) and axis not in REPLICATES]

    def _write_manifest(
        self, config: Config, folder: Path, points: Sequence[GridPoint], sweep: SweepRun
    ) -> dict[str, Any]:
        """Writes what a comparison must know beside the runs: axes, grid points, what is compared.

        What the first command compares is declared; what a later one compares otherwise was chosen after results.
        """
        spec = self._composer.spec
        methods = self._declared_methods(config)
        manifest = {
            "name": folder.name,
            "axes": [axis.name for axis in spec.axes],
            "other_tests": axes_with_other_tests([axis.name for axis in spec.axes], points),
            "methods": methods,
            "searched": config.sweep.trials is not None,
            "baseline": config.sweep.baseline,
            "metric": config.sweep.metric,
            "jobs": str(jobs_folder(self._hydra)),
            "monitor": config.monitor,
            "task": task_of(config),
            "rope": config.sweep.rope,
            "choose": config.sweep.choose,
            "points": [{"values": point.values, "key": point.key, "draw": point.draw} for point in points],
        }
        question = {name: manifest[name] for name in ("methods", "baseline", "metric", "rope", "choose")}
        earlier = run_folder.read_manifest(folder) if (folder / run_folder.MANIFEST).exists() else {}
        manifest["declared"] = declared = earlier.get(
            "declared", {name: earlier.get(name, question[name]) for name in question}
        )
        manifest["changed"] = [name for name in question if question[name] != declared.get(name, question[name])]
        run_folder.write_manifest(folder, manifest)
        sweep.run.log_artifact(folder / run_folder.MANIFEST)
        sweep.describe(manifest)
        return manifest


def task_of(config: Config) -> dict[str, Any]:
    """Returns what sweeps must share to be comparable: the target, its labels and its splits."""
    data = config.data
    names = ("shots", "fraction", "val", "test_fraction")
    return {"target": data.target["name"], "split_seed": config.split_seed, **{n: getattr(data, n) for n in names}}


def read_results(points: Sequence[GridPoint], jobs: Path) -> dict[str, dict[str, float]]:
    """Returns every number that the complete jobs measured, by key, from their folders."""
    folders = {point.key: run_folder.find_job(jobs, point.key) for point in points}
    return {
        key: run_folder.numbers(run_folder.read_metrics(folder))
        for key, folder in folders.items()
        if folder is not None
    }


def raise_on_failures(points: Sequence[GridPoint], outcomes: Mapping[str, Outcome]) -> None:
    """Makes the command fail where jobs did.

    Raises:
        JobsFailedError: naming the first; its exit code is 1 for a bug, 3 where training diverged in all, else 2.
    """
    failed = {point.key: point for point in points if outcomes[point.key].error}
    if not failed:
        return
    key, first = next(iter(failed.items()))
    errors = [outcomes[key] for key in failed]
    exit_code = 3 if all(error.diverged for error in errors) else 2
    if any(error.unexpected for error in errors):
        exit_code = 1
    raise JobsFailedError(len(failed), len(outcomes), f"{first.name} ({outcomes[key].error})", exit_code)


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
