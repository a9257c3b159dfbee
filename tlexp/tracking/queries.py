"""Reading sweeps and runs back from MLflow: their axes, and what every job measured."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlexp import run_folder
from tlexp.config.schema import SOURCE_RUN, redact_uri
from tlexp.errors import UsageError
from tlexp.sqlite_address import sqlite_file
from tlexp.tracking.client import PARENT, ROLE, connect, search_all_runs
from tlexp.tracking.mlflow_run import first_line
from tlexp.tracking.ui_view import PARAMS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def open_experiment(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """Returns a client and the id of an experiment that exists already.

    Raises:
        UsageError: where it does not.
    """
    if (file := sqlite_file(uri)) and not file.is_file():
        raise UsageError(f"{uri}: no such database; run something first, or give --uri")
    client = connect(uri)
    try:
        known = client.get_experiment_by_name(experiment)
    except Exception as error:  # each kind of store fails in its own way
        raise UsageError(f"{redact_uri(uri)}: the store does not answer ({first_line(error)}); check --uri") from error
    if known is None:
        raise UsageError(f"{experiment}: {uri} has no such experiment; give --experiment")
    return client, str(known.experiment_id)


def sweep_id(client: "MlflowClient", experiment: str, name: str) -> str:
    """Returns the run id of a sweep, given that id, its name or its folder; of several the newest.

    Raises:
        UsageError: where there is none.
    """
    runs = all_sweeps(client, experiment)
    for run in reversed(runs):
        folder = Path(run.data.tags["folder"])
        if name in (run.info.run_id, run.info.run_name, folder.name) or Path(name).absolute() == folder:
            return str(run.info.run_id)
    known = ", ".join(dict.fromkeys(str(run.info.run_name) for run in runs)) or "none"
    raise UsageError(f"{name}: no such sweep; there are {known}")


def read_runs(
    client: "MlflowClient", experiment: str, which: str, axes: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Returns single runs in the form of a sweep, each a grid point by its parameters.

    Raises:
        UsageError: where none is finished, one lacks an axis, or they selected their checkpoints by different metrics.
    """
    finished = "attributes.status = 'FINISHED'" + (f" and {which}" if which else "")
    try:
        matches = search_all_runs(client, experiment, finished)
    except Exception as error:  # of MLflow's own grammar
        raise UsageError(f"{which}: MLflow does not understand the filter ({first_line(error)})") from error
    # The source's own runs are starting points of others.
    runs = [r for r in matches if "score" in r.data.metrics and r.data.params.get("strategy.name") != SOURCE_RUN]
    if not runs:
        raise UsageError(f"{which or 'all runs'}: no finished run among them")
    names = {axis: PARAMS.get(axis, axis) for axis in axes}
    for axis, name in names.items():
        if any(name not in run.data.params for run in runs):
            raise UsageError(f"{axis}: not every run has such a parameter; remove it from --axes")
    monitors = {run.data.params["monitor"] for run in runs}
    if len(monitors) > 1:
        raise UsageError(f"{', '.join(sorted(monitors))}: runs that select by different metrics; narrow the filter")
    points = [
        {
            "key": run.info.run_id,
            "values": {axis: _as_override(run.data.params[name]) for axis, name in names.items()},
            "draw": f"{run.data.params.get('split_seed')}/{run.data.params.get('data.draw')}",
        }
        for run in runs
    ]
    seen: dict[tuple[str, ...], Run] = {}
    for run, point in zip(runs, points, strict=True):
        other = seen.setdefault(tuple(point["values"].values()), run)
        if other is not run:
            differ = [key for key, value in run.data.params.items() if other.data.params.get(key) != value]
            remedy = f"differ in {', '.join(differ[:5]) or 'nothing'}; add it to --axes or to the filter"
            both = f"{other.info.run_name} and {run.info.run_name}"
            raise UsageError(f"{both}: share their values of the axes but {remedy}")
    manifest: dict[str, Any] = {
        "name": "runs",
        "axes": list(axes),
        "methods": None,
        "baseline": None,
        "searched": False,
    }
    manifest |= {"metric": "test/target/accuracy", "monitor": monitors.pop(), "points": points, "changed": ["axes"]}
    return manifest, {run.info.run_id: dict(run.data.metrics) for run in runs}


def _as_override(text: str) -> str:
    """Returns a parameter as it would be written on the command line."""
    return text.removesuffix(".0") if text != "Infinity" else "inf"


def all_sweeps(client: "MlflowClient", experiment: str) -> list["Run"]:
    """Returns the sweeps of an experiment, the oldest first."""
    return search_all_runs(client, experiment, f"tags.`{ROLE}` = 'sweep'")


def read_sweep(client: "MlflowClient", run_id: str) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Returns the manifest of a sweep and the metrics of its finished jobs, by key.

    Raises:
        UsageError: for a run that is no sweep, or a sweep that ended before it had written its manifest.
    """
    run = client.get_run(run_id)
    if run.data.tags.get(ROLE) != "sweep":
        raise UsageError(f"{run_id}: not a sweep; give the id of a run whose tag {ROLE} is sweep")
    try:
        with tempfile.TemporaryDirectory() as folder:
            client.download_artifacts(run_id, run_folder.MANIFEST, folder)
            manifest = run_folder.read_manifest(Path(folder))
    except Exception as error:  # each kind of store fails in its own way
        raise UsageError(f"{run_id}: has no artifact {run_folder.MANIFEST}; start the sweep again") from error
    which = f"tags.`{PARENT}` = '{run_id}' and attributes.status = 'FINISHED'"
    jobs = search_all_runs(client, run.info.experiment_id, which)
    complete = [job for job in jobs if "score" in job.data.metrics]
    keys = [run_folder.key_of_job(job.data.tags["folder"]) for job in complete]
    return manifest, {key: dict(job.data.metrics) for key, job in zip(keys, complete, strict=True)}
