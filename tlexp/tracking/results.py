"""Reading sweeps back: what was asked, and what every job measured."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlexp.errors import UsageError
from tlexp.tracking.runs import PARENT
from tlexp.tracking.sweeps import LAYOUT, ROLE, found

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY_LENGTH = 12  # of what a job's folder ends with


def sweeps(client: "MlflowClient", experiment: str) -> list["Run"]:
    """Returns the sweeps of an experiment, the oldest first."""
    return found(client, experiment, f"tags.`{ROLE}` = 'sweep'")


def read_sweep(client: "MlflowClient", run_id: str) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Returns what a sweep wrote down and the metrics of its finished jobs, by key.

    Raises:
        UsageError: for a run that is no sweep, or one that was ended before it had written anything down.
    """
    run = client.get_run(run_id)
    if run.data.tags.get(ROLE) != "sweep":
        raise UsageError(f"{run_id}: is no sweep's run; give the id of one whose tag {ROLE} is sweep")
    try:
        with tempfile.TemporaryDirectory() as folder:
            layout = json.loads(Path(client.download_artifacts(run_id, LAYOUT, folder)).read_text())
    except Exception as error:  # each kind of store fails in its own way
        raise UsageError(f"{run_id}: has no {LAYOUT} among its files; start the sweep again") from error
    which = f"tags.`{PARENT}` = '{run_id}' and attributes.status = 'FINISHED'"
    jobs = found(client, run.info.experiment_id, which)
    return layout, {run.data.tags["folder"][-KEY_LENGTH:]: dict(run.data.metrics) for run in jobs}
