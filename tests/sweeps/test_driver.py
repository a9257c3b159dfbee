"""Whole multiruns: what runs, what is skipped, what stays of one that is killed, and what MLflow says of it."""

import csv
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from tests.helpers import CACHE, FILES, QUICK, SWEEP_18, best_weights, forked

pytestmark = pytest.mark.slow

RUN = (*QUICK, "init=random", "epochs=1", f"cache={CACHE}")
PARALLEL = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


class Store:
    """What MLflow has of the sweeps in a folder."""

    def __init__(self, cwd: Path) -> None:
        self.client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
        experiment = self.client.get_experiment_by_name("tlexp")
        self.runs = list(self.client.search_runs([experiment.experiment_id]))

    @property
    def parents(self) -> list[Any]:
        return [run for run in self.runs if run.data.tags.get("tlexp.role") == "sweep"]

    def children(self, parent: Any) -> list[Any]:
        return [run for run in self.runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


def only_sweep(cwd: Path) -> tuple[Any, list[Any], Store]:
    store = Store(cwd)
    (parent,) = store.parents
    return parent, store.children(parent), store


def jobs(cwd: Path) -> dict[str, Path]:
    return {file.parent.name: file.parent for file in (cwd / "outputs/jobs").glob("*/metrics.json")}


def table(cwd: Path) -> list[dict[str, str]]:
    """The comparison without what depends on the machine."""
    (file,) = (cwd / "outputs/sweeps").glob("*/comparison.csv")
    timed = ("fit_seconds", "examples_per_second", "peak_memory_mib")
    with file.open() as content:
        return [{key: value for key, value in row.items() if key not in timed} for row in csv.DictReader(content)]


@pytest.mark.timeout(600)
def test_a_sweep_that_is_killed_five_times_ends_as_one_that_was_not(tmp_path, finished_sweep):
    """`kill -9` on the whole group, wherever it is: no finished job runs again, none is lost."""
    killed = tmp_path / "killed"
    killed.mkdir()
    chance = random.Random(3)
    written: dict[str, int] = {}
    kills = 0
    while kills < 5:
        wanted = len(jobs(killed)) + 1 + kills % 3

        def kill(pid: int, wanted: int = wanted) -> None:
            while len(jobs(killed)) < wanted:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.6))
            os.killpg(pid, signal.SIGKILL)

        assert forked("-m", *SWEEP_18, cwd=killed, meanwhile=kill).returncode == -signal.SIGKILL
        kills += 1
        found = {name: (folder / "metrics.json").stat().st_mtime_ns for name, folder in jobs(killed).items()}
        assert written.items() <= found.items(), "a finished job was written again"
        written = found
        assert len(written) < 18, "nothing is left to kill"
    last = forked("-m", *SWEEP_18, cwd=killed)
    assert last.returncode == 0, last.stderr
    found = {name: (folder / "metrics.json").stat().st_mtime_ns for name, folder in jobs(killed).items()}
    assert written.items() <= found.items()
    assert set(found) == set(jobs(finished_sweep))
    assert len(found) == 18
    assert table(killed) == table(finished_sweep)
    for cwd in (finished_sweep, killed):
        parent, children, _ = only_sweep(cwd)
        assert parent.info.status == "FINISHED"
        assert [run.info.status for run in children] == ["FINISHED"] * 18
        assert len({run.data.tags["config_hash"] for run in children}) == 18


def test_a_grown_grid_runs_what_is_new_under_the_same_parent(tmp_path):
    assert forked("-m", *RUN, "alpha=0", "seed=0,1", cwd=tmp_path).returncode == 0
    before = {name: (folder / "metrics.json").stat().st_mtime_ns for name, folder in jobs(tmp_path).items()}
    grown = forked("-m", *RUN, "seed=2,1,0", "alpha=0", cwd=tmp_path)
    assert "3 grid points, 3 unique jobs: 2 done, 1 to run" in grown.stdout
    after = {name: (folder / "metrics.json").stat().st_mtime_ns for name, folder in jobs(tmp_path).items()}
    assert before.items() < after.items()
    _, children, _ = only_sweep(tmp_path)
    assert len(children) == 3


def test_another_question_counts_the_jobs_of_the_first_and_records_them_under_its_own_parent(tmp_path):
    assert forked("-m", *RUN, "alpha=0,0.5", cwd=tmp_path).returncode == 0
    other = forked("-m", *RUN, "alpha=0,0.5", "batch_size=16,8", cwd=tmp_path)
    assert "4 grid points, 4 unique jobs: 2 done, 2 to run" in other.stdout
    store = Store(tmp_path)
    assert sorted(len(store.children(parent)) for parent in store.parents) == [2, 4]
    (again,) = [run for run in store.runs if run.data.tags.get("recorded_again") and run.data.params["alpha"] == "0.5"]
    (first,) = [
        run
        for run in store.runs
        if run.data.params.get("alpha") == "0.5" and run.data.params["batch_size"] == "16" and run is not again
    ]
    assert again.data.metrics == first.data.metrics
    history = [store.client.get_metric_history(run.info.run_id, "val/target/nll") for run in (first, again)]
    assert [(m.step, m.value) for m in history[0]] == [(m.step, m.value) for m in history[1]]


def test_points_with_one_result_run_once_and_count_in_each_place(tmp_path):
    done = forked("-m", *RUN, "strategy=scratch,linear_probe", "alpha=0,0.5,1", "head=two", cwd=tmp_path)
    assert "6 grid points, 4 unique jobs: 0 done, 4 to run" in done.stdout
    with next((tmp_path / "outputs/sweeps").glob("*/points.csv")).open() as file:
        points = list(csv.DictReader(file))
    probe = [point["test/target/accuracy"] for point in points if point["strategy"] == "linear_probe"]
    assert len(points) == 6
    assert len(probe) == 3
    assert len(set(probe)) == 1


def test_a_failing_job_says_so_at_once_and_the_others_go_on(tmp_path, monkeypatch):
    """A user's mistake is a line; an error of the code has its traceback on the screen and in the job's own log."""
    (tmp_path / "falls.py").write_text(
        "from tlexp.strategies.finetune import Finetune\n\n\n"
        "class Falls(Finetune):\n"
        "    def trainable(self, epoch):\n"
        "        raise RuntimeError('fell over')\n"
    )
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy/falls.yaml").write_text(
        "# @package _global_\ndefaults: [finetune]\nstrategy: {_target_: falls.Falls, name: falls}\n"
    )
    options = ("--config-dir", str(tmp_path), "-m", *RUN, "strategy=scratch,falls,finetune")
    monkeypatch.syspath_prepend(tmp_path)
    done = forked(*options, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "falls failed: fell over" in said
    assert said.index("RuntimeError: fell over") < said.index("finetune: target test accuracy")
    assert "1 of 3 jobs failed, first falls (fell over); rerun the same command to retry them" in done.stderr
    (log,) = (tmp_path / "outputs/jobs").glob("falls-*/tlexp.log")
    assert "RuntimeError: fell over" in log.read_text()
    parent, children, _ = only_sweep(tmp_path)
    assert parent.info.status == "FAILED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED", "FINISHED"]
    assert {row["strategy"] for row in table(tmp_path)} == {"scratch", "finetune"}


def test_fail_fast_stops_at_the_first_failure(tmp_path):
    done = forked("-m", *RUN, "backbone.width=8,7,16", "sweep.fail_fast=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "sweep.fail_fast=true: width7 failed, so 1 jobs are not started" in done.stdout
    assert len(jobs(tmp_path)) == 1
    _, children, _ = only_sweep(tmp_path)
    assert len(children) == 2


def test_parallel_jobs_on_a_fresh_database_of_which_two_fail_and_one_is_stopped(tmp_path):
    """The others finish, and each run and the parent end as what they are; jobs have processes that fetch pictures."""

    def stop_the_endless_one(pid: int) -> None:
        while not (long := [file for file in tmp_path.glob("outputs/jobs/*/history.jsonl") if _lines(file) > 5]):
            time.sleep(0.1)
        (worker,) = _processes_with_open(long[0].parent / ".lock")
        assert worker != pid
        os.kill(worker, signal.SIGTERM)

    grid = ("backbone.width=16,7", "epochs=1,100000")
    run = [option for option in RUN if option != "epochs=1"] + ["augment=light", "workers=1"]
    done = forked("-m", *run, *grid, *PARALLEL, cwd=tmp_path, meanwhile=stop_the_endless_one)
    assert done.returncode == 2, done.stderr
    assert "3 of 4 jobs failed" in done.stderr
    parent, children, _ = only_sweep(tmp_path)
    assert parent.info.status == "FAILED"
    ends = {(run.data.params["backbone.width"], run.data.params["epochs"]): run.info.status for run in children}
    assert ends == {
        ("16", "1"): "FINISHED",
        ("7", "1"): "FAILED",
        ("16", "100000"): "KILLED",
        ("7", "100000"): "FAILED",
    }


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def _processes_with_open(file: Path) -> list[int]:
    """The processes that hold a file open, as who works on a run holds its lock."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(opened.readlink() == file for opened in (process / "fd").iterdir()):
                found.append(int(process.name))
    return found


def test_jobs_do_not_depend_on_those_before_them(tmp_path):
    """Sequential jobs share a process: nothing of the first may reach the second."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    both.mkdir()
    alone.mkdir()
    assert forked("-m", *RUN, "seed=1,2", "backbone.dropout=0.3", "alpha=0.5", cwd=both).returncode == 0
    assert forked(*RUN, "seed=2", "backbone.dropout=0.3", "alpha=0.5", cwd=alone).returncode == 0
    (second,) = [folder for name, folder in jobs(both).items() if "-s2-" in name]
    (only,) = (alone / "outputs/runs").iterdir()
    ours, theirs = best_weights(second), best_weights(only)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_a_store_the_comparison_is_made_from_the_folders(tmp_path):
    done = forked("-m", *RUN, "tracking=none", "alpha=0,0.5", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path)) == 2
    assert not (tmp_path / "mlflow.db").exists()


def test_two_commands_of_one_sweep_do_not_run_together(tmp_path):
    endless = ("-m", *RUN, "epochs=100000", "seed=0,1")
    seen = []

    def start_again(pid: int) -> None:
        while not list(tmp_path.glob("outputs/jobs/*/history.jsonl")):
            time.sleep(0.05)
        seen.append(forked(*endless, cwd=tmp_path))
        os.killpg(pid, signal.SIGKILL)

    assert forked(*endless, cwd=tmp_path, meanwhile=start_again).returncode == -signal.SIGKILL
    (second,) = seen
    assert second.returncode == 2
    assert "another process runs this sweep; wait for it or stop it" in second.stderr


def test_a_job_that_another_sweep_runs_is_waited_for(tmp_path):
    """Once it ends there without a result, as by a kill, this sweep runs it."""
    sweep = ("-m", *RUN, "alpha=0", "seed=0,1,2")
    assert forked(*sweep[:-1], "seed=0,1", cwd=tmp_path).returncode == 0
    folders = {file.parent.name.split("-s")[1][0]: file.parent for file in tmp_path.glob("outputs/jobs/*/metrics.json")}
    result = (folders["0"] / "metrics.json").read_text()
    for folder in folders.values():
        (folder / "metrics.json").unlink()
    locks = {seed: FileLock(folder / ".lock") for seed, folder in folders.items()}
    for lock in locks.values():
        lock.acquire()

    def release(pid: int) -> None:
        while not any(name.split("-s")[1][0] == "2" for name in jobs(tmp_path)):
            time.sleep(0.05)
        time.sleep(3)  # the next job waits a second for its lock
        (folders["0"] / "metrics.json").write_text(result)
        for lock in locks.values():
            lock.release()

    done = forked(*sweep, cwd=tmp_path, meanwhile=release)
    assert done.returncode == 0, done.stderr
    assert "job 1 of 3: " in done.stdout
    assert done.stdout.index("s2") < done.stdout.index("s0 runs in another sweep; waiting for it")
    assert json.loads((folders["0"] / "metrics.json").read_text()) == json.loads(result), "taken as it was"
    assert len(jobs(tmp_path)) == 3


def test_checkpoints_that_are_not_wanted_are_removed_and_their_size_is_said_before(tmp_path):
    sweep = ("-m", *RUN, "alpha=0", "strategy=finetune,linear_probe", "lr=0.01,0.001")
    first = forked(*sweep, "seed=0", "sweep.keep=best", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "4 unique jobs: 0 done, 4 to run; checkpoints of about 1.42 MB each, of which the best stay" in first.stdout
    scores = {folder: json.loads((folder / "metrics.json").read_text())["score"] for folder in jobs(tmp_path).values()}
    kept = {file.parent for file in tmp_path.glob("outputs/jobs/*/best.ckpt")}
    best = {min((f for f in scores if f.name.startswith(name)), key=scores.__getitem__) for name in ("fine", "linear")}
    assert kept == best
    none = forked(*sweep, "seed=0,1", "sweep.keep=none", cwd=tmp_path)
    assert none.returncode == 0, none.stderr
    assert {file.parent for file in tmp_path.glob("outputs/jobs/*/best.ckpt")} == kept, "what was done is left alone"
    every = forked(*sweep, "seed=0,1,2", cwd=tmp_path)
    assert "12 unique jobs: 8 done, 4 to run; checkpoints of about 5.68 MB" in every.stdout
    assert len(list(tmp_path.glob("outputs/jobs/*/best.ckpt"))) == 2 + 4


@pytest.mark.parametrize(
    ("options", "started"),
    [
        (("data.target.root=nowhere",), 1),
        (("data=image_table", "data.target.root=nowhere.csv", "alpha=0"), 1),
        (("data.target.root=nowhere", *PARALLEL), 1),
    ],
)
def test_a_mistake_that_all_jobs_share_stops_the_sweep_at_the_first(tmp_path, options, started):
    base = ("data=images", "init=random", "epochs=1", f"cache={CACHE}")
    done = forked("-m", *base, *options, "strategy=finetune,linear_probe,bitfit", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 2
    assert "failed by a mistake that all jobs share, so 5 jobs are not started" in done.stdout
    assert f"{started} of 6 jobs failed, first finetune-s0" in done.stderr


def test_a_mistake_of_some_jobs_leaves_the_others_alone(tmp_path):
    done = forked("-m", *RUN, "alpha=0", "batch_size=16", "norm=frozen", "head_dropout=0,0.1", "lr=0.01", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wrong = ("strategy=linear_probe,finetune", "terms=[l2_sp]", "init=random", "alpha=0", "seed=0,1")
    some = forked("-m", *QUICK, "epochs=1", f"cache={CACHE}", *wrong, cwd=tmp_path)
    assert "all jobs share" not in some.stdout
    assert some.stdout.count("job ") >= 4


def test_a_search_that_is_killed_suggests_what_an_undisturbed_one_would(tmp_path):
    """Trials that were told count, the one that was interrupted is run to its end, and more are added later."""
    search = (*RUN, "lr=tag(log,interval(0.001,0.1))", "alpha=choice(0,0.5)", "seed=0,1")
    killed, finished_sweep = tmp_path / "killed", tmp_path / "finished_sweep"
    killed.mkdir()
    finished_sweep.mkdir()
    assert forked("-m", *search, "sweep.trials=3", cwd=finished_sweep).returncode == 0

    def kill(pid: int) -> None:
        while len(jobs(killed)) < 3:  # in the middle of the second trial
            time.sleep(0.02)
        os.killpg(pid, signal.SIGKILL)

    assert forked("-m", *search, "sweep.trials=2", cwd=killed, meanwhile=kill).returncode == -signal.SIGKILL
    first = forked("-m", *search, "sweep.trials=2", cwd=killed)
    assert first.returncode == 0, first.stderr
    assert "study of 2 trials" in first.stdout
    assert forked("-m", *search, "sweep.trials=3", cwd=killed).returncode == 0
    trials = [_trials(cwd) for cwd in (killed, finished_sweep)]
    assert trials[0] == trials[1]
    assert len(trials[0]) == 3
    assert set(jobs(killed)) == set(jobs(finished_sweep))
    again = forked("-m", *search, "sweep.trials=3", cwd=killed)
    assert "study of 3 trials, 3 of them complete" in again.stdout
    assert "job 1 of" not in again.stdout


def test_a_trial_whose_job_is_gone_runs_again_and_has_not_diverged(tmp_path):
    search = (*RUN, "lr=interval(0.001,0.1)", "sweep.trials=1")
    assert forked("-m", *search, cwd=tmp_path).returncode == 0
    (folder,) = jobs(tmp_path).values()
    shutil.rmtree(folder)
    again = forked("-m", *search, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert list(jobs(tmp_path).values()) == [folder]


def _trials(cwd: Path) -> list[tuple[Any, ...]]:
    import optuna

    (file,) = (cwd / "outputs/sweeps").glob("*/study.db")
    (name,) = optuna.get_all_study_names(f"sqlite:///{file}")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{file}")
    return [(trial.number, trial.state.name, trial.value, trial.params) for trial in study.trials]


def test_a_search_tries_failed_jobs_again_and_refuses_another_space(tmp_path):
    """What failed for a reason outside of it is no answer; a value that was seen twice is one run."""
    table = tmp_path / "texts.csv"
    run = (*QUICK, "data=text_table", f"data.target.root={table}", "backbone=text", "init=random", "epochs=1")
    run += (f"backbone.name={FILES / 'tiny_bert'}", "backbone.max_length=16", f"cache={CACHE}", "data.shots=5")
    search = (
        *run,
        "batch_size=choice(4,6)",
        "sweep.trials=3",
        "sweep.sampler={_target_: optuna.samplers.RandomSampler}",
    )
    first = forked("-m", *search, cwd=tmp_path)
    assert first.returncode == 2
    assert "trial 0: failed; the next start repeats it" in first.stdout
    shutil.copy(FILES / "reports.csv", table)
    again = forked("-m", *search, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [state for _, state, _, _ in _trials(tmp_path)] == ["COMPLETE"] * 3
    _, children, _ = only_sweep(tmp_path)
    assert len([run for run in children if run.info.status == "FINISHED"]) == len(jobs(tmp_path))
    other = forked("-m", *[each.replace("choice(4,6)", "choice(4,6,8)") for each in search], cwd=tmp_path)
    assert other.returncode == 2
    assert "was created with batch_size as CategoricalDistribution" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    more = forked("-m", *[each.replace("trials=3", "trials=4") for each in search], cwd=tmp_path)
    assert more.returncode == 0, "the study is as it was"


def test_odd_folders_torn_results_and_records_that_lack_their_end(tmp_path):
    cwd = tmp_path / "a,b (x)=1"
    cwd.mkdir()
    assert forked("-m", *RUN, "seed=0,1", "alpha=0,0.5", cwd=cwd).returncode == 0
    before = table(cwd)
    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    with closing(sqlite3.connect(cwd / "mlflow.db")) as database:  # as if the store had been away at a job's end
        run = Store(cwd).children(Store(cwd).parents[0])[0].info.run_id
        for kind in ("metrics", "latest_metrics"):
            database.execute(f"delete from {kind} where run_uuid = ? and key = 'score'", (run,))
        database.commit()
    assert forked("-m", *RUN, "seed=0,1", "alpha=0,0.5", cwd=cwd).returncode == 0
    assert "score" in client.get_run(run).data.metrics
    assert table(cwd) == before
    torn = next(iter(jobs(cwd).values())) / "metrics.json"
    torn.write_text(torn.read_text()[:40])
    said = forked("-m", *RUN, "seed=0,1", "alpha=0,0.5", cwd=cwd)
    assert said.returncode == 2
    assert said.stderr.strip() == f"tlexp: {torn}: corrupt JSON; delete it to rerun the job"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("sweep.metric=test/source/accuracy",), "sweep.metric=test/source/accuracy: every job must measure it"),
        (("sweep.baseline='lr=0.1'",), "sweep.baseline=lr=0.1: not in this sweep; choose one of strategy, alpha"),
        (("sweep.baseline='alpha=0'",), "sweep.baseline=alpha=0: alpha is not compared but selected by validation"),
        (("sweep.methods=[lr]",), "sweep.methods: lr is not an axis of this sweep; choose of strategy, alpha"),
        (
            ("sweep.methods=[data]", "data=mnist_to_digits,digits_to_mnist"),
            "sweep.methods: data: its values have different",
        ),
        (("monitor=val/target/acc",), "monitor=val/target/acc: no such metric; choose one of val/target/accuracy"),
        (("sweep.trials=2", "monitor=val/target/acc"), "monitor=val/target/acc: no such metric"),
        (("data.root=x",), "Could not override 'data.root'"),
    ],
)
def test_a_mistake_is_one_line_before_any_job(tmp_path, options, line):
    done = forked("-m", *RUN, "strategy=scratch,finetune", "alpha=0,0.5", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"tlexp: {line}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs").exists() or not jobs(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()


def test_a_trial_is_judged_by_the_best_value_of_what_was_kept_and_fails_where_training_diverges(tmp_path):
    run = (*QUICK, "init=random", "epochs=3", f"cache={CACHE}", "optimizer=sgd", "strategy=full_transfer")
    search = ("lr=choice(0.01,1e30)", "seed=0,1", "sweep.trials=5")
    every = "sweep.sampler={_target_: optuna.samplers.BruteForceSampler}"
    done = forked("-m", *run, *search, every, cwd=tmp_path)
    assert done.returncode == 3, "nothing failed but training that diverged"
    trials = _trials(tmp_path)
    by_lr = {params["lr"]: (state, value) for _, state, value, params in trials}
    assert by_lr["1e+30"] == ("FAIL", None)
    assert len(trials) == 2
    assert "the sampler has nothing left to suggest" in done.stdout
    scores = [json.loads((folder / "metrics.json").read_text())["score"] for folder in jobs(tmp_path).values()]
    assert by_lr["0.01"] == ("COMPLETE", pytest.approx(sum(scores) / 2))
    histories = [folder / "history.jsonl" for folder in jobs(tmp_path).values()]
    best = [min(json.loads(row)["val/target/nll"] for row in file.read_text().splitlines()) for file in histories]
    assert sorted(best) == sorted(scores)


def test_a_search_says_what_is_missing(tmp_path):
    nothing = forked("-m", *RUN, "seed=0,1", "sweep.trials=3", cwd=tmp_path)
    assert re.search("sweep.trials: there is nothing to search; give an axis", nothing.stderr)


def test_another_question_after_the_results_is_said_to_be_post_hoc(tmp_path):
    sweep = ("-m", *RUN, "tracking=none", "alpha=0,0.5", "seed=0")
    said = "chosen post hoc; treat p-values as exploratory"
    assert said not in forked(*sweep, cwd=tmp_path).stdout
    assert f"metric: {said}" in forked(*sweep, "sweep.metric=test/target/nll", cwd=tmp_path).stdout
    again = forked(*sweep, cwd=tmp_path)
    assert "2 done, 0 to run" in again.stdout
    assert said not in again.stdout, "the question of the first command"


def test_an_experiment_that_changes_the_data_is_a_problem_too(tmp_path):
    """What an axis does counts, not its name."""
    for name, classes in (("low", "[0,1]"), ("high", "[2,3]")):
        (tmp_path / f"experiment/{name}.yaml").parent.mkdir(exist_ok=True)
        text = f"# @package _global_\ndata: {{target: {{classes: {classes}}}, source: null}}\nlr: 0.01\n"
        (tmp_path / f"experiment/{name}.yaml").write_text(text)
    base = ("--config-dir", str(tmp_path), "-m", *RUN, "tracking=none", "experiment=low,high", "seed=0,1")
    done = forked(*base, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "difference vs" not in done.stdout
    assert "t-test" not in done.stdout
    (manifest,) = tmp_path.glob("outputs/sweeps/*/sweep.json")
    assert json.loads(manifest.read_text())["other_tests"] == ["experiment"]
    both = forked(*base, "strategy=finetune,linear_probe", cwd=tmp_path)
    assert "2 paired t-tests vs linear_probe" in both.stdout, "one on each problem"


def test_a_sweep_over_test_sets_compares_nothing_and_shows_each(tmp_path):
    classes = "data.target.classes=[0,1],[2,3]"
    done = forked("-m", *RUN, "tracking=none", "data.source=null", classes, "seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row, other) = [line for line in done.stdout.splitlines() if line.startswith("│ [")][:2]
    assert ("[0,1]" in row, "[2,3]" in other) == (True, True)
    assert "difference vs" not in done.stdout
    assert "t-test" not in done.stdout
