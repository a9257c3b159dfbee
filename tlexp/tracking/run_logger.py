"""The logger of every run: Lightning's own interface in front of `history.jsonl` and MLflow."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from tlexp import run_folder
from tlexp.tracking.mlflow_run import MLflowRun


class RunLogger(Logger):
    """Writes one row of the history and one batch of MLflow metrics per epoch, on the first process only.

    Lightning hands over the validation metrics of an epoch first and its training metrics last; the row is complete
    with the latter. An epoch without validation has training metrics alone, never those of an epoch before.

    Args:
        mlflow_run: the run in MLflow.
        folder: of the run.
        first_epoch: the epoch that comes next in a run that is resumed.

    Attributes:
        history: the rows, each with its `epoch`.
    """

    def __init__(self, mlflow_run: MLflowRun, folder: Path, first_epoch: int = 0) -> None:
        super().__init__()
        self.mlflow_run, self.folder = mlflow_run, folder
        rows = run_folder.read_history(folder) if first_epoch else []
        self.history = [row for row in rows if row["epoch"] < first_epoch]
        self._validation: dict[str, float] = {}
        self._begun = False
        self._sent_epoch = -1

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    @property
    def version(self) -> str:
        """The id of the MLflow run; empty without tracking."""
        return self.mlflow_run.run_id

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: parameters are logged when the run is opened."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collects validation metrics and writes the epoch's row with the training metrics, once; skips the test."""
        epoch = int(metrics.get("epoch", -1))
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if any(name.startswith("test/") for name in values):
            return
        if "train/lr" not in values:  # validation, or what a callback logs within an epoch
            self._validation.update(values)
            return
        if self.history and self.history[-1]["epoch"] >= epoch:  # logged already, before a checkpoint was saved
            return
        self._begin()
        lr = {name: values.pop(name) for name in sorted(values) if name.startswith("train/lr")}
        row = {"epoch": epoch, **values, **self._validation, **lr}
        self._validation = {}
        self.history.append(row)
        run_folder.append_history(self.folder, row)
        self._send(row)

    def _begin(self) -> None:
        """Starts the file with the epochs that a run resumes from; the store gets those that it lacks."""
        if self._begun:
            return
        self._begun = True
        run_folder.write_history(self.folder, self.history)
        self._sent_epoch = self.mlflow_run.last_epoch() if self.history else -1
        for row in self.history:
            self._send(row)

    def _send(self, row: dict[str, Any]) -> None:
        if row["epoch"] > self._sent_epoch:  # what is repeated after an interruption is there already
            self.mlflow_run.log_metrics({name: row[name] for name in row if name != "epoch"}, step=row["epoch"])
