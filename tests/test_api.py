"""What `import tlexp` offers, beside what the commands do."""

import subprocess
import sys

import pandas as pd
import pytest

import tlexp
from tests.helpers import CACHE, QUICK, ROOT, forked
from tlexp.errors import JobsFailedError, UsageError

RUN = [*QUICK, "init=random", "epochs=1", f"cache={CACHE}"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_importing_it_imports_nothing_else():
    code = "import tlexp, sys; print(sorted({'torch', 'hydra', 'pandas', 'mlflow'} & set(sys.modules)), dir(tlexp))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['__version__', 'compare', 'compose', 'run', 'sweep']"
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
    assert tlexp.run(config, result.folder) == result
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
    with pytest.raises(JobsFailedError, match="1 of 2 jobs failed, first batch_size999"):
        tlexp.sweep([*RUN, "tracking=none", "batch_size=16,999"])
    assert len(list(tmp_path.glob("outputs/jobs/*/metrics.json"))) == 1


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: tlexp.compose(["alhpa=1"]), "Could not override 'alhpa': no such option; --help lists them"),
        (lambda: tlexp.compose(["alpha=-1"]), "alpha=-1.0: must be finite and >= 0, or inf for the source alone"),
        (lambda: tlexp.compose("alpha=1"), "alpha=1: give a list of overrides, such as ['alpha=0.5']"),
        (lambda: tlexp.compose(["strategy=finetun"]), "In 'config': Could not find 'strategy/finetun'"),
        (lambda: tlexp.sweep(["strategy=finetun", "alpha=0,1"]), "In 'config': Could not find 'strategy/finetun'"),
        (lambda: tlexp.compare("nowhere"), "nowhere: has no sweep.json; give the folder of a finished comparison"),
        (tlexp.compare, "compare: give the folder of a sweep, such as outputs/sweeps/NAME"),
    ],
)
def test_a_mistake_is_an_exception_with_the_same_line(call, line):
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_options_of_ones_own_are_found(tmp_path):
    (tmp_path / "mine/strategy").mkdir(parents=True)
    option = "# @package _global_\ndefaults: [finetune]\nstrategy: {name: gentle, backbone_lr_mult: 0.01}\n"
    (tmp_path / "mine/strategy/gentle.yaml").write_text(option)
    assert tlexp.compose(["strategy=gentle"], config_dir="mine").strategy["backbone_lr_mult"] == 0.01
    results = tlexp.sweep([*RUN, "tracking=none", "strategy=gentle", "alpha=0,0.5"], config_dir="mine")
    assert results.unfinished == 0
    assert len(list(tmp_path.glob("outputs/jobs/gentle-*"))) == 2
