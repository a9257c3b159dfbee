"""The demonstrations run, and show what theory or their tables say."""

import csv
import io
import subprocess
import sys

import pytest

from tests.helpers import QUICK, ROOT, command


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


@pytest.mark.slow
def test_other_classes_share_no_digit_with_the_source(run_job):
    few = ("experiment=digits_negative_transfer", "epochs=2", "trainer.check_val_every_n_epoch=1")
    data = run_job(*few)["data"]
    assert (data["target"]["classes"], data["target"]["train"]) == (["5", "6", "7", "8", "9"], 10)


@pytest.mark.slow
def test_the_digits_are_swept_collected_and_shown(tmp_path, store):
    few = ("epochs=10", "trainer.check_val_every_n_epoch=1", "data.draw=0,1", "tracking=none", f"store={store}", *QUICK)
    sweep = ("-m", "experiment=digits_l2_sp", *few)
    assert command(*sweep, "lr=0.05,0.1", "hydra.sweep.dir=a", cwd=tmp_path).returncode == 0
    assert command(*sweep, "terms=[l2_sp]", "hydra.sweep.dir=b", cwd=tmp_path).returncode == 0
    content = script("digits.py", "collect", "a", "b", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(content)))
    assert len(rows) == 6
    assert all(float(row["shifted_accuracy"]) > 0.1 for row in rows)
    (tmp_path / "both.csv").write_text(content)
    lines = script("digits.py", "table", "both.csv", cwd=tmp_path).splitlines()
    assert len(lines) == 4
    validated = {
        rate: sum(float(r["val_accuracy"]) for r in rows if r["lr"] == rate and not r["strength"])
        for rate in ("0.05", "0.1")
    }
    chosen = max(validated, key=lambda rate: validated[rate])
    assert lines[2].startswith("| 2 | fine-tuning |")
    assert lines[2].endswith(f"| lr={chosen} |")
    assert "| 2 | fine-tuning with L2-SP |" in lines[3]
    assert "strength=0.1" in lines[3]
