"""The time that is left, where jobs of different kinds take different times."""

import math
import time

import pytest

from tlexp.sweeps.time_left import TimeLeft


def point(strategy, alpha, seed):
    return {"strategy": strategy, "alpha": alpha, "seed": seed}


def test_jobs_take_as_long_as_those_that_are_most_alike():
    left = TimeLeft()
    assert math.isnan(left.seconds([point("probe", "0", "0")]))
    assert left.in_words([point("probe", "0", "0")]) == ""
    for seed in "01":
        left.add(point("probe", "0", seed), 10)
        left.add(point("full", "0", seed), 100)
    assert left.seconds([point("probe", "0", "2"), point("full", "0", "2")]) == 110
    assert left.seconds([point("probe", "1", "0")]) == 10, "by its strategy"
    assert left.seconds([point("other", "0", "0")]) == pytest.approx(55), "by its alpha, which all have"
    assert left.in_words([point("full", "0", "3")]) == " (about 2 min left)"
    assert left.in_words([point("probe", "0", "3")]) == " (less than a minute left)"


def test_an_estimate_in_a_sweep_of_thousands_takes_no_time():
    left = TimeLeft()
    jobs = [point(f"s{index}", str(index % 7), "0") for index in range(4000)]
    for job in jobs[:2000]:
        left.add(job, 3.0)
    before = time.process_time()
    assert left.seconds(jobs[2000:]) == pytest.approx(2000 * 3.0)
    assert time.process_time() - before < 5  # 0.01 s


def test_the_rest_of_a_sweep_does_not_jump():
    """Ten quick jobs, then ten slow ones: the mean of all so far said a minute at the tenth, and was ten at the end."""
    quick = [point("probe", "0", str(seed)) for seed in range(10)]
    slow = [point("full", "0", str(seed)) for seed in range(10)]
    left = TimeLeft()
    for job in quick:
        left.add(job, 6)
    left.add(slow[0], 120)
    assert left.seconds(slow[1:]) == 9 * 120
