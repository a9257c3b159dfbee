"""What `import tlexp` offers, beside what the commands do."""

import io
import logging
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from hydra.core.config_store import ConfigStore
from mlflow import MlflowClient

import tlexp
from tests.helpers import CACHE, QUICK, ROOT, forked
from tlexp.errors import JobsFailedError, UsageError

SWEEP = ROOT / "docs/results/sweep"
RUN = [*QUICK, "init=random", "epochs=1", f"cache={CACHE}"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_importing_it_imports_nothing_else():
    code = "import tlexp, sys; print(sorted({'torch', 'hydra', 'pandas', 'mlflow'} & set(sys.modules)), dir(tlexp))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [
        "JobsFailedError",
        "TrainingDivergedError",
        "UsageError",
        "__version__",
        "compare",
        "compose",
        "run",
        "sweep",
    ]
    assert done.stdout.strip() == f"[] {names}"
    with pytest.raises(AttributeError, match="module 'tlexp' has no attribute 'tune'"):
        tlexp.tune  # noqa: B018


def test_the_citation_has_the_version():
    assert f"\nversion: {tlexp.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_run_shows_its_result_and_is_not_repeated(tmp_path):
    config = tlexp.compose([*RUN, "alpha=0.5", "tracking=none"])
    assert config.alpha == 0.5
    result = tlexp.run(config)
    assert result.folder.parent == tmp_path / "outputs/runs"
    table = result.table()
    assert list(table.columns) == ["val", "test"]
    assert table.loc["target/accuracy", "test"] == result.metrics["test/target/accuracy"]
    assert result.score == table.loc["target/nll", "val"]
    assert result.history["val/target/nll"].tolist() == [result.score]
    assert result.checkpoint.is_file()
    assert set(result.figures()) == {"confusion_matrix", "learning_curves"}
    html = result._repr_html_()
    assert html.count("<svg") == 2
    assert f"{result.score:.4f}" in html
    written = (result.folder / "metrics.json").stat().st_mtime_ns
    assert tlexp.run(config, result.folder).metrics == result.metrics
    assert (result.folder / "metrics.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_sweep_is_that_of_the_command(tmp_path, capfd):
    """Its jobs are complete for the command, and what it returns is what the command's page shows."""
    grid = [*RUN, "strategy=scratch,finetune", "alpha=0,0.5", "seed=0,1"]
    results = tlexp.sweep(grid)
    assert capfd.readouterr().out.count("target test accuracy") == 8, "a line for each job"
    assert "8 done, 0 to run" in forked("-m", *grid, cwd=tmp_path).stdout
    (folder,) = (tmp_path / "outputs/sweeps").iterdir()
    assert len(results.frame) == 8
    assert set(results.table()["method"].str.removesuffix(" *")) == {"scratch", "finetune"}
    assert list(results.source_effects()["alpha"].str.removesuffix(" *")) == ["0", "0.5"] * 2
    html = results._repr_html_()
    assert html.count("<svg") == len(results.figures()) == 4
    page = (folder / "comparison.html").read_text()
    assert all(cell in page for cell in results.table()["test"])
    pd.testing.assert_frame_equal(tlexp.compare(folder).table(), results.table())
    other = tlexp.compare(folder, methods=["alpha"], baseline="alpha=0", metric="test/target/nll")
    assert set(other.table()["method"].str.removesuffix(" *")) == {"alpha=0", "alpha=0.5"}
    assert any("baseline, metric, methods: chosen post hoc" in note for note in other.notes())


def test_a_sweep_with_a_failing_job_finishes_the_others(tmp_path):
    with pytest.raises(JobsFailedError, match="1 of 2 jobs failed, first width7"):
        tlexp.sweep([*RUN, "tracking=none", "backbone.width=8,7"])
    assert len(list(tmp_path.glob("outputs/jobs/*/metrics.json"))) == 1


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: tlexp.compose(["alhpa=1"]),
            "Could not override 'alhpa': no such option; did you mean alpha? --help lists them",
        ),
        (lambda: tlexp.compose(["alpha=-1"]), "alpha=-1.0: must be finite and >= 0, or inf for the source alone"),
        (lambda: tlexp.compose("alpha=1"), "alpha=1: give a list of overrides, such as ['alpha=0.5']"),
        (lambda: tlexp.compose(["strategy=finetun"]), "In 'config': Could not find 'strategy/finetun'"),
        (lambda: tlexp.sweep(["strategy=finetun", "alpha=0,1"]), "In 'config': Could not find 'strategy/finetun'"),
        (lambda: tlexp.compose(config_dir="nowhere"), "nowhere: no such folder; give one with options of your own"),
        (lambda: tlexp.run(tlexp.compose(["resume=x"])), "resume=x: give that folder to tlexp.run"),
        (lambda: tlexp.compare(SWEEP, metric="fit_seconds"), "metric=fit_seconds: choose one of test/target/accuracy"),
        (lambda: tlexp.compare(SWEEP, methods="alpha"), "methods=alpha: give a list of axes, such as ['alpha']"),
        (lambda: tlexp.compare(SWEEP, baseline="alpha=0"), "alpha=0: alpha is not compared but selected by validation"),
        (lambda: tlexp.compare("nowhere"), "nowhere: has no sweep.json; give the folder of a finished comparison"),
        (tlexp.compare, "compare: give the folder of a sweep, such as outputs/sweeps/NAME"),
    ],
)
def test_a_mistake_is_an_exception_with_the_same_line(call, line):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_the_sweeps_own_methods_are_no_other_question():
    assert not any("post hoc" in note for note in tlexp.compare(SWEEP, methods=["strategy"]).notes())


def test_a_program_keeps_its_own_hydra_and_logging(tmp_path):
    """Also where the sweep fails."""
    store, stream = ConfigStore.instance(), io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    handler = logging.StreamHandler(stream)
    try:
        root.handlers[:], root.level = [handler], logging.INFO
        with pytest.raises(JobsFailedError):
            tlexp.sweep([*RUN, "tracking=none", "backbone.width=7,9"])
        logging.getLogger("mine").info("still here")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert "still here" in stream.getvalue()
    assert ConfigStore.instance() is store


def test_an_interrupted_run_ends_in_order(tmp_path):
    """SIGINT as a notebook's stop button sends it."""

    def run() -> None:
        config = tlexp.compose([*RUN, "epochs=100000", "checkpoint_minutes=0"])
        try:
            tlexp.run(config, "mine")
        except KeyboardInterrupt as stop:
            print(f"stopped: {stop}")

    def stop(pid: int) -> None:
        while not (tmp_path / "mine/last.ckpt").exists():
            time.sleep(0.05)
        os.kill(pid, signal.SIGINT)

    done = forked(cwd=tmp_path, main=run, meanwhile=stop)
    assert done.returncode == 0, done.stderr
    assert "stopped: stopped by SIGINT; finished work is kept" in done.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("tlexp").experiment_id])
    assert tracked.info.status == "KILLED"


@pytest.mark.parametrize("name", ["mine", "it's mine"])
def test_options_of_ones_own_are_found(tmp_path, name):
    (tmp_path / name / "strategy").mkdir(parents=True)
    option = "# @package _global_\ndefaults: [finetune]\nstrategy: {name: gentle, backbone_lr_mult: 0.01}\n"
    (tmp_path / name / "strategy/gentle.yaml").write_text(option)
    assert tlexp.compose(["strategy=gentle"], config_dir=name).strategy["backbone_lr_mult"] == 0.01
    results = tlexp.sweep([*RUN, "tracking=none", "strategy=gentle", "alpha=0,0.5"], config_dir=name)
    assert results.unfinished == 0
    assert len(list(tmp_path.glob("outputs/jobs/gentle-*"))) == 2
