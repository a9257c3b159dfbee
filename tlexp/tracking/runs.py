"""Opening and closing runs, and what describes them: parameters, axes, versions."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tlexp import run_folder
from tlexp.config.schema import Config, redact_uri
from tlexp.errors import UsageError
from tlexp.signals import Stopped
from tlexp.tracking.client import (
    PARENT,
    artifact_root,
    connect,
    experiment_id,
    lock_file,
    search_all_runs,
    write_ahead,
)
from tlexp.tracking.mlflow_run import MLflowRun, best_effort, first_line
from tlexp.tracking.orphans import close_orphans

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow takes longer values, but its pages become unreadable; the whole configuration is an artifact.
LONGEST_PARAM = 500
PARAMS_PER_CALL = 100  # MLflow's own limit
PACKAGES = ("tlexp", "torch", "torchvision", "pytorch-lightning", "timm", "transformers", "mlflow")


@contextmanager
def track_run(config: Config, folder: Path) -> Iterator[MLflowRun]:
    """Opens a run and closes it with the status of what happens inside the block."""
    run = MLflowRun()
    try:
        if config.tracking.backend == "mlflow":
            run = _open(config, folder)
            log_config(run, config, folder)
        yield run
        run.log_artifact(folder / run_folder.METRICS)
    except BaseException as error:
        run.set_tags({"error": f"{type(error).__name__}: {first_line(error)}"})
        run.close("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")
        raise
    run.close("FINISHED")


def attach_run(config: Config, run_id: str) -> MLflowRun:
    """Returns a run that another process has opened and will close."""
    return MLflowRun(connect(config.tracking.uri), run_id) if run_id else MLflowRun()


def open_store(config: Config) -> tuple["MlflowClient", str]:
    """Returns a client and the experiment's id, created where there is none; closes what dead processes left open.

    Raises:
        UsageError: for a store that fails.
    """
    uri = config.tracking.uri or ""
    try:
        # Processes that meet a database that does not exist yet would all migrate it and leave it broken.
        with FileLock(lock_file(uri)):
            write_ahead(uri)
            client = connect(config.tracking.uri)
            experiment = experiment_id(client, config.tracking.experiment, artifact_root(uri))
        if config.tracking.parent is None:  # a job's sweep has done so already
            with best_effort("runs of dead processes could not be closed"):
                close_orphans(client, experiment)
        return client, experiment
    except UsageError:
        raise
    except Exception as error:  # each kind of store fails in its own way
        raise _store_failure(uri, error) from error


def _store_failure(uri: str | None, error: Exception) -> UsageError:
    remedy = "check it, or run with tracking=none"
    return UsageError(f"tracking.uri={redact_uri(uri)}: MLflow's store fails ({first_line(error)}); {remedy}")


def _open(config: Config, folder: Path) -> MLflowRun:
    """Creates the run with its parameters and tags, or reopens the one that the folder had."""
    client, experiment = open_store(config)
    previous = run_folder.read_mlflow_run_id(folder, config.hash) or _unclaimed_run(client, experiment, config, folder)
    if previous is not None and reopen_run(client, previous, config.tracking.parent):
        run_id = previous
    else:
        run_id = create_run(client, experiment, config, folder)
    run_folder.write_mlflow_run_id(folder, run_id, config.hash)
    return MLflowRun(client, run_id)


def _unclaimed_run(client: "MlflowClient", experiment: str, config: Config, folder: Path) -> str | None:
    """Returns a run without content that a process created for this folder, and was killed before it wrote its id."""
    try:
        matches = search_all_runs(client, experiment, f"tags.config_hash = '{config.hash}'")
    except Exception as error:  # each kind of store fails in its own way
        raise _store_failure(config.tracking.uri, error) from error
    own = [run for run in matches if run.data.tags.get("folder") == str(folder) and run.info.status != "FINISHED"]
    return next((str(run.info.run_id) for run in own if not run.data.metrics), None)


def create_run(client: "MlflowClient", experiment: str, config: Config, folder: Path) -> str:
    """Returns the id of a new run with its tags.

    Raises:
        UsageError: for a store that fails.
    """
    name = config.tracking.run_name or config.label
    try:
        return str(client.create_run(experiment, tags=run_tags(config, folder), run_name=name).info.run_id)
    except Exception as error:  # each kind of store fails in its own way
        raise _store_failure(config.tracking.uri, error) from error


def log_config(run: MLflowRun, config: Config, folder: Path) -> None:
    """Logs the configuration as parameters and as a file.

    A reopened run keeps the parameters it has: MLflow refuses other values, and options such as `workers` may change.

    Raises:
        UsageError: for a store that fails.
    """
    from mlflow.entities import Param

    assert run.client is not None
    values = flatten(config.without("tracking", "recipe", "sweep"))
    try:
        known = run.client.get_run(run.run_id).data.params
        params = [Param(key, shorten(value)) for key, value in values.items() if key not in known]
        for start in range(0, len(params), PARAMS_PER_CALL):
            run.client.log_batch(run.run_id, params=params[start : start + PARAMS_PER_CALL])
    except Exception as error:  # each kind of store fails in its own way
        raise _store_failure(config.tracking.uri, error) from error
    run.log_artifact(folder / run_folder.CONFIG)


def reopen_run(client: "MlflowClient", run_id: str, parent: str | None = None) -> bool:
    """Opens an interrupted run again; False where the store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_run(run_id).data.tags
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, "resumed", "true")
        if "error" in tags:
            client.delete_tag(run_id, "error")
        if parent is not None:
            client.set_tag(run_id, PARENT, parent)
    except MlflowException:
        return False  # another store than before
    return True


def close_complete(config: Config, folder: Path) -> None:
    """Closes the MLflow run of a complete run that was stopped between its result and the closing."""
    if config.tracking.backend != "mlflow":
        return
    if (run_id := run_folder.read_mlflow_run_id(folder, config.hash)) is None:
        return
    with best_effort("the run's status could not be set"):
        run = attach_run(config, run_id)
        assert run.client is not None
        if run.client.get_run(run_id).info.status != "FINISHED":
            run.log_artifact(folder / run_folder.METRICS)
            run.close("FINISHED")


def run_tags(config: Config, folder: Path) -> dict[str, str]:
    """Returns the tags of a run: its point on the axes, versions, and the state of the code."""
    source = config.data.source["name"] if config.data.source else "none"
    axes = {
        "strategy": config.strategy["name"],
        "alpha": f"{config.alpha:g}",
        "data": config.data.name,
        "source": source,
        "target": config.data.target["name"],
        "backbone": config.backbone["name"],
        "init": config.init,
        "seed": str(config.seed),
    }
    versions = {f"version.{name}": v for name in PACKAGES if (v := installed_version(name)) is not None}
    nested = {PARENT: config.tracking.parent} if config.tracking.parent else {}
    return axes | versions | git_state() | nested | {"config_hash": config.hash, "folder": str(folder)}


def installed_version(package: str) -> str | None:
    """Returns a package's version; None where it is an extra that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, str]:
    """Returns commit and dirty flag of the repository the command was started in, or nothing outside of one."""
    try:
        options: Any = {"capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain"], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {}
    dirty = str(bool(changes)).lower()
    return {"git_commit": commit, "git_dirty": dirty, "mlflow.source.git.commit": commit, "mlflow.source.name": "tlexp"}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shorten(value: object) -> str:
    """Returns a value as text of at most 500 characters, and says so where some are left out."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= LONGEST_PARAM:
        return text
    note = f"... ({len(text)} characters, see config.yaml)"
    return text[: LONGEST_PARAM - len(note)] + note
