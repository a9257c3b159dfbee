"""Opening and closing runs, and what describes them: parameters, axes, versions."""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tlexp.config import Config, without_password
from tlexp.errors import UsageError
from tlexp.stopping import Stopped
from tlexp.tracking.record import Record, bookkeeping, first_line
from tlexp.tracking.stale import RUN_ID, close_stale
from tlexp.tracking.store import artifact_root, connect, experiment_id, lock_file, write_ahead

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow takes longer values, but its pages become unreadable; the whole configuration is an artifact.
LONGEST_PARAM = 500
PARENT = "mlflow.parentRunId"  # by which MLflow nests runs
PARAMS_A_CALL = 100  # MLflow's own limit
WEIGHTS = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
PACKAGES = ("tlexp", "torch", "torchvision", "pytorch-lightning", "timm", "transformers", "mlflow")


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
        record.tags({"error": f"{type(error).__name__}: {first_line(error)}"})
        record.close(status)
        raise
    record.close("FINISHED")


def attached(config: Config, run_id: str) -> Record:
    """Returns the record of a run that another process owns."""
    return Record(connect(config.tracking.uri), run_id) if run_id else Record()


def reach(config: Config) -> tuple["MlflowClient", str]:
    """Returns a client and the experiment's id, made where there is none; closes what dead processes left open.

    Raises:
        UsageError: for a store that fails.
    """
    uri = config.tracking.uri or ""
    try:
        # Processes that meet a database that is not there yet would all migrate it and leave it broken.
        with FileLock(lock_file(uri)):
            write_ahead(uri)
            client = connect(config.tracking.uri)
            experiment = experiment_id(client, config.tracking.experiment, artifact_root(uri))
        if config.tracking.parent is None:  # a job's sweep has looked already
            with bookkeeping("what dead processes left open could not be closed"):
                close_stale(client, experiment)
        return client, experiment
    except UsageError:
        raise
    except Exception as error:
        rule = "check it, or run with tracking=none and lose nothing but the tracking"
        shown = without_password(uri)
        raise UsageError(f"tracking.uri={shown}: MLflow's store fails ({first_line(error)}); {rule}") from error


def _open(record: Record, config: Config, folder: Path) -> None:
    """Creates the run with its parameters and tags, or takes the one up that the folder had."""
    record.client, experiment = reach(config)
    if (former := _former(record.client, config, folder)) is not None:
        record.run_id = former
        return
    record.run_id = create(record.client, experiment, config, folder)
    keep_id(folder, record.run_id, config.hash)


def create(client: "MlflowClient", experiment: str, config: Config, folder: Path) -> str:
    """Returns the id of a new run with its parameters, tags and configuration.

    Raises:
        UsageError: for a store that fails.
    """
    from mlflow.entities import Param

    tags = described(config, folder)
    name = config.tracking.run_name or config.label
    try:
        run_id = str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
    except Exception as error:
        shown = without_password(config.tracking.uri)
        rule = "check it, or run with tracking=none and lose nothing but the tracking"
        raise UsageError(f"tracking.uri={shown}: MLflow's store fails ({first_line(error)}); {rule}") from error
    values = flattened(config.without("tracking", "recipe", "sweep"))
    params = [Param(key, shortened(value)) for key, value in values.items()]
    for start in range(0, len(params), PARAMS_A_CALL):
        client.log_batch(run_id, params=params[start : start + PARAMS_A_CALL])
    Record(client, run_id).artifact(folder / "config.yaml")
    return run_id


def keep_id(folder: Path, run_id: str, key: str) -> None:
    """Notes in a folder which run in the store is its own."""
    unfinished = folder / f"{RUN_ID}.tmp"
    unfinished.write_text(f"{run_id} {key}\n")
    unfinished.replace(folder / RUN_ID)


def _former(client: "MlflowClient", config: Config, folder: Path) -> str | None:
    """Returns the run that an interrupted run in this folder has in the store, open again; None for none."""
    run_id = kept_id(folder, config.hash)
    return run_id if run_id is not None and reopened(client, run_id, config.tracking.parent) else None


def reopened(client: "MlflowClient", run_id: str, parent: str | None = None) -> bool:
    """Opens a run again that was interrupted; False where the store does not have it."""
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


def kept_id(folder: Path, key: str) -> str | None:
    """Returns the id of the MLflow run that a folder had for a configuration of this hash; None for none."""
    file = folder / RUN_ID
    words = file.read_text().split() if file.exists() else []
    return words[0] if len(words) == 2 and words[1] == key else None


def finish(config: Config, folder: Path) -> None:
    """Closes the record of a run that is complete, where it was stopped between its result and the closing."""
    if config.tracking.backend != "mlflow" or (run_id := kept_id(folder, config.hash)) is None:
        return
    with bookkeeping("the run's status could not be set"):
        record = attached(config, run_id)
        assert record.client is not None
        if record.client.get_run(run_id).info.status != "FINISHED":
            record.artifact(folder / "metrics.json")
            record.close("FINISHED")


def described(config: Config, folder: Path) -> dict[str, str]:
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
    versions = {f"version.{name}": found for name in PACKAGES if (found := installed(name)) is not None}
    nested = {PARENT: config.tracking.parent} if config.tracking.parent else {}
    return axes | versions | git_state() | nested | {"config_hash": config.hash, "folder": str(folder)}


def installed(package: str) -> str | None:
    """Returns a package's version; None where it is an extra that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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

    client = connect(config.tracking.uri)
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


def checkpoint_at(uri: str, config: Config) -> Path:
    """Fetches the checkpoint that a URI such as `runs:/ID/best.ckpt` or `models:/NAME/3` names.

    Raises:
        UsageError: where there is nothing, or nothing that holds weights.
    """
    client = connect(config.tracking.uri)
    from mlflow.artifacts import download_artifacts

    try:
        found = Path(download_artifacts(_location(client, uri), tracking_uri=config.tracking.uri))
    except Exception as error:  # each kind of store fails in its own way
        rule = "check it, and tracking.uri="
        raise UsageError(f"init={uri}: MLflow cannot fetch it ({first_line(error)}); {rule}") from error
    files = [found] if found.is_file() else sorted(path for end in WEIGHTS for path in found.rglob(f"*{end}"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "no file that holds weights"
        raise UsageError(f"init={uri}: holds {names}; name one file that ends in {', '.join(WEIGHTS)}")
    return files[0]


def _location(client: "MlflowClient", uri: str) -> str:
    """Returns where a model of the registry lies; MLflow itself would ask a global registry rather than this store."""
    model = re.fullmatch("models:/([^/@]+)(?:/([0-9]+|latest)|@([^/]+))", uri)
    if model is None:
        return uri
    name, version, alias = model.groups()
    if version == "latest":
        version = str(max(int(found.version) for found in client.search_model_versions(f"name='{name}'")))
    version = version or client.get_model_version_by_alias(name, alias).version
    return str(client.get_model_version_download_uri(name, version))
