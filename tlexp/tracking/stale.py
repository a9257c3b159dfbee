"""Runs whose process ended without a word: after `kill -9` or a power cut they would stay RUNNING for ever."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tlexp.tracking.record import Record, final_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

LOCK = ".lock"  # held in a run's or a sweep's folder for as long as its process lives, by the operating system
RUN_ID = "mlflow_run_id.txt"  # of a folder's run
MOST = 1000
SILENT = "its process ended without a word, as after kill -9"


def close_stale(client: "MlflowClient", experiment: str, parent: str | None = None, why: str = SILENT) -> None:
    """Closes the runs of an experiment, or of one sweep in it, that nobody works on any more, as what they are.

    Who works on a run holds the lock in its folder. Runs whose folder is not on this machine are left alone.
    """
    which = "attributes.status = 'RUNNING'"
    which += f" and tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
    closed = []
    for run in client.search_runs([experiment], which, max_results=MOST):
        folder = Path(run.data.tags.get("folder", ""))
        try:
            if not folder.is_absolute() or not folder.is_dir() or is_locked(folder):
                continue
        except OSError:  # of somebody else, who may not be asked
            continue
        if (folder / "metrics.json").exists() and run.info.run_id in _noted(folder):
            complete(client, run.info.run_id, folder)
            continue
        client.set_tag(run.info.run_id, "error", why)
        client.set_terminated(run.info.run_id, "KILLED")
        closed.append(run.info.run_name)
    if closed and why == SILENT:
        names = ", ".join(closed[:3]) + (f" and {len(closed) - 3} more" if len(closed) > 3 else "")
        log.warning("MLflow: closed as KILLED what a process left that ended without a word: %s", names)


def complete(client: "MlflowClient", run_id: str, folder: Path) -> None:
    """Closes the record of a run that has its result, with what it may not have come to send."""
    result = json.loads((folder / "metrics.json").read_text())
    record = Record(client, run_id)
    if "best_epoch" in result:
        record.metrics(final_metrics(result), step=result["best_epoch"])
    record.artifact(folder / "metrics.json")
    record.close("FINISHED")


def _noted(folder: Path) -> str:
    """Returns what a folder notes of its run in the store; nothing where it has not come to that."""
    file = folder / RUN_ID
    return file.read_text() if file.exists() else ""


def is_locked(folder: Path) -> bool:
    """Returns whether a process works in a folder."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
