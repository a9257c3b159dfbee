"""Confirming a selection: the same configurations on draws and seeds that the selection has not seen."""

import json

import pytest

from tests.helpers import QUICK, forked
from tlexp import run_folder
from tlexp.comparison.results import SweepResults, read_comparison

RUN = (*QUICK, "init=random", "epochs=2", "tracking=none", "predictions=false", "sweep.name=made")


BASELINE = 'sweep.baseline="lr=0.01"'  # which a search tunes


@pytest.mark.parametrize("search", [(), ("sweep.trials=3", "sweep.methods=[strategy]", BASELINE)])
def test_what_is_selected_runs_again_on_fresh_draws_and_seeds(tmp_path, search):
    axes = ("strategy=linear_probe,scratch", "lr=0.001,0.01", "seed=0,1")
    done = forked("-m", *RUN, *axes, *search, "sweep.confirm=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "confirming the selected configurations on 3 fresh label draws and seeds" in done.stdout
    (folder,) = (tmp_path / "outputs/sweeps").iterdir()
    results = SweepResults(*read_comparison(folder))
    selected = {method: results.select(configs) for (_, method), configs in results.by_method.items()}
    manifest, metrics = read_comparison(folder / "confirmed")
    confirmed = SweepResults(manifest, metrics)
    assert {config.method: config.tuned for config in confirmed.configs} == {
        method: config.tuned for method, config in selected.items()
    }
    for config in confirmed.configs:
        assert len(config.frame) == config.draws == config.interval.n == 3
        assert list(config.frame.index) == [("1", "2"), ("2", "3"), ("3", "4")]
    jobs = [json.loads(file.read_text()) for file in (tmp_path / "outputs/jobs").glob(f"*/{run_folder.METRICS}")]
    assert len(jobs) == len({job["config_hash"] for job in jobs})
    assert (folder / "confirmed/comparison.html").exists()
    again = forked("-m", *RUN, *axes, *search, "sweep.confirm=3", cwd=tmp_path)
    assert again.returncode == 0
    assert "0 to run" in again.stdout.split("confirming")[1]
