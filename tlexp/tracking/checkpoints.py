"""Checkpoints that MLflow knows: of a run, of an artifact's URI, of the model registry."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tlexp.errors import UsageError
from tlexp.run_folder import BEST_CHECKPOINT
from tlexp.tracking.client import connect
from tlexp.tracking.mlflow_run import first_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")


def of_run(run_id: str, uri: str | None) -> Path | None:
    """Returns the best checkpoint of an MLflow run: the file in its folder, or its artifact; None for no such run.

    Raises:
        UsageError: where the run has neither.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    local = Path(run.data.tags.get("folder", "")) / BEST_CHECKPOINT
    if local.is_file():
        return local
    try:
        return Path(client.download_artifacts(run_id, BEST_CHECKPOINT, tempfile.mkdtemp()))
    except Exception as error:
        remedy = "it logged none as an artifact; run it with tracking.log_checkpoint=true"
        raise UsageError(f"init={run_id}: the run's folder {local.parent} is gone and {remedy}") from error


def of_uri(artifact: str, uri: str | None) -> Path:
    """Downloads the checkpoint that an MLflow URI such as `runs:/ID/best.ckpt` or `models:/NAME/3` refers to.

    Args:
        artifact: the URI.
        uri: of the tracking store.

    Raises:
        UsageError: where there is nothing, or nothing that holds weights.
    """
    client = connect(uri)
    from mlflow.artifacts import download_artifacts

    try:
        local = Path(download_artifacts(_location(client, artifact), tracking_uri=uri))
    except Exception as error:  # each kind of store fails in its own way
        remedy = "check it, and tracking.uri="
        raise UsageError(f"init={artifact}: MLflow cannot fetch it ({first_line(error)}); {remedy}") from error
    files = [local] if local.is_file() else sorted(path for end in SUFFIXES for path in local.rglob(f"*{end}"))
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "no file that holds weights"
        raise UsageError(f"init={artifact}: holds {names}; name one file that ends in {', '.join(SUFFIXES)}")
    return files[0]


def _location(client: "MlflowClient", uri: str) -> str:
    """Resolves a model of the registry; MLflow itself would ask a global registry rather than this store."""
    model = re.fullmatch("models:/([^/@]+)(?:/([0-9]+|latest)|@([^/]+))", uri)
    if model is None:
        return uri
    name, version, alias = model.groups()
    if version == "latest":
        version = str(max(int(entry.version) for entry in client.search_model_versions(f"name='{name}'")))
    version = version or client.get_model_version_by_alias(name, alias).version
    return str(client.get_model_version_download_uri(name, version))
