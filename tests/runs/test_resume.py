"""A run that goes on after an interruption ends as one that was never stopped."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from tests.helpers import (
    BACKBONES,
    FEW_CLASSES,
    QUICK,
    RESUMABLE,
    STRATEGIES,
    best_weights,
    compose,
    differing,
    each_once,
    forked,
    interrupted_and_not,
    options_of,
    stopped_after,
    untimed_result,
)
from tlexp.errors import UsageError
from tlexp.runs.run import run as run_config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "backbone"),
    each_once(STRATEGIES, ("small_cnn_batchnorm", "timm_resnet", "timm_vit", "bert")),
)
def test_every_strategy_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, strategy, backbone):
    """Weights, statistics, rates and history are equal to the bit: BatchNorm, dropout and both domains included."""
    options = (
        *RESUMABLE,
        f"strategy={strategy}",
        *options_of(strategy, backbone),
        *BACKBONES[backbone],
        "batch_size=6",
    )
    straight, broken = interrupted_and_not(compose(*options, root=tmp_path), tmp_path, monkeypatch)
    assert not differing(best_weights(straight), best_weights(broken))
    assert untimed_result(straight) == untimed_result(broken)
    assert (straight / "history.jsonl").read_text() == (broken / "history.jsonl").read_text()
    assert not (broken / "last.ckpt").exists(), "what only served to go on is removed"


@pytest.mark.parametrize(
    "options",
    [
        ("augment=strong", "data.sampling=balanced", "objective.mixup=0.5"),
        ("strategy=gradual_unfreezing", "strategy.epochs_per_stage=1", "schedule=slanted", "optimizer=sgd"),
        ("patience=1", "lr=0.03", "epochs=8"),
        ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"),
    ],
)
@pytest.mark.parametrize("epochs", [1, 4])
def test_chance_and_schedules_go_on_too(tmp_path, monkeypatch, options, epochs):
    straight, broken = interrupted_and_not(compose(*RESUMABLE, *options, root=tmp_path), tmp_path, monkeypatch, epochs)
    assert not differing(best_weights(straight), best_weights(broken))
    assert untimed_result(straight) == untimed_result(broken)


def test_a_run_that_had_stopped_early_goes_on_to_its_test(tmp_path, monkeypatch):
    config = compose(*RESUMABLE, "patience=1", "lr=0.3", "epochs=8", root=tmp_path)
    run_config(config, tmp_path / "first")
    epochs = untimed_result(tmp_path / "first")["epochs_run"]
    assert epochs < 8
    straight, broken = interrupted_and_not(config, tmp_path, monkeypatch, epochs)
    assert not differing(best_weights(straight), best_weights(broken))
    assert untimed_result(straight) == untimed_result(broken)


def tracked(tmp_path, store):
    return compose(*RESUMABLE, "tracking=mlflow", f"tracking.uri=sqlite:///{tmp_path}/{store}.db", root=tmp_path)


def only_run(tmp_path, store):
    client = MlflowClient(f"sqlite:///{tmp_path}/{store}.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tlexp").experiment_id])
    return client, run


def test_another_store_gets_every_epoch_and_the_same_one_no_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            run_config(tracked(tmp_path, "a"), tmp_path / "run")
    _, run = only_run(tmp_path, "a")
    assert (run.info.status, "error" in run.data.tags) == ("FAILED", True)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run_config(tracked(tmp_path, "a"), tmp_path / "run")
    client, run = only_run(tmp_path, "a")
    assert (run.info.status, "error" in run.data.tags) == ("FINISHED", False)
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/target/nll")]
    assert sorted(steps) == [0, 1, 2, 3], "each once"

    with pytest.raises(UsageError, match=r"copy: this run was in .*run; move it back, or start a new one"):
        run_config(tracked(tmp_path, "b"), tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "copy").rename(tmp_path / "run")
    run_config(tracked(tmp_path, "c"), tmp_path / "run")
    client, run = only_run(tmp_path, "c")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/target/nll")]
    assert sorted(steps) == [0, 1, 2, 3]


def test_a_run_resumes_with_other_options_that_do_not_change_its_result(tmp_path, monkeypatch):
    """MLflow refuses to change a parameter of a run; the run keeps those it started with."""
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            run_config(tracked(tmp_path, "a"), tmp_path / "run")
    store = f"tracking.uri=sqlite:///{tmp_path}/a.db"
    other = compose(*RESUMABLE, "tracking=mlflow", store, "workers=1", "checkpoint_minutes=9", root=tmp_path)
    run_config(other, tmp_path / "run")
    _, run = only_run(tmp_path, "a")
    assert (run.info.status, run.data.params["checkpoint_minutes"]) == ("FINISHED", "0.0")


def test_a_run_stopped_between_its_result_and_its_record_is_closed(tmp_path):
    config = tracked(tmp_path, "a")
    run_config(config, tmp_path / "run")
    client, run = only_run(tmp_path, "a")
    client.update_run(run.info.run_id, status="RUNNING")
    run_config(config, tmp_path / "run")
    assert only_run(tmp_path, "a")[1].info.status == "FINISHED"


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"), pytest.raises(UsageError, match="run: another process trains in it; wait"):
        run_config(compose(*RESUMABLE, root=tmp_path), tmp_path / "run")


def test_the_splits_are_the_same_after_going_on(tmp_path, monkeypatch):
    straight, broken = interrupted_and_not(compose(*RESUMABLE, root=tmp_path), tmp_path, monkeypatch)
    assert untimed_result(straight)["split_hashes"] == untimed_result(broken)["split_hashes"]


def test_a_torn_checkpoint_or_one_of_another_configuration_starts_from_the_beginning(tmp_path, monkeypatch, caplog):
    config = compose(*RESUMABLE, root=tmp_path)
    straight, broken = interrupted_and_not(config, tmp_path, monkeypatch)
    (broken / "metrics.json").unlink()
    (broken / "last.ckpt").write_bytes(b"half a checkpoint")
    run_config(config, broken)
    assert "not a readable checkpoint" in caplog.text
    assert not differing(best_weights(straight), best_weights(broken))
    other = compose(*RESUMABLE, "seed=7", root=tmp_path)
    with pytest.raises(UsageError, match="holds the result of another configuration"):
        run_config(other, broken)
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            run_config(config, tmp_path / "third")
    run_config(other, tmp_path / "third")
    assert untimed_result(tmp_path / "third")["epochs_run"] == 4
    assert differing(best_weights(straight), best_weights(tmp_path / "third"))


def test_a_complete_run_is_not_repeated(tmp_path, capsys):
    config = compose(*RESUMABLE, root=tmp_path)
    result = run_config(config, tmp_path / "run")
    before = (tmp_path / "run/best.ckpt").stat().st_mtime_ns
    assert run_config(config, tmp_path / "run") == result
    assert "already complete" in capsys.readouterr().out
    assert (tmp_path / "run/best.ckpt").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(), ("trainer=ddp",)])
def test_a_killed_command_goes_on_in_its_own_folder_and_run(tmp_path, devices):
    """`kill -9` in mid-training, then `resume=FOLDER`: one folder, one run in MLflow, FINISHED, the same result."""
    options = (
        *QUICK,
        *FEW_CLASSES,
        "init=random",
        "alpha=0.5",
        "epochs=10",
        "checkpoint_minutes=0",
        "backbone.dropout=0",
    )

    def kill(pid: int) -> None:
        while not list(tmp_path.glob("outputs/runs/*/last.ckpt")):
            time.sleep(0.05)
        ranks = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
        for process in {pid, *map(int, ranks)} - {os.getpid()}:
            os.kill(process, signal.SIGKILL)

    assert forked(*options, *devices, cwd=tmp_path, meanwhile=kill).returncode == -signal.SIGKILL
    (folder,) = tmp_path.glob("outputs/runs/*")
    assert not (folder / "metrics.json").exists()

    refused = forked(f"resume={folder}", "alpha=1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "with alpha=1: a run resumes with its own configuration; leave other options out" in refused.stderr
    done = forked(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "after epoch" in done.stdout
    assert list(tmp_path.glob("outputs/runs/*")) == [folder]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tlexp").experiment_id])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/target/nll")]
    assert sorted(set(steps)) == list(range(10))

    run_config(compose(*options, root=tmp_path), tmp_path / "straight")
    ours, theirs = untimed_result(folder), untimed_result(tmp_path / "straight")
    assert ours["test/target/nll"] == pytest.approx(theirs["test/target/nll"], abs=1e-5)
    assert ours["epochs_run"] == theirs["epochs_run"] == 10
    assert json.loads((folder / "metrics.json").read_text())["mlflow_run_id"] == run.info.run_id


def test_a_folder_of_no_run_is_said(tmp_path):
    done = forked("resume=nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "tlexp: resume=nowhere: contains no config.yaml; give the folder of a run, as its report shows it\n",
    )
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_was_moved_is_said_and_its_old_folder_stays_away(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            run_config(tracked(tmp_path / "old", "mlflow"), tmp_path / "old/run")
    (tmp_path / "old").rename(tmp_path / "new")
    done = forked(f"resume={tmp_path / 'new/run'}", cwd=tmp_path)
    gone = (
        f"the folder of its database {tmp_path / 'old/mlflow.db'} is gone; move the run back to where it was, or give"
    )
    assert (done.returncode, gone in done.stderr) == (2, True), done.stderr
    elsewhere = forked(f"resume={tmp_path / 'new/run'}", f"tracking.uri=sqlite:///{tmp_path}/other.db", cwd=tmp_path)
    assert elsewhere.returncode == 2
    assert f"this run was in {tmp_path / 'old/run'}; move it back, or start a new one" in elsewhere.stderr
    assert not (tmp_path / "old").exists()


def test_state_in_a_checkpoint_is_plain(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            run_config(compose(*RESUMABLE, root=tmp_path), tmp_path / "run")
    content = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert content["epoch"] == 1
    assert set(content["tlexp"]["metrics"]) >= {"val/target/nll"}
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.slow
def test_a_run_that_is_killed_while_its_source_trains_resumes(tmp_path):
    def kill(pid: int) -> None:
        while not list(tmp_path.glob("outputs/store/*/history.jsonl")):
            time.sleep(0.02)
        os.killpg(pid, signal.SIGKILL)

    options = ("pretrain.epochs=6", "epochs=1", "tracking=none", "trainer.accelerator=cpu", "checkpoint_minutes=0")
    assert forked(*options, cwd=tmp_path, meanwhile=kill).returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    done = forked(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "metrics.json").is_file()
