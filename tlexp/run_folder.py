"""The folder of a run: its file names, whether it is complete or in use, and reading and writing of results.

`metrics.json` is written last and marks a run as complete. Whoever works on a run, or on a sweep, holds the lock in its
folder for as long as the process lives; the operating system frees it with the process.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from tlexp.errors import FolderInUseError, UsageError
from tlexp.processes import SWEEP_TOKEN

METRICS = "metrics.json"
CONFIG = "config.yaml"
HISTORY = "history.jsonl"
BEST_CHECKPOINT = "best.ckpt"
LAST_CHECKPOINT = "last.ckpt"
REPORT = "report.txt"
LOCK = ".lock"
MLFLOW_RUN_ID = "mlflow_run_id.txt"
LOG = "tlexp.log"
OWNER = ".owner"  # which sweep trained the run
RANK_FAILURE = ".failure.json"  # how a rank tells the process that started it what went wrong
MANIFEST = "sweep.json"
PREDICTIONS = "predictions_{}.parquet"
PARTS = "parts"  # folder of the trainings that choose the number of epochs
KEY_LENGTH = 12  # of the key that the name of a job's folder ends with


def write_atomically(path: Path, text: str) -> None:
    """Writes a file in one piece: a kill leaves the old content or the new one."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Holds the lock of a folder.

    Raises:
        FolderInUseError: where another process holds it; `busy` says so.
    """
    lock = FileLock(folder / LOCK, timeout=1)  # a process that checks whether a run is alive holds it for a moment
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(f"{folder}: {busy}") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Returns whether a process works in a folder."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


# One run ------------------------------------------------------------------------------------------------------


def is_complete(folder: Path) -> bool:
    """Returns whether the run of a folder has its result."""
    return (folder / METRICS).exists()


def read_metrics(folder: Path) -> dict[str, Any]:
    """Returns the result of a complete run.

    Raises:
        UsageError: for a corrupt file.
    """
    file = folder / METRICS
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError:
        raise UsageError(f"{file}: corrupt JSON; delete it to rerun the job") from None
    return content


def write_metrics(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes the result that marks a run as complete."""
    write_atomically(folder / METRICS, json.dumps(result, indent=2) + "\n")


def predictions(role: str) -> str:
    """Returns the name of the file with a domain's predictions."""
    return PREDICTIONS.format(role)


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns all numbers of a result by name."""
    return {name: float(value) for name, value in result.items() if type(value) in (int, float)}


def summary_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a result that describe the whole run: the test, the score and the cost.

    The kept checkpoint's validation is `best/val/...`, since MLflow shows the last epoch's value of `val/...`.
    """
    values = numbers(result)
    plain = {name: value for name, value in values.items() if name.startswith("test/") or "/" not in name}
    return plain | {f"best/{name}": value for name, value in values.items() if name.startswith("val/")}


def write_owner(folder: Path) -> None:
    """Notes which sweep trains the run of a folder; nothing for a run of its own."""
    if token := os.environ.get(SWEEP_TOKEN):
        (folder / OWNER).write_text(token)


def is_own(folder: Path) -> bool:
    """Returns whether the sweep that this process works for has trained the run of a folder."""
    file, token = folder / OWNER, os.environ.get(SWEEP_TOKEN, "")
    return bool(token) and file.exists() and file.read_text() == token


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the resolved configuration."""
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each epoch; a last row that was cut off is left out."""
    file, rows = folder / HISTORY, []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def write_history(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the history."""
    write_atomically(folder / HISTORY, "".join(json.dumps(row) + "\n" for row in rows))


def append_history(folder: Path, row: Mapping[str, Any]) -> None:
    """Adds an epoch to the history."""
    with (folder / HISTORY).open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_mlflow_run_id(folder: Path, key: str) -> str | None:
    """Returns the MLflow run that a folder has for a configuration of this key; None for none."""
    file = folder / MLFLOW_RUN_ID
    words = file.read_text().split() if file.exists() else []
    return words[0] if len(words) == 2 and words[1] == key else None


def belongs_to(folder: Path, mlflow_run_id: str) -> bool:
    """Returns whether a folder names this MLflow run as its own."""
    file = folder / MLFLOW_RUN_ID
    return file.exists() and mlflow_run_id in file.read_text()


def write_mlflow_run_id(folder: Path, run_id: str, key: str) -> None:
    """Notes which MLflow run belongs to a folder."""
    write_atomically(folder / MLFLOW_RUN_ID, f"{run_id} {key}\n")


# Many runs ----------------------------------------------------------------------------------------------------


def find_job(jobs: Path, key: str) -> Path | None:
    """Returns the folder of the complete job with a key; None where there is none."""
    return next((file.parent for file in jobs.glob(f"*-{key}/{METRICS}")), None)


def key_of_job(folder: Path | str) -> str:
    """Returns the key that the name of a job's folder ends with."""
    return str(folder)[-KEY_LENGTH:]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns what a sweep wrote down about itself: its axes, its grid points, what it compares."""
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a sweep."""
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
