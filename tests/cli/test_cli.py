"""Whole commands, as a user gives them, from a folder that is not the checkout."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.helpers import QUICK, ROOT, command, forked
from tlexp.config.load import CONF

RUN = (*QUICK, "init=random", "epochs=2")


def runs_in(cwd: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("tlexp").experiment_id]))


def test_help_is_one_screen_and_names_every_option(tmp_path):
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.strip().splitlines()
    assert len(lines) <= 52
    assert max(map(len, lines)) <= 120
    assert sum("python run.py " in line and "..." not in line and "--config-dir" not in line for line in lines) == 7
    for option in CONF.glob("*/*.yaml"):
        shown = re.search(rf"^(  |{option.parent.name}: ).*\b{option.stem}(,|$)", done.stdout, re.MULTILINE)
        assert bool(shown) != option.read_text().startswith("# Old name"), option


def test_help_shows_the_defaults_of_what_is_chosen_and_options_of_ones_own(tmp_path):
    (tmp_path / "mine/strategy").mkdir(parents=True)
    (tmp_path / "mine/strategy/gentle.yaml").write_text("# @package _global_\ndefaults: [finetune]\n")
    plain = forked("--help", cwd=tmp_path).stdout
    chosen = forked("--help", "--config-dir", "mine", "strategy=gentle", "data=images", "lr=0.1", cwd=tmp_path).stdout
    assert "data.shots=5 " in plain
    assert "data.shots=null " in chosen
    assert re.search(r"epochs=\d+ lr=0.1 ", chosen)
    assert ("gentle" in plain, "gentle" in chosen) == (False, True)
    swept = forked("--help", "-m", "strategy=scratch,finetune", "seed=range(5)", "lr=0.2", cwd=tmp_path)
    assert "lr=0.2 " in swept.stdout
    wrong = forked("--help", "alhpa=1", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "tlexp: Could not override 'alhpa': no such option; did you mean alpha? --help lists them\n",
    )


def test_help_takes_little_time_and_never_imports_torch(tmp_path):
    """Hydra's own help takes five times as long as importing Hydra, ours about twice."""
    code = (
        "import sys, runpy\n"
        "sys.argv = ['run.py', '--help']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "runpy.run_path(sys.path[0] + '/run.py', run_name='__main__')\n"
        "heavy = {'torch', 'pytorch_lightning', 'mlflow', 'timm', 'torchmetrics', 'sklearn'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    seconds, done = cpu_seconds(code, tmp_path)
    assert done.stderr.strip() == "[]"
    assert "f* = argmin" in done.stdout
    assert seconds < 4 * cpu_seconds("import hydra", tmp_path)[0]


def test_a_shell_completes_options(tmp_path, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "run.py strategy=fin")
    assert forked("-sc", "query=bash", cwd=tmp_path).stdout.split() == ["strategy=finetune"]


def cpu_seconds(code: str, cwd: Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def test_one_command_trains_tests_records_and_says_so(tmp_path):
    done = command(*QUICK, "strategy=finetune", "alpha=0.5", "epochs=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in (
        "init=source: training the backbone on mnist",
        "L(target) + alpha * L(source), alpha = 0.5",
        "source mnist: 11 of 11 tensors",
        "6 in 2 epochs of 3 batches, 40 of the target, 48 of the source",
        "target test accuracy",
        "95 % interval",
        f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db",
    ):
        assert said in done.stdout, said
    runs = {run.info.run_name: run for run in runs_in(tmp_path)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    run = runs["finetune-mnist_to_digits-a0.5-s0"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    pictures = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert pictures == {"confusion_matrix.png", "learning_curves.png"}
    wanted = {"val/target/accuracy", "test/target/accuracy", "test/source/accuracy", "forgetting"}
    assert wanted <= set(run.data.metrics)
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    hashes = json.loads((folder / "metrics.json").read_text())["split_hashes"]
    assert {role: run.data.tags[f"split.{role}"] for role in ("target", "source")} == hashes
    again = forked(*QUICK, "strategy=finetune", "alpha=0.5", "epochs=2", cwd=tmp_path)
    assert "training the backbone on mnist" not in again.stdout
    files = sorted(path for path in tmp_path.iterdir() if not path.name.startswith("mlflow.db"))
    assert [path.name for path in files] == ["mlartifacts", "outputs"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("alhpa=1",), "tlexp: Could not override 'alhpa': no such option; did you mean alpha? --help lists them"),
        (("strategy=finetun",), "tlexp: In 'config': Could not find 'strategy/finetun' Available options"),
        (("init=epoch=3.ckpt",), "tlexp: mismatched input '='"),
        (("alpha=-1",), "tlexp: alpha=-1.0: must be finite and >= 0, or inf for the source alone"),
        ((*RUN, "tracking=none", "monitor=val/acc"), "tlexp: monitor=val/acc: no such metric; this run has val/"),
        (("tracking.uri=file:./mlruns",), "tlexp: tracking.uri=file:./mlruns: MLflow keeps no runs in plain folders"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_a_code(tmp_path, arguments, line):
    done = forked(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    (only,) = done.stderr.strip().splitlines()
    assert only.startswith(line)


def test_training_that_diverges_is_one_line_and_a_code_of_its_own(tmp_path):
    done = forked(*RUN, "lr=1e30", "optimizer=sgd", "strategy=full_transfer", cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line == "tlexp: training diverged (NaN or inf): val/target/nll is nan in epoch 0; lower lr=1e+30"
    assert [run.info.status for run in runs_in(tmp_path)] == ["FAILED"]


def test_any_argument_of_the_trainer_may_be_given(tmp_path):
    done = forked(*RUN, "tracking=none", "trainer.limit_train_batches=1", "trainer.max_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["epochs_run"] == 1


def test_paths_are_relative_to_where_the_command_was_given_even_with_chdir(tmp_path):
    first = forked(*RUN, "tracking=none", cwd=tmp_path)
    assert first.returncode == 0
    (folder,) = (tmp_path / "outputs/runs").iterdir()
    (folder / "best.ckpt").rename(tmp_path / "mine.ckpt")
    done = forked(*RUN, "init=mine.ckpt", "hydra.job.chdir=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "11 of 11 tensors" in done.stdout
    assert (tmp_path / "mlflow.db").exists()
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert names == {"outputs", "mine", "mlflow", "mlartifacts"}


def test_a_sweep_goes_on_after_a_failing_job_and_says_it_at_once(tmp_path):
    done = forked("-m", *RUN, "backbone.width=8,7,16", cwd=tmp_path)
    assert done.returncode == 2
    said = "width7 failed: backbone.width=7 backbone.size=16: width a multiple of 8"
    assert said in done.stdout + done.stderr
    ends = {run.info.run_name: run.info.status for run in runs_in(tmp_path)}
    assert ends == {
        "width": "FAILED",
        "width8": "FINISHED",
        "width16": "FINISHED",
        "width7": "FAILED",
    }
    assert len(list(tmp_path.glob("outputs/jobs/*/metrics.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "extra"),
    [
        (signal.SIGTERM, 143, ()),
        (signal.SIGINT, 130, ()),
        (signal.SIGTERM, 143, ("trainer=ddp",)),
        (signal.SIGTERM, 143, ("-m", "seed=0,1")),
    ],
)
def test_a_stopped_run_is_killed_in_mlflow_and_in_its_exit_code(tmp_path, signum, code, extra):
    flags, rest = extra[:1] if extra[:1] == ("-m",) else (), [option for option in extra if option != "-m"]

    def stop(pid: int) -> None:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in tmp_path.glob("outputs/**/history.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(pid, signum)

    done = forked(*flags, *QUICK, "init=random", "epochs=100000", *rest, cwd=tmp_path, meanwhile=stop)
    assert done.returncode == code, done.stderr
    assert f"stopped by {signum.name}" in done.stderr
    remedy = "sweep: interrupted: the same command runs the rest" if flags else f"interrupted: resume={tmp_path}"
    assert remedy in done.stdout
    assert [run.info.status for run in runs_in(tmp_path)] == ["KILLED"] * (2 if flags else 1)  # and the sweep's own
    assert not list(tmp_path.glob("outputs/**/metrics.json"))


def test_the_report_says_what_a_step_accumulates_and_what_is_not_tested(tmp_path):
    limits = ("trainer.accumulate_grad_batches=8", "trainer.limit_test_batches=1")
    done = forked(*RUN, "tracking=none", *limits, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a step accumulates 3 of them, at most 48 examples" in done.stdout
    assert "trainer.limit_test_batches=1: only a part of that split is used" in done.stdout
    assert "128 images" in done.stdout
