"""What goes to MLflow and when, and the true status of a run on every way out.

Only this module knows MLflow. A run is opened and closed by the process that owns the job, whatever happens to
the processes that train; these get the run's id and add to it.
"""

import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from filelock import FileLock

from tlexp.config import Config
from tlexp.errors import UsageError
from tlexp.stopping import Stopped

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tlexp.task import TransferTask

log = logging.getLogger(__name__)

# MLflow takes longer values, but its pages become unreadable; the whole configuration is an artifact.
LONGEST_PARAM = 500
PARAMS_A_CALL = 100  # MLflow's own limits
METRICS_A_CALL = 1000
PACKAGES = ("tlexp", "torch", "torchvision", "pytorch-lightning", "timm", "mlflow")


class Record:
    """A run's MLflow side; without a client (`tracking=none`) every call does nothing."""

    def __init__(self, client: "MlflowClient | None" = None, run_id: str = "") -> None:
        self.client, self.run_id = client, run_id
        self._pending: list[Any] = []
        self._warned = False

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds one epoch's values in a single call; what a server refuses is kept and tried again next time."""
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in values.items()]
        try:
            while self._pending:
                self.client.log_batch(self.run_id, metrics=self._pending[:METRICS_A_CALL])
                self._pending = self._pending[METRICS_A_CALL:]
        except Exception as error:  # training must not die of its bookkeeping, whatever the store's trouble is
            if not self._warned:
                log.warning("MLflow takes no metrics (%s); they are kept and sent later", _first_line(error))
            self._warned = True

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file; what a server refuses stays in the run's own folder."""
        if self.client is not None:
            with _bookkeeping(f"{path.name} could not be uploaded"):
                self.client.log_artifact(self.run_id, str(path), folder)

    def tags(self, values: Mapping[str, object]) -> None:
        """Sets tags."""
        if self.client is not None:
            for key, value in values.items():
                self.client.set_tag(self.run_id, key, str(value))

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, with what metrics are still waiting; tries more than once."""
        if self.client is None or not self.run_id:
            return
        self.metrics({}, step=0)
        for wait in (1.0, 3.0, None):
            try:
                self.client.set_terminated(self.run_id, status)
                break
            except Exception as error:  # whatever the store's trouble is, the result itself is in the folder
                if wait is None:
                    log.warning("MLflow: the run stays RUNNING there (%s); it is %s", _first_line(error), status)
                else:
                    time.sleep(wait)


class EpochRecorder(pl.Callback):
    """Writes one line of `history.jsonl` and one batch of MLflow metrics an epoch, on the first process only.

    Attributes:
        history: the same rows, each with its `epoch`.
    """

    def __init__(self, record: Record, folder: Path) -> None:
        self.record, self.file = record, folder / "history.jsonl"
        self.history: list[dict[str, Any]] = []
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes that this epoch has values of its own; Lightning keeps showing the last ones."""
        self._validated = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the file anew."""
        if trainer.is_global_zero:
            self.file.write_text("")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: "TransferTask") -> None:  # type: ignore[override]
        """Collects on every process, since the training metrics are summed over them; writes on one."""
        values = pl_module.train_metrics()
        if self._validated:
            values |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._validated = False
        values["train/lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        row = {"epoch": trainer.current_epoch, **values}
        self.history.append(row)
        if trainer.is_global_zero:
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.record.metrics(values, step=trainer.current_epoch)


@contextmanager
def tracked(config: Config, folder: Path) -> Iterator[Record]:
    """Opens a run and closes it as what really happened inside the block."""
    record = Record()
    try:
        if config.tracking.backend == "mlflow":
            _open(record, config, folder)
        yield record
        record.artifact(folder / "metrics.json")
    except BaseException as error:
        status = "KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED"
        with _bookkeeping("the error could not be recorded"):
            record.tags({"error": f"{type(error).__name__}: {_first_line(error)}"})
        record.close(status)
        raise
    record.close("FINISHED")


def attached(config: Config, run_id: str) -> Record:
    """Returns the record of a run that another process owns."""
    return Record(_client(config), run_id) if run_id else Record()


@contextmanager
def _bookkeeping(what: str) -> Iterator[None]:
    """Lets a store's failure be said without hiding the run's own result or error."""
    try:
        yield
    except Exception as error:  # see the docstring
        log.warning("MLflow: %s (%s)", what, _first_line(error))


def _client(config: Config) -> "MlflowClient":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # A server that is away should not hold up training for minutes; what it misses is sent again an epoch later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.tracking.uri)


def _open(record: Record, config: Config, folder: Path) -> None:
    """Creates the run with its parameters and tags, making database and experiment first where there are none."""
    uri = config.tracking.uri or ""
    try:
        # Processes that meet a database that is not there yet would all migrate it and leave it broken.
        with FileLock(_lock_file(uri)):
            _write_ahead(uri)
            record.client = _client(config)
            experiment = _experiment(record.client, config.tracking.experiment, _artifact_root(uri))
        name = f"{config.strategy['name']}-{config.data.name}-a{config.alpha:g}-s{config.seed}"
        record.run_id = record.client.create_run(experiment, tags=_tags(config, folder), run_name=name).info.run_id
    except UsageError:
        raise
    except Exception as error:
        rule = "check tracking.uri, or run with tracking=none and lose nothing but the tracking"
        raise UsageError(f"tracking.uri={uri}: MLflow's store cannot be used ({_first_line(error)}); {rule}") from error
    from mlflow.entities import Param

    params = [Param(key, shortened(value)) for key, value in flattened(config.without("tracking", "recipe")).items()]
    for start in range(0, len(params), PARAMS_A_CALL):
        record.client.log_batch(record.run_id, params=params[start : start + PARAMS_A_CALL])
    record.artifact(folder / "config.yaml")


def _lock_file(uri: str) -> Path:
    if database := _sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(database.name + ".lock")
    return Path(tempfile.gettempdir()) / f"tlexp-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.lock"


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _write_ahead(uri: str) -> None:
    """Sets a new SQLite file to write-ahead logging, which serves several writers better; it stays set."""
    database = _sqlite_file(uri)
    if database is not None and not database.exists():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")


def _artifact_root(uri: str) -> str | None:
    """Artifacts lie beside a local database; a server knows its own place."""
    database = _sqlite_file(uri)
    return (database.parent.absolute() / "mlartifacts").as_uri() if database is not None else None


def _experiment(client: "MlflowClient", name: str, artifacts: str | None) -> str:
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


def _tags(config: Config, folder: Path) -> dict[str, str]:
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
    versions = {f"version.{package}": version(package) for package in PACKAGES}
    return axes | versions | git_state() | {"config_hash": config.hash, "folder": str(folder)}


def git_state() -> dict[str, str]:
    """Returns commit and dirty flag of the repository the command was started in, or nothing outside of one."""
    try:
        ask = {"capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()  # type: ignore[call-overload]
        changes = subprocess.run(["git", "status", "--porcelain"], **ask).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return {}
    dirty = str(bool(changes)).lower()
    return {"git_commit": commit, "git_dirty": dirty, "mlflow.source.git.commit": commit, "mlflow.source.name": "tlexp"}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shortened(value: object) -> str:
    """Returns a value as text of at most 500 characters, and says so where some are left out."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= LONGEST_PARAM:
        return text
    note = f"... ({len(text)} characters, see config.yaml)"
    return text[: LONGEST_PARAM - len(note)] + note


def checkpoint_of(run_id: str, config: Config) -> Path | None:
    """Finds the best checkpoint of an MLflow run: its artifact, or the file in its folder; None for no such run."""
    from mlflow.exceptions import MlflowException

    client = _client(config)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    local = Path(run.data.tags.get("folder", "")) / "best.ckpt"
    if local.is_file():
        return local
    try:
        return Path(client.download_artifacts(run_id, "best.ckpt", tempfile.mkdtemp()))
    except Exception as error:
        rule = "it kept none as an artifact; run it with tracking.log_checkpoint=true"
        raise UsageError(f"init={run_id}: the run's folder {local.parent} is gone and {rule}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
