"""`tlexp-compare` on the sweep that other tests have run."""

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tlexp.commands.compare import main

pytestmark = pytest.mark.slow


@pytest.fixture
def compare(finished_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """Runs the command in this process, in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def compare(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["tlexp-compare", "--uri", f"sqlite:///{finished_sweep}/mlflow.db", *arguments])
        main()
        return str(capsys.readouterr().out)

    return compare


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as content:
        return list(csv.DictReader(content))


def test_it_is_a_command(finished_sweep, tmp_path):
    line = [sys.executable, "-m", "tlexp.commands.compare", "--uri", f"sqlite:///{finished_sweep}/mlflow.db"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.search(r"FINISHED +18 jobs  strategy-alpha-seed", done.stdout)


def test_a_sweep_is_compared_again_and_by_other_questions(finished_sweep, compare, tmp_path):
    compare("strategy-alpha-seed", "--out", "again")
    (folder,) = (finished_sweep / "outputs/sweeps").iterdir()
    assert rows(tmp_path / "again/comparison.csv") == rows(folder / "comparison.csv")
    other = ("--methods", "alpha", "--baseline", "alpha=0.5", "--metric", "test/target/nll", "--out", "other")
    assert "baseline, metric, methods: chosen post hoc" in compare(str(folder), *other)
    assert {row["alpha"] for row in rows(tmp_path / "other/comparison.csv")} == {"0", "0.5"}


def test_single_runs_are_compared_by_their_parameters(compare, tmp_path):
    which = ("--runs", "params.alpha = '0.5'", "--axes", "strategy,seed", "--out", "runs")
    compare(*which)
    assert [row["n"] for row in rows(tmp_path / "runs/comparison.csv")] == ["3"] * 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--markdown", "x", "--methods", "alpha"), "tlexp-compare: --methods and --baseline: not with --markdown"),
        (("--update", "nowhere.md"), "tlexp-compare: nowhere.md: no such page; give a Markdown file"),
        (("nothing",), "tlexp-compare: nothing: no such sweep; there are strategy-alpha-seed"),
        (("strategy-alpha-seed", "--methods", "lr"), "tlexp-compare: lr: not an axis of strategy-alpha-seed"),
        (("--experiment", "other"), "tlexp-compare: other: sqlite:"),
        (("--runs", "params.alpha = '7'"), "tlexp-compare: params.alpha = '7': no finished run among them"),
        (("--runs", "", "--axes", "lrr"), "tlexp-compare: lrr: not every run has such a parameter"),
    ],
)
def test_a_mistake_is_one_line(compare, arguments, line, capsys):
    with pytest.raises(SystemExit) as end:
        compare(*arguments)
    assert end.value.code == 2
    (only,) = capsys.readouterr().err.strip().splitlines()
    assert only.startswith(line)
