"""MLflow's store: reached, made and migrated once, however many processes start together."""

import hashlib
import logging
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tlexp.errors import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def connect(uri: str | None) -> "MlflowClient":
    """Returns a client of its own, so that no active run of this process or its environment matters."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server that is away should not hold up training for minutes; what it misses is sent again an epoch later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a failed call is said once, by us
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def lock_file(uri: str) -> Path:
    """Returns the file that processes of this machine lock while they open the store."""
    if database := _sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(database.name + ".lock")
    return Path(tempfile.gettempdir()) / f"tlexp-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.lock"


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def write_ahead(uri: str) -> None:
    """Sets a new SQLite file to write-ahead logging, which serves several writers better; it stays set."""
    database = _sqlite_file(uri)
    if database is not None and not database.exists():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def artifact_root(uri: str) -> str | None:
    """Artifacts lie beside a local database; a server knows its own place."""
    database = _sqlite_file(uri)
    return (database.parent.absolute() / "mlartifacts").as_uri() if database is not None else None


def experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    """Returns the id of the named experiment, also where another machine creates it at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UsageError(f"tracking.experiment={name}: it was deleted in MLflow; restore it there or choose another")
    return str(found.experiment_id)
