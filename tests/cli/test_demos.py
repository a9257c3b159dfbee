"""The demonstrations run, and show what theory or their tables say."""

import csv
import io
import subprocess
import sys

import pytest

from tests.helpers import QUICK, ROOT, forked
from tlexp.comparison.analysis import compare_methods
from tlexp.comparison.results import SweepResults, read_comparison


def script(name, *arguments, cwd=ROOT):
    line = [sys.executable, str(ROOT / "scripts/demos" / name), *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_fine_tuning_after_a_probe_errs_less_outside_and_than_the_probe_inside():
    rows = list(csv.DictReader(io.StringIO(script("lp_ft_mechanism.py", "--seeds", "1"))))
    inside = {(float(row["eps"]), row["strategy"]): float(row["id"]) for row in rows}
    outside = {(float(row["eps"]), row["strategy"]): float(row["ood"]) for row in rows}
    for noise in (0.0, 0.02, 0.1):
        assert inside[noise, "finetune"] < 1e-12, "the examples are fitted"
        assert outside[noise, "lp_ft"] < outside[noise, "finetune"]
        if noise:
            assert inside[noise, "lp_ft"] < 1e-12 < inside[noise, "linear_probe"]
    assert outside[0.0, "lp_ft"] < 1e-12, "with the true features a probe is all it takes"


def test_the_intervals_used_cover_the_truth_and_naive_ones_do_not():
    simulated = list(csv.DictReader(io.StringIO(script("coverage.py", "--simulations", "300"))))
    shown = list(csv.DictReader(io.StringIO((ROOT / "docs/results/coverage.csv").read_text())))
    assert [row["setting"] for row in simulated] == [row["setting"] for row in shown]
    for few, many in zip(simulated, shown, strict=True):
        assert float(many["used"]) >= 0.93
        for name in ("naive", "used"):
            assert abs(float(few[name]) - float(many[name])) < 0.1


@pytest.mark.slow
def test_other_classes_share_no_digit_with_the_source(run_job):
    few = ("experiment=digits_negative_transfer", "epochs=2", "trainer.check_val_every_n_epoch=1")
    data = run_job(*few)["data"]
    assert (data["target"]["classes"], data["target"]["train"]) == (["5", "6", "7", "8", "9"], 10)


@pytest.mark.slow
def test_the_digits_with_a_pull_are_swept_and_compared(tmp_path, store):
    """Rates and strengths are selected by validation, the shifted test is measured too."""
    few = ("epochs=10", "trainer.check_val_every_n_epoch=1", "data.draw=0,1", "tracking=none", f"store={store}", *QUICK)
    swept = forked("-m", "experiment=digits_l2_sp", *few, "lr=0.05,0.1", "terms=[],[l2_sp]", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    (folder,) = (tmp_path / "outputs/sweeps").iterdir()
    manifest, metrics = read_comparison(folder)
    results = SweepResults({**manifest, "metric": "test/shifted/accuracy"}, metrics)
    rows = {row.method[0][1]: row for row in compare_methods(results)}
    assert set(rows) == {"[]", "[l2_sp]"}
    assert len(metrics) == 8
    validated = results.frame[results.frame.terms == "[]"].groupby("lr")["score"].mean()
    assert rows["[]"].config.tuned == (("lr", validated.idxmin()),)
    assert rows["[]"].test.mean > 0.2, "a tenth is chance"
