"""A multirun's own run in MLflow: there before any job, with the jobs nested under it by id."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tlexp.config import Config, content_key
from tlexp.stopping import Stopped
from tlexp.tracking import runs
from tlexp.tracking.record import Record, bookkeeping, final_metrics, first_line, rows
from tlexp.tracking.stale import LOCK, close_stale, complete
from tlexp.tracking.view import save_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

OLDEST_FIRST = ["attributes.start_time ASC"]
ROLE = "tlexp.role"  # tells a sweep's own run from those of jobs


class Parent:
    """A sweep's run; with `tracking=none` it has no client, and nothing it is asked to do happens.

    Attributes:
        record: its tags and files.
        status: as which it will be closed unless an error says otherwise.
    """

    def __init__(self, record: Record, experiment: str) -> None:
        self.record, self.experiment = record, experiment
        self.status = "FINISHED"
        self._children: dict[str, Run] | None = None

    @property
    def run_id(self) -> str | None:
        """The id that jobs are nested under; None without a store."""
        return self.record.run_id or None

    def count(self, config: Config, folder: Path, result: Mapping[str, Any]) -> None:
        """Makes sure that a job which is complete already has its whole record under this sweep.

        One that another sweep trained, or that was recorded in another store, is written again from its folder; one
        that was stopped between its result and its closing is closed.
        """
        client = self.record.client
        if client is None or self.run_id is None:
            return
        if self._children is None:  # all at once, since a sweep that goes on may count many
            self._children = {run.data.tags["folder"]: run for run in children(client, self.experiment, self.run_id)}
        # The lock tells others that look for what dead processes left that this record is being written.
        with bookkeeping(f"the record of {folder.name} could not be completed"), FileLock(folder / LOCK, timeout=1):
            known = self._children.get(str(folder)) or self._find(client, folder, config.hash)
            if known is None:
                run_id = _record_again(client, self.experiment, config, folder, result)
                self._children[str(folder)] = client.get_run(run_id)
            elif known.info.status != "FINISHED" or "score" not in known.data.metrics:
                complete(client, known.info.run_id, folder)
        (folder / LOCK).unlink(missing_ok=True)

    def _find(self, client: "MlflowClient", folder: Path, key: str) -> "Run | None":
        """Asks the store for one job, which may have been added since all of them were read."""
        which = f"tags.`{runs.PARENT}` = '{self.run_id}' and tags.config_hash = '{key}'"
        return next((r for r in found(client, self.experiment, which) if r.data.tags["folder"] == str(folder)), None)

    def forget(self, folder: Path) -> None:
        """Forgets what the store had of a job, since it ran."""
        if self._children is not None:
            self._children.pop(str(folder), None)

    def describe(self, layout: Mapping[str, Any]) -> None:
        """Lets MLflow's page of the sweep show what the sweep is about."""
        if self.record.client is not None and self.run_id is not None:
            save_view(self.record.client, self.experiment, self.run_id, layout)

    @property
    def address(self) -> str:
        """The page of the sweep's jobs below the address of MLflow's user interface; empty without a store."""
        if not self.run_id:
            return ""
        return jobs_address(self.experiment, self.run_id)

    def close_jobs(self) -> None:
        """Closes what jobs left open whose process was ended with this one."""
        if self.record.client is not None and self.run_id is not None:
            with bookkeeping("the runs of jobs that were stopped could not be closed"):
                close_stale(self.record.client, self.experiment, self.run_id, "it was ended together with its sweep")


def jobs_address(experiment: str, run_id: str, charts: bool = True) -> str:
    """Returns the page of a sweep's jobs below the address of MLflow's user interface, as charts or as a table."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={run_id}" + "&compareRunsMode=CHART" * charts


@contextmanager
def sweep_tracked(config: Config, folder: Path, name: str, tags: Mapping[str, str]) -> Iterator[Parent]:
    """Opens a sweep's run, or the one that its folder had, and closes it as its jobs and its own end say.

    Raises:
        UsageError: for a store that fails.
    """
    parent = Parent(Record(), "")
    if config.tracking.backend == "mlflow":
        client, experiment = runs.reach(config)
        key = content_key({"experiment": config.tracking.experiment})
        former = runs.kept_id(folder, key)
        if former is None or not runs.reopened(client, former):
            described = {ROLE: "sweep", "folder": str(folder), **runs.git_state()}
            former = client.create_run(experiment, tags=described, run_name=name).info.run_id
            runs.keep_id(folder, former, key)
        parent = Parent(Record(client, former), experiment)
        parent.record.tags(tags)
    try:
        yield parent
    except BaseException as error:
        parent.close_jobs()
        parent.record.tags({"error": f"{type(error).__name__}: {first_line(error)}"})
        parent.record.close("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")
        raise
    parent.close_jobs()
    parent.record.close(parent.status)


def children(client: "MlflowClient", experiment: str, parent: str) -> list["Run"]:
    """Returns the runs nested under a sweep's, the oldest first."""
    return found(client, experiment, f"tags.`{runs.PARENT}` = '{parent}'")


def found(client: "MlflowClient", experiment: str, which: str) -> list["Run"]:
    """Returns all runs that a filter of MLflow finds, the oldest first."""
    page = client.search_runs([experiment], which, order_by=OLDEST_FIRST)
    everything = list(page)
    while page.token:
        page = client.search_runs([experiment], which, order_by=OLDEST_FIRST, page_token=page.token)
        everything += page
    return everything


def _record_again(
    client: "MlflowClient", experiment: str, config: Config, folder: Path, result: Mapping[str, Any]
) -> str:
    """Writes a complete run's record anew from the files in its folder; returns its id."""
    run_id = runs.create(client, experiment, config, folder)
    record = Record(client, run_id)
    for row in rows(folder / "history.jsonl"):
        record.metrics({name: row[name] for name in row if name != "epoch"}, step=row["epoch"])
    final = final_metrics(result)
    final.pop("seconds", None)  # measured after a run has said everything else
    record.metrics(final, step=result["best_epoch"])
    record.tags({"recorded_again": "true", **{f"split.{role}": key for role, key in result["split_hashes"].items()}})
    record.artifact(folder / "metrics.json")
    for picture in sorted(folder.glob("*.png")):
        record.artifact(picture, "pictures")
    record.close("FINISHED")
    return run_id
