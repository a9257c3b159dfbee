"""A run's record: metrics by epoch, files, tags and its end."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from tlexp.task import TransferTask

log = logging.getLogger(__name__)

METRICS_A_CALL = 1000  # MLflow's own limit
SECONDS_BETWEEN_TRIES = 60.0  # each try costs the client's own patience, which training should not pay every epoch


class Record:
    """A run's MLflow side; without a client (`tracking=none`) every call does nothing."""

    def __init__(self, client: "MlflowClient | None" = None, run_id: str = "") -> None:
        self.client, self.run_id = client, run_id
        self._pending: list[Any] = []
        self._warned = False
        self._try_again = 0.0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds one epoch's values in a single call; what a server refuses is kept and sent later."""
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() >= self._try_again:
            self._send()

    def _send(self) -> None:
        assert self.client is not None
        try:
            while self._pending:
                self.client.log_batch(self.run_id, metrics=self._pending[:METRICS_A_CALL])
                self._pending = self._pending[METRICS_A_CALL:]
        except Exception as error:  # training must not die of its bookkeeping, whatever the store's trouble is
            if not self._warned:
                log.warning("MLflow takes no metrics (%s); they are kept and sent later", first_line(error))
            self._warned = True
            self._try_again = time.monotonic() + SECONDS_BETWEEN_TRIES

    def last_epoch(self) -> int:
        """Returns the last epoch that the store has metrics of; -1 for none."""
        steps = [-1]
        if self.client is not None:
            with bookkeeping("the metrics so far could not be read"):
                steps += [point.step for point in self.client.get_metric_history(self.run_id, "train/lr")]
        return max(steps)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file; what a server refuses stays in the run's own folder."""
        if self.client is not None:
            with bookkeeping(f"{path.name} could not be uploaded"):
                self.client.log_artifact(self.run_id, str(path), folder)

    def tags(self, values: Mapping[str, object]) -> None:
        """Sets tags; what a server refuses is in the run's own folder."""
        if self.client is not None:
            for key, value in values.items():
                with bookkeeping(f"the tag {key} could not be set"):
                    self.client.set_tag(self.run_id, key, str(value))

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, with what metrics are still waiting; tries more than once."""
        if self.client is None or not self.run_id:
            return
        self._send()
        for wait in (1.0, 3.0, None):
            try:
                self.client.set_terminated(self.run_id, status)
                break
            except Exception as error:  # whatever the store's trouble is, the result itself is in the folder
                if wait is None:
                    log.warning("MLflow: the run stays RUNNING there (%s); it is %s", first_line(error), status)
                else:
                    time.sleep(wait)


class EpochRecorder(pl.Callback):
    """Writes one line of `history.jsonl` and one batch of MLflow metrics an epoch, on the first process only.

    Args:
        record: the run's.
        folder: of the run.
        first_epoch: that comes now; another one than 0 in a run that goes on after an interruption.

    Attributes:
        history: the same rows, each with its `epoch`.
    """

    def __init__(self, record: Record, folder: Path, first_epoch: int = 0) -> None:
        self.record, self.file = record, folder / "history.jsonl"
        self.history = [row for row in rows(self.file) if row["epoch"] < first_epoch] if first_epoch else []
        self._sent = -1
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes that this epoch has values of its own; Lightning keeps showing the last ones."""
        self._validated = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the file anew, with the epochs that a run goes on from; the store gets those that it lacks."""
        if not trainer.is_global_zero:
            return
        unfinished = self.file.with_suffix(".tmp")
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in self.history))
        unfinished.replace(self.file)
        self._sent = self.record.last_epoch() if self.history else -1
        for row in self.history:
            self._send(row)

    def _send(self, row: dict[str, Any]) -> None:
        if row["epoch"] > self._sent:  # what is repeated after an interruption is there already
            self.record.metrics({name: row[name] for name in row if name != "epoch"}, step=row["epoch"])

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
            self._send(row)


def rows(file: Path) -> list[dict[str, Any]]:
    """Returns the rows of a history, the last one left out where it is torn."""
    whole: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(ValueError):
            whole.append(json.loads(line))
    return whole


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns what of a run's `metrics.json` is added at its end: the test, the score and what it cost."""
    numbers = {name: float(value) for name, value in result.items() if type(value) in (int, float)}
    return {name: value for name, value in numbers.items() if name.startswith("test/") or "/" not in name}


@contextmanager
def bookkeeping(what: str) -> Iterator[None]:
    """Lets a store's failure be said without hiding the run's own result or error."""
    try:
        yield
    except Exception as error:  # see the docstring
        log.warning("MLflow: %s (%s)", what, first_line(error))


def first_line(error: BaseException) -> str:
    """Returns an error's message as far as it fits into a line."""
    return (str(error).strip().splitlines() or [""])[0][:300]
