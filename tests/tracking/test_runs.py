import json
import multiprocessing
import os
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.helpers import compose
from tlexp import run_folder
from tlexp.errors import UsageError
from tlexp.signals import Stopped, stop_signals
from tlexp.tracking.orphans import close_orphans
from tlexp.tracking.queries import open_experiment
from tlexp.tracking.runs import LONGEST_PARAM, flatten, track_run


def config_in(folder: Path, *overrides: str) -> Any:
    return compose("tracking=mlflow", "init=random", *overrides, root=folder)


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A run's folder as `experiment.run` leaves it before it opens the run."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("alpha: 0.5\n")
    return folder


def runs(config: Any) -> list[Any]:
    client = MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    return list(client.search_runs([experiment.experiment_id]))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (ValueError("broken data"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Stopped(signal.SIGTERM), "KILLED"),
    ],
)
def test_the_status_is_what_happened(tmp_path, open_folder, error, status):
    config = config_in(tmp_path)
    (open_folder / "metrics.json").write_text("{}")
    expected = nullcontext() if error is None else pytest.raises(type(error))
    with expected, track_run(config, open_folder):
        if error is not None:
            raise error
    (run,) = runs(config)
    assert run.info.status == status
    assert (run.data.tags.get("error") is None) == (error is None)


def test_a_signal_is_raised_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop, stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_holds_axes_versions_and_the_whole_configuration(tmp_path, open_folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # of some other program: must not matter
    config = config_in(tmp_path, "alpha=0.5", "seed=4")
    (open_folder / "metrics.json").write_text("{}")
    with track_run(config, open_folder) as run:
        run.log_metrics({"val/target/nll": 1.5, "val/target/accuracy": float("nan")}, step=0)
        run.log_metrics({"val/target/nll": 1.0}, step=1)
    (run,) = runs(config)
    tags = run.data.tags
    assert (tags["strategy"], tags["alpha"], tags["seed"], tags["init"]) == ("finetune", "0.5", "4", "random")
    assert (tags["data"], tags["source"], tags["target"]) == ("mnist_to_digits", "mnist", "digits")
    assert tags["backbone"] == "small_cnn"
    assert {"version.torch", "version.tlexp", "git_commit", "git_dirty", "folder", "config_hash"} <= set(tags)
    assert run.info.run_name == "finetune-mnist_to_digits-a0.5-s4"
    assert run.data.params["alpha"] == "0.5"
    assert run.data.params["data.target.name"] == "digits"
    client = MlflowClient(config.tracking.uri)
    history = client.get_metric_history(run.info.run_id, "val/target/nll")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.5), (1, 1.0)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.yaml", "metrics.json"}
    assert (tmp_path / "mlflow.db").exists()
    assert (tmp_path / "mlartifacts").is_dir()
    assert not (tmp_path / "mlruns").exists()


def test_many_and_long_parameters_keep_their_keys(tmp_path, open_folder):
    classes = [f"class number {i}" for i in range(300)]
    many = {f"knob{i}": i for i in range(150)}
    config = config_in(tmp_path)
    config.data.target["classes"] = classes
    config.backbone.update(many)
    (open_folder / "metrics.json").write_text("{}")
    with track_run(config, open_folder):
        pass
    params = runs(config)[0].data.params
    assert {f"backbone.knob{i}" for i in range(150)} <= set(params)
    text = params["data.target.classes"]
    assert len(text) == LONGEST_PARAM
    assert text.endswith(f"... ({len(json.dumps(classes))} characters, see config.yaml)")


def test_flattening_joins_keys_with_dots():
    assert flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {"a.b.c": 1, "a.d": [1, 2], "e": {}}


def test_without_tracking_nothing_is_written(tmp_path, open_folder):
    config = compose("init=random", root=tmp_path)
    with track_run(config, open_folder) as run:
        run.log_metrics({"x": 1.0}, step=0)
        run.log_artifact(open_folder / "config.yaml")
    assert run.run_id == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_metrics_survive_a_store_that_is_away_for_a_while(tmp_path, open_folder, monkeypatch, caplog):
    config = config_in(tmp_path)
    (open_folder / "metrics.json").write_text("{}")
    real = MlflowClient.log_batch
    away = [True]

    def log_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if away[0] and kwargs.get("metrics"):
            raise MlflowException("connection refused")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    with track_run(config, open_folder) as run:
        run.log_metrics({"x": 1.0}, step=0)
        run.log_metrics({"x": 2.0}, step=1)
        away[0] = False
        run.log_metrics({"x": 3.0}, step=2)
    (run,) = runs(config)
    history = MlflowClient(config.tracking.uri).get_metric_history(run.info.run_id, "x")
    assert [metric.value for metric in history] == [1.0, 2.0, 3.0]
    assert len([r for r in caplog.records if "kept and sent later" in r.getMessage()]) == 1


def test_a_store_that_cannot_be_used_is_one_line(tmp_path, open_folder):
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    config = config_in(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/broken.db")
    with (
        pytest.raises(UsageError, match="MLflow's store fails") as caught,
        track_run(config, open_folder),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_is_said(tmp_path, open_folder):
    config = config_in(tmp_path)
    (open_folder / "metrics.json").write_text("{}")
    with track_run(config, open_folder):
        pass
    client = MlflowClient(config.tracking.uri)
    client.delete_experiment(client.get_experiment_by_name("tlexp").experiment_id)
    with pytest.raises(UsageError, match="it was deleted in MLflow"), track_run(config, open_folder):
        pass


def _open_together(config: Any, folder: Path, barrier: Any) -> None:
    barrier.wait()
    with FileLock(folder / run_folder.LOCK), track_run(config, folder) as run:
        for step in range(3):
            run.log_metrics({"x": float(step)}, step=step)


@pytest.mark.slow
def test_eight_processes_meet_a_database_that_is_not_there(tmp_path, open_folder):
    """Without the lock seven of eight die in the migrations, or the file is left broken."""
    config = config_in(tmp_path)
    (open_folder / "metrics.json").write_text("{}")
    folders = [shutil.copytree(open_folder, tmp_path / f"run{number}") for number in range(8)]
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(8)
    processes = [fork.Process(target=_open_together, args=(config, folder, barrier)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert [run.info.status for run in runs(config)] == ["FINISHED"] * 8


# What a process leaves that ends without a word -------------------------------------------------------------------


def _left(config: Any, folder: Path, hold: Any = None) -> None:
    """Opens a run and ends as `kill -9` does; with a pipe to wait at, it lives until it is told."""
    with FileLock(folder / run_folder.LOCK), track_run(config, folder) as run:
        run.log_metrics({"x": 1.0}, step=0)
        if hold is not None:
            hold.send("open")
            hold.recv()
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_next_start_closes_what_a_killed_process_left_open(tmp_path, open_folder, caplog):
    config = config_in(tmp_path)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_left, args=(config, open_folder))
    process.start()
    process.join()
    assert [run.info.status for run in runs(config)] == ["RUNNING"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("alpha: 0\n")
    (other / "metrics.json").write_text("{}")
    with track_run(config, other):
        pass
    ends = {run.data.tags["folder"]: run for run in runs(config)}
    assert ends[str(open_folder)].info.status == "KILLED"
    assert ends[str(open_folder)].data.tags["error"] == "process died without reporting (for example kill -9)"
    assert "closed runs of dead processes as KILLED" in caplog.text


def test_a_run_that_lives_or_is_elsewhere_is_left_alone(tmp_path, open_folder):
    config = config_in(tmp_path)
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_left, args=(config, open_folder, theirs))
    process.start()
    assert ours.recv() == "open"
    client, experiment = open_experiment(config.tracking.uri, "tlexp")
    elsewhere = client.create_run(experiment, tags={"folder": "/nowhere/on/this/machine"})
    client.create_run(experiment)  # of another program, which says nothing of a folder
    close_orphans(client, experiment)
    assert [run.info.status for run in runs(config)] == ["RUNNING"] * 3
    ours.send("end")
    process.join()
    close_orphans(client, experiment)
    ends = {run.info.run_id: run.info.status for run in runs(config)}
    assert sorted(ends.values()) == ["KILLED", "RUNNING", "RUNNING"]
    assert ends[elsewhere.info.run_id] == "RUNNING"


def test_a_run_whose_process_died_before_its_folder_knew_it_is_taken_up(tmp_path, open_folder):
    config = config_in(tmp_path)
    with track_run(config, open_folder) as run:
        pass
    client = MlflowClient(config.tracking.uri)
    client.set_terminated(run.run_id, "KILLED")
    (open_folder / "mlflow_run_id.txt").unlink()
    with track_run(config, open_folder) as again:
        again.log_metrics({"x": 1.0}, step=0)
    assert again.run_id == run.run_id
    assert [run.info.status for run in runs(config)] == ["FINISHED"]
    (open_folder / "mlflow_run_id.txt").unlink()
    with track_run(config, open_folder) as new:
        pass
    assert new.run_id != run.run_id, "one with a result is left alone"


def test_a_run_that_was_complete_is_closed_as_finished(tmp_path, open_folder):
    """Killed between its result and its closing."""
    config = config_in(tmp_path)
    (open_folder / "metrics.json").write_text("{}")
    process = multiprocessing.get_context("fork").Process(target=_left, args=(config, open_folder))
    process.start()
    process.join()
    client, experiment = open_experiment(config.tracking.uri, "tlexp")
    close_orphans(client, experiment)
    (run,) = runs(config)
    assert run.info.status == "FINISHED"
    assert "metrics.json" in {file.path for file in client.list_artifacts(run.info.run_id)}
