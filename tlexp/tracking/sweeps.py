"""A sweep's own run in MLflow: opened before any job, with the jobs nested under it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.fingerprint import content_key
from tlexp.signals import Stopped
from tlexp.tracking import runs
from tlexp.tracking.client import PARENT, ROLE, search_all_runs
from tlexp.tracking.mlflow_run import MLflowRun, best_effort, first_line
from tlexp.tracking.orphans import close_orphans, finish_run
from tlexp.tracking.ui_view import save_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STOPPED_WITH_SWEEP = "stopped together with its sweep"


class SweepRun:
    """A sweep's run; with `tracking=none` it has no client, and its methods do nothing.

    Attributes:
        run: its metrics, tags and files.
        status: with which it will be closed unless an exception says otherwise.
    """

    def __init__(self, run: MLflowRun, experiment: str) -> None:
        self.run, self.experiment = run, experiment
        self.status = "FINISHED"
        self._jobs: dict[str, Run] | None = None

    @property
    def run_id(self) -> str | None:
        """The id that jobs are nested under; None without a store."""
        return self.run.run_id or None

    def close_as(self, status: str) -> None:
        """Sets the status with which the run will be closed."""
        self.status = status

    def adopt(self, config: Config, folder: Path, result: Mapping[str, Any]) -> None:
        """Makes sure that a complete job has its whole MLflow run under this sweep.

        A job that another sweep trained, or that was tracked in another store, is logged again from its folder; one
        that was stopped between its result and its closing is closed.
        """
        client = self.run.client
        if client is None or self.run_id is None:
            return
        lock = FileLock(folder / run_folder.LOCK, timeout=1)  # tells others that this run is being written
        with best_effort(f"the run of {folder.name} could not be completed"), lock:
            if self._jobs is None:  # all at once, since a sweep that is continued may have many
                self._jobs = {run.data.tags["folder"]: run for run in job_runs(client, self.experiment, self.run_id)}
            known = self._jobs.get(str(folder)) or self._find(client, folder, config.hash)
            if known is None:
                run_id = _log_again(client, self.experiment, config, folder, result)
                self._jobs[str(folder)] = client.get_run(run_id)
            elif known.info.status != "FINISHED" or "score" not in known.data.metrics:
                finish_run(client, known.info.run_id, folder)
        (folder / run_folder.LOCK).unlink(missing_ok=True)

    def _find(self, client: "MlflowClient", folder: Path, key: str) -> "Run | None":
        """Asks the store for one job, which may have been added since all of them were read."""
        which = f"tags.`{PARENT}` = '{self.run_id}' and tags.config_hash = '{key}'"
        matches = search_all_runs(client, self.experiment, which)
        return next((run for run in matches if run.data.tags["folder"] == str(folder)), None)

    def forget(self, folder: Path) -> None:
        """Forgets what the store had of a job, since it ran meanwhile."""
        if self._jobs is not None:
            self._jobs.pop(str(folder), None)

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Lets MLflow's page of the sweep show what the sweep is about."""
        if self.run.client is not None and self.run_id is not None:
            save_view(self.run.client, self.experiment, self.run_id, manifest)

    @property
    def address(self) -> str:
        """The page of the sweep's jobs, relative to the address of MLflow's user interface; empty without a store."""
        return jobs_address(self.experiment, self.run_id) if self.run_id else ""

    def close_jobs(self) -> None:
        """Closes the runs of jobs whose process was ended with this one."""
        if self.run.client is not None and self.run_id is not None:
            with best_effort("the runs of stopped jobs could not be closed"):
                close_orphans(self.run.client, self.experiment, self.run_id, STOPPED_WITH_SWEEP)


def jobs_address(experiment: str, run_id: str, charts: bool = True) -> str:
    """Returns the page of a sweep's jobs relative to MLflow's user interface, as charts or as a table."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={run_id}" + "&compareRunsMode=CHART" * charts


@contextmanager
def track_sweep(config: Config, folder: Path, name: str, tags: Mapping[str, str]) -> Iterator[SweepRun]:
    """Opens a sweep's run, or reopens that of its folder, and closes it with the status of its jobs and its own end.

    Raises:
        UsageError: for a store that fails.
    """
    sweep = SweepRun(MLflowRun(), "")
    if config.tracking.backend == "mlflow":
        client, experiment = runs.open_store(config)
        key = content_key({"experiment": config.tracking.experiment})
        run_id = run_folder.read_mlflow_run_id(folder, key)
        if run_id is None or not runs.reopen_run(client, run_id):
            own_tags = {ROLE: "sweep", "folder": str(folder), **runs.git_state()}
            run_id = str(client.create_run(experiment, tags=own_tags, run_name=name).info.run_id)
            run_folder.write_mlflow_run_id(folder, run_id, key)
        sweep = SweepRun(MLflowRun(client, run_id), experiment)
        sweep.run.set_tags(tags)
    try:
        yield sweep
    except BaseException as error:
        sweep.close_jobs()
        sweep.run.set_tags({"error": f"{type(error).__name__}: {first_line(error)}"})
        sweep.run.close("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")
        raise
    sweep.close_jobs()
    sweep.run.close(sweep.status)


def job_runs(client: "MlflowClient", experiment: str, sweep_id: str) -> list["Run"]:
    """Returns the runs nested under a sweep's, the oldest first."""
    return search_all_runs(client, experiment, f"tags.`{PARENT}` = '{sweep_id}'")


def _log_again(client: "MlflowClient", experiment: str, config: Config, folder: Path, result: Mapping[str, Any]) -> str:
    """Logs a complete run anew from the files in its folder; returns its id."""
    run_id = runs.create_run(client, experiment, config, folder)
    run = MLflowRun(client, run_id)
    runs.log_config(run, config, folder)
    for row in run_folder.read_history(folder):
        run.log_metrics({name: row[name] for name in row if name != "epoch"}, step=row["epoch"])
    summary = run_folder.summary_metrics(result)
    summary.pop("seconds", None)  # measured after a run has logged everything else
    run.log_metrics(summary, step=result["best_epoch"])
    run.set_tags({"recorded_again": "true", **{f"split.{role}": key for role, key in result["split_hashes"].items()}})
    run.log_artifact(folder / run_folder.METRICS)
    for figure in sorted(folder.glob("*.png")):
        run.log_artifact(figure, "pictures")
    run.close("FINISHED")
    return run_id
