"""Runs whose process died without reporting: after `kill -9` or a power cut they would stay RUNNING for ever."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tlexp import run_folder
from tlexp.tracking.client import PARENT
from tlexp.tracking.mlflow_run import MLflowRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

MAX_RESULTS = 1000
DIED = "process died without reporting (for example kill -9)"


def close_orphans(client: "MlflowClient", experiment: str, parent: str | None = None, reason: str = DIED) -> None:
    """Closes the runs of an experiment, or of one sweep in it, that no process works on any more.

    Whoever works on a run holds the lock in its folder. Runs whose folder is not on this machine are left alone. A run
    with a result is FINISHED, any other KILLED.
    """
    which = "attributes.status = 'RUNNING'" + (f" and tags.`{PARENT}` = '{parent}'" if parent else "")
    closed = []
    for run in client.search_runs([experiment], which, max_results=MAX_RESULTS):
        folder = Path(run.data.tags.get("folder", ""))
        try:
            if not folder.is_absolute() or not folder.is_dir() or run_folder.is_locked(folder):
                continue
        except OSError:  # another user's folder
            continue
        if run_folder.is_complete(folder) and run_folder.belongs_to(folder, run.info.run_id):
            finish_run(client, run.info.run_id, folder)
            continue
        client.set_tag(run.info.run_id, "error", reason)
        client.set_terminated(run.info.run_id, "KILLED")
        closed.append(run.info.run_name)
    if closed and reason == DIED:
        names = ", ".join(closed[:3]) + (f" and {len(closed) - 3} more" if len(closed) > 3 else "")
        log.warning("MLflow: closed runs of dead processes as KILLED: %s", names)


def finish_run(client: "MlflowClient", run_id: str, folder: Path) -> None:
    """Closes a run that has its result as FINISHED, with everything that may not have been sent."""
    result = run_folder.read_metrics(folder)
    run = MLflowRun(client, run_id)
    if "best_epoch" in result:
        run.log_metrics(run_folder.summary_metrics(result), step=result["best_epoch"])
    run.log_artifact(folder / run_folder.METRICS)
    run.close("FINISHED")
