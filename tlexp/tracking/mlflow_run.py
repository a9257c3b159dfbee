"""A run in MLflow that never harms the training: what the store refuses is kept, sent later, or in the run's folder."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

METRICS_PER_CALL = 1000  # MLflow's own limit
RETRY_SECONDS = 60.0  # a failing call costs the client's own timeout, which training should not pay every epoch


class MLflowRun:
    """A run in MLflow; without a client (`tracking=none`) every call does nothing."""

    def __init__(self, client: "MlflowClient | None" = None, run_id: str = "") -> None:
        self.client, self.run_id = client, run_id
        self._pending: list[Any] = []
        self._warned = False
        self._retry_at = 0.0

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of an epoch in a single call; what a server refuses is kept and sent later."""
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending += [Metric(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() >= self._retry_at:
            self._send()

    def _send(self) -> None:
        assert self.client is not None
        try:
            while self._pending:
                self.client.log_batch(self.run_id, metrics=self._pending[:METRICS_PER_CALL])
                self._pending = self._pending[METRICS_PER_CALL:]
        except Exception as error:  # training must not fail because of tracking, whatever is wrong with the store
            if not self._warned:
                log.warning("MLflow rejected metrics (%s); they are kept and sent later", first_line(error))
            self._warned = True
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def last_epoch(self) -> int:
        """Returns the last epoch that the store has metrics of; -1 for none."""
        steps = [-1]
        if self.client is not None:
            with best_effort("the metrics so far could not be read"):
                steps += [point.step for point in self.client.get_metric_history(self.run_id, "train/lr")]
        return max(steps)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file; what a server refuses stays in the run's own folder."""
        if self.client is not None:
            with best_effort(f"{path.name} could not be uploaded"):
                self.client.log_artifact(self.run_id, str(path), folder)

    def set_tags(self, values: Mapping[str, object]) -> None:
        """Sets tags; what a server refuses is in the run's own folder."""
        if self.client is not None:
            for key, value in values.items():
                with best_effort(f"the tag {key} could not be set"):
                    self.client.set_tag(self.run_id, key, str(value))

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED, after sending pending metrics; tries more than once."""
        if self.client is None or not self.run_id:
            return
        self._send()
        for wait in (1.0, 3.0, None):
            try:
                self.client.set_terminated(self.run_id, status)
                break
            except Exception as error:  # whatever is wrong with the store, the result itself is in the folder
                if wait is None:
                    log.warning("MLflow: the run stays RUNNING there (%s); it is %s", first_line(error), status)
                else:
                    time.sleep(wait)


@contextmanager
def best_effort(failure: str) -> Iterator[None]:
    """Turns an error of the store into a warning, so that it does not hide the run's own result or error."""
    try:
        yield
    except Exception as error:  # see the docstring
        log.warning("MLflow: %s (%s)", failure, first_line(error))


def first_line(error: BaseException) -> str:
    """Returns as much of an error's message as fits into a line."""
    return (str(error).strip().splitlines() or [""])[0][:300]
