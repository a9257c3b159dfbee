"""The expected test of what validation selects among some trials, against enumeration."""

from itertools import combinations

import numpy as np
import pytest

from tlexp.comparison.analysis import compare_methods
from tlexp.comparison.budget import budget_curves, expected_of_selected
from tlexp.comparison.figures import figures
from tlexp.comparison.results import SweepResults

VALIDATION = (0.70, 0.82, 0.78, 0.91, 0.85, 0.60)
TEST = (0.68, 0.80, 0.81, 0.84, 0.88, 0.65)


@pytest.mark.parametrize(
    ("n", "validation", "test"),
    [(1, 0.776667, 0.776667), (2, 0.844667, 0.828000), (3, 0.872000, 0.844500), (6, 0.910000, 0.840000)],
)
def test_it_is_the_mean_over_all_searches_of_that_size(n, validation, test):
    assert expected_of_selected(VALIDATION, VALIDATION, n) == pytest.approx(validation, abs=1e-6)
    assert expected_of_selected(VALIDATION, TEST, n) == pytest.approx(test, abs=1e-6)
    every = [TEST[max(chosen, key=VALIDATION.__getitem__)] for chosen in combinations(range(6), n)]
    assert expected_of_selected(VALIDATION, TEST, n) == pytest.approx(np.mean(every))


def searched(**manifest):
    rng = np.random.default_rng(0)
    points, metrics = [], {}
    for trial in range(6):
        for seed in range(4):
            key = f"{trial}-{seed}"
            points.append({"values": {"strategy": "finetune", "lr": str(trial), "seed": str(seed)}, "key": key})
            score, noise = 1 - VALIDATION[trial], rng.normal(0, 0.002)
            metrics[key] = {"score": score, "test/target/accuracy": TEST[trial] + noise, "fit_seconds": 2.0}
    made = {"name": "made", "axes": ["strategy", "lr", "seed"], "methods": ["strategy"], "baseline": None}
    made |= {"metric": "test/target/accuracy", "monitor": "val/target/nll", "points": points, "searched": True}
    return SweepResults({**made, **manifest}, metrics)


def test_a_search_has_a_curve_with_a_band():
    results = searched()
    (curve,) = budget_curves(results)
    assert curve.expected == pytest.approx([expected_of_selected(VALIDATION, TEST, n) for n in range(1, 7)], abs=0.003)
    assert (curve.low <= curve.expected).all()
    assert (curve.expected <= curve.high).all()
    assert curve.seconds == 8
    assert "budget" in figures(results, compare_methods(results), [])
    assert budget_curves(searched(searched=False)) == []
