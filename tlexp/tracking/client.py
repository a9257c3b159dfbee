"""The MLflow client and its store, which is created and migrated once, however many processes start together."""

import hashlib
import logging
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tlexp.errors import UsageError
from tlexp.sqlite_address import sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT = "mlflow.parentRunId"  # the tag by which MLflow nests runs
ROLE = "tlexp.role"  # the tag that tells a sweep's own run from those of jobs
OLDEST_FIRST = ["attributes.start_time ASC"]


def connect(uri: str | None) -> "MlflowClient":
    """Returns a separate client, so that no active run of this process or its environment matters."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server that is down should not delay training for minutes; what it misses is sent again an epoch later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a failed call is reported once, by us
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def lock_file(uri: str) -> Path:
    """Returns the file that processes of this machine lock while they open the store."""
    if database := sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(database.name + ".lock")
    return Path(tempfile.gettempdir()) / f"tlexp-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.lock"


def write_ahead(uri: str) -> None:
    """Sets a new SQLite file to write-ahead logging, which serves several writers better; it stays set."""
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def artifact_root(uri: str) -> str | None:
    """Artifacts are stored beside a local database; a server has its own location."""
    database = sqlite_file(uri)
    return (database.parent.absolute() / "mlartifacts").as_uri() if database is not None else None


def experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    """Returns the id of the named experiment, also where another machine creates it at the same time."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UsageError(f"tracking.experiment={name}: it was deleted in MLflow; restore it there or choose another")
    return str(experiment.experiment_id)


def search_all_runs(client: "MlflowClient", experiment: str, filter_string: str) -> list["Run"]:
    """Returns all runs that match a filter of MLflow, the oldest first."""
    page = client.search_runs([experiment], filter_string, order_by=OLDEST_FIRST)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment], filter_string, order_by=OLDEST_FIRST, page_token=page.token)
        runs += page
    return runs
