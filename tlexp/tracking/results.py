"""Reading sweeps back: what was asked, and what every job measured."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlexp.config import SOURCE_RUN, without_password
from tlexp.errors import UsageError
from tlexp.sweep.layout import KEY_LENGTH, LAYOUT
from tlexp.tracking.record import first_line
from tlexp.tracking.runs import PARENT
from tlexp.tracking.store import connect
from tlexp.tracking.sweeps import ROLE, found
from tlexp.tracking.view import PARAMS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def find(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """Returns a client and the id of an experiment that exists already.

    Raises:
        UsageError: where it does not.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UsageError(f"{uri}: there is no such database; run something first, or give --uri")
    client = connect(uri)
    try:
        known = client.get_experiment_by_name(experiment)
    except Exception as error:  # each kind of store fails in its own way
        shown = without_password(uri)
        raise UsageError(f"{shown}: the store does not answer ({first_line(error)}); check --uri") from error
    if known is None:
        raise UsageError(f"{experiment}: {uri} has no such experiment; give --experiment")
    return client, str(known.experiment_id)


def sweep_id(client: "MlflowClient", experiment: str, name: str) -> str:
    """Returns the run id of a sweep that is named by it, by its name or by its folder; of several the newest.

    Raises:
        UsageError: where there is none.
    """
    runs = all_sweeps(client, experiment)
    for run in reversed(runs):
        folder = Path(run.data.tags["folder"])
        if name in (run.info.run_id, run.info.run_name, folder.name) or Path(name).absolute() == folder:
            return str(run.info.run_id)
    known = ", ".join(dict.fromkeys(str(run.info.run_name) for run in runs)) or "none"
    raise UsageError(f"{name}: no sweep of that name; there are {known}")


def read_runs(
    client: "MlflowClient", experiment: str, which: str, axes: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Returns single runs in the form of a sweep, each a point by its parameters.

    Raises:
        UsageError: where none is finished, where one lacks an axis, or where they were chosen by different metrics.
    """
    finished = "attributes.status = 'FINISHED'" + (f" and {which}" if which else "")
    try:
        everything = found(client, experiment, finished)
    except Exception as error:  # of MLflow's own grammar
        raise UsageError(f"{which}: MLflow does not understand the filter ({first_line(error)})") from error
    # The source's own runs are starts of others rather than answers.
    runs = [r for r in everything if "score" in r.data.metrics and r.data.params.get("strategy.name") != SOURCE_RUN]
    if not runs:
        raise UsageError(f"{which or 'all runs'}: no finished run among them")
    names = {axis: PARAMS.get(axis, axis) for axis in axes}
    for axis, name in names.items():
        if any(name not in run.data.params for run in runs):
            raise UsageError(f"{axis}: not every run has such a parameter; leave it out of --axes")
    monitors = {run.data.params["monitor"] for run in runs}
    if len(monitors) > 1:
        raise UsageError(
            f"{', '.join(sorted(monitors))}: runs that were chosen by different metrics; add to the filter"
        )
    points = [
        {"key": run.info.run_id, "values": {axis: _plain(run.data.params[name]) for axis, name in names.items()}}
        for run in runs
    ]
    places: dict[tuple[str, ...], Run] = {}
    for run, point in zip(runs, points, strict=True):
        other = places.setdefault(tuple(point["values"].values()), run)
        if other is not run:
            differ = [key for key, value in run.data.params.items() if other.data.params.get(key) != value]
            rule = f"differ in {', '.join(differ[:5]) or 'nothing'}; add it to --axes or to the filter"
            raise UsageError(
                f"{other.info.run_name} and {run.info.run_name}: share their values of the axes but {rule}"
            )
    layout: dict[str, Any] = {"name": "runs", "axes": list(axes), "methods": None, "baseline": None, "searched": False}
    layout |= {"metric": "test/target/accuracy", "monitor": monitors.pop(), "points": points, "changed": ["axes"]}
    return layout, {run.info.run_id: dict(run.data.metrics) for run in runs}


def _plain(text: str) -> str:
    """Returns a parameter as it would be written on the command line."""
    return text.removesuffix(".0") if text != "Infinity" else "inf"


def all_sweeps(client: "MlflowClient", experiment: str) -> list["Run"]:
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
    measured = [run for run in jobs if "score" in run.data.metrics]
    return layout, {run.data.tags["folder"][-KEY_LENGTH:]: dict(run.data.metrics) for run in measured}
