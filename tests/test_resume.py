"""A run that goes on after an interruption ends as one that was never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from tests.conftest import BACKBONES, KINDS, QUICK, ROOT, STRATEGIES, WHOLE, command, compose, differing, options_of
from tlexp import experiment, resume
from tlexp.errors import UsageError

FEW = ("data.source.classes=[0,1,2]", "data.target.classes=[0,1,2]", "data.test_fraction=0.9", "batch_size=6")
RUN = (*FEW, "init=random", "epochs=4", "checkpoint_minutes=0", "alpha=0.5")


def result(folder):
    timed = ("seconds", "fit_seconds", "examples_per_second", "peak_memory_mib", "checkpoint", "mlflow_run_id")
    return {name: value for name, value in experiment.read_metrics(folder).items() if name not in timed}


def kept(folder):
    return torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]


def stopped_after(epochs, monkeypatch):
    """Lets the next run raise once so many epochs are on disk."""
    real = resume.LastCheckpoint.on_train_epoch_end

    def stop(self, trainer, task):
        real(self, trainer, task)
        if trainer.current_epoch + 1 == epochs:
            raise RuntimeError("the power went out")

    monkeypatch.setattr(resume.LastCheckpoint, "on_train_epoch_end", stop)


def twice(config, folder, monkeypatch, epochs=2):
    """Runs a configuration that is interrupted and goes on, and once more without; returns both folders."""
    straight, broken = folder / "straight", folder / "broken"
    experiment.run(config, straight)
    with monkeypatch.context() as patch:
        stopped_after(epochs, patch)
        with pytest.raises(RuntimeError, match="the power went out"):
            experiment.run(config, broken)
    assert (broken / "last.ckpt").exists()
    experiment.run(config, broken)
    return straight, broken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "backbone"),
    [(strategy, "small_cnn_batchnorm") for strategy in STRATEGIES]
    + [(strategy, kind) for strategy in (STRATEGIES if WHOLE else ("finetune", "lp_ft")) for kind in KINDS],
)
def test_every_strategy_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, strategy, backbone):
    """Weights, statistics, rates and history are equal to the bit: BatchNorm, dropout and both domains included."""
    options = (*RUN, f"strategy={strategy}", *options_of(strategy, backbone), *BACKBONES[backbone], "batch_size=6")
    straight, broken = twice(compose(*options, root=tmp_path), tmp_path, monkeypatch)
    assert not differing(kept(straight), kept(broken))
    assert result(straight) == result(broken)
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
    straight, broken = twice(compose(*RUN, *options, root=tmp_path), tmp_path, monkeypatch, epochs)
    assert not differing(kept(straight), kept(broken))
    assert result(straight) == result(broken)


def test_a_run_that_had_stopped_early_goes_on_to_its_test(tmp_path, monkeypatch):
    config = compose(*RUN, "patience=1", "lr=0.3", "epochs=8", root=tmp_path)
    experiment.run(config, tmp_path / "first")
    epochs = result(tmp_path / "first")["epochs_run"]
    assert epochs < 8
    straight, broken = twice(config, tmp_path, monkeypatch, epochs)
    assert not differing(kept(straight), kept(broken))
    assert result(straight) == result(broken)


def tracked(tmp_path, store):
    return compose(*RUN, "tracking=mlflow", f"tracking.uri=sqlite:///{tmp_path}/{store}.db", root=tmp_path)


def only_run(tmp_path, store):
    client = MlflowClient(f"sqlite:///{tmp_path}/{store}.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tlexp").experiment_id])
    return client, run


def test_another_store_gets_every_epoch_and_the_same_one_no_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            experiment.run(tracked(tmp_path, "a"), tmp_path / "run")
    _, run = only_run(tmp_path, "a")
    assert (run.info.status, "error" in run.data.tags) == ("FAILED", True)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    experiment.run(tracked(tmp_path, "a"), tmp_path / "run")
    client, run = only_run(tmp_path, "a")
    assert (run.info.status, "error" in run.data.tags) == ("FINISHED", False)
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/target/nll")]
    assert sorted(steps) == [0, 1, 2, 3], "each once"

    with pytest.raises(UsageError, match=r"copy: this run was in .*run; move it back, or start it anew"):
        experiment.run(tracked(tmp_path, "b"), tmp_path / "copy")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "copy").rename(tmp_path / "run")
    experiment.run(tracked(tmp_path, "c"), tmp_path / "run")
    client, run = only_run(tmp_path, "c")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/target/nll")]
    assert sorted(steps) == [0, 1, 2, 3]


def test_a_run_stopped_between_its_result_and_its_record_is_closed(tmp_path):
    config = tracked(tmp_path, "a")
    experiment.run(config, tmp_path / "run")
    client, run = only_run(tmp_path, "a")
    client.update_run(run.info.run_id, status="RUNNING")
    experiment.run(config, tmp_path / "run")
    assert only_run(tmp_path, "a")[1].info.status == "FINISHED"


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"), pytest.raises(UsageError, match="run: another process trains in it; wait"):
        experiment.run(compose(*RUN, root=tmp_path), tmp_path / "run")


def test_the_splits_are_the_same_after_going_on(tmp_path, monkeypatch):
    straight, broken = twice(compose(*RUN, root=tmp_path), tmp_path, monkeypatch)
    assert result(straight)["split_hashes"] == result(broken)["split_hashes"]


def test_a_torn_checkpoint_or_one_of_another_configuration_starts_from_the_beginning(tmp_path, monkeypatch, caplog):
    config = compose(*RUN, root=tmp_path)
    straight, broken = twice(config, tmp_path, monkeypatch)
    (broken / "metrics.json").unlink()
    (broken / "last.ckpt").write_bytes(b"half a checkpoint")
    experiment.run(config, broken)
    assert "not a readable checkpoint" in caplog.text
    assert not differing(kept(straight), kept(broken))
    other = compose(*RUN, "seed=7", root=tmp_path)
    with pytest.raises(UsageError, match="holds the result of another configuration"):
        experiment.run(other, broken)
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            experiment.run(config, tmp_path / "third")
    experiment.run(other, tmp_path / "third")
    assert result(tmp_path / "third")["epochs_run"] == 4
    assert differing(kept(straight), kept(tmp_path / "third"))


def test_a_complete_run_is_not_repeated(tmp_path, capsys):
    config = compose(*RUN, root=tmp_path)
    score = experiment.run(config, tmp_path / "run")
    before = (tmp_path / "run/best.ckpt").stat().st_mtime_ns
    assert experiment.run(config, tmp_path / "run") == score
    assert "is complete already" in capsys.readouterr().out
    assert (tmp_path / "run/best.ckpt").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("devices", [(), ("trainer=ddp",)])
def test_a_killed_command_goes_on_in_its_own_folder_and_run(tmp_path, devices):
    """`kill -9` in mid-training, then `resume=FOLDER`: one folder, one run in MLflow, FINISHED, the same result."""
    options = (*QUICK, *FEW, "init=random", "alpha=0.5", "epochs=20", "checkpoint_minutes=0", "backbone.dropout=0")
    line = [sys.executable, str(ROOT / "run.py"), *options, *devices]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.glob("outputs/runs/*/last.ckpt")):
        assert running.poll() is None
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    for pid in {running.pid, *map(int, ranks)}:
        os.kill(pid, signal.SIGKILL)
    running.wait()
    (folder,) = tmp_path.glob("outputs/runs/*")
    assert not (folder / "metrics.json").exists()

    refused = command(f"resume={folder}", "alpha=1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "with alpha=1: a run goes on as it was configured; leave the rest out" in refused.stderr
    done = command(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "after epoch" in done.stdout
    assert list(tmp_path.glob("outputs/runs/*")) == [folder]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tlexp").experiment_id])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/target/nll")]
    assert sorted(set(steps)) == list(range(20))

    experiment.run(compose(*options, root=tmp_path), tmp_path / "straight")
    ours, theirs = result(folder), result(tmp_path / "straight")
    assert ours["test/target/nll"] == pytest.approx(theirs["test/target/nll"], abs=1e-5)
    assert ours["epochs_run"] == theirs["epochs_run"] == 20
    assert json.loads((folder / "metrics.json").read_text())["mlflow_run_id"] == run.info.run_id


def test_a_folder_of_no_run_is_said(tmp_path):
    done = command("resume=nowhere", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "tlexp: resume=nowhere: holds no config.yaml; give the folder of a run, as its report names it\n",
    )
    assert not (tmp_path / "nowhere").exists()


def test_state_in_a_checkpoint_is_plain(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped_after(2, patch)
        with pytest.raises(RuntimeError):
            experiment.run(compose(*RUN, root=tmp_path), tmp_path / "run")
    content = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert content["epoch"] == 1
    assert set(content["tlexp"]["metrics"]) >= {"val/target/nll"}
    assert not list((tmp_path / "run").glob("*.tmp"))
