"""Intervals over runs that share something: reference values, and how often they cover the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from tlexp.comparison.designs import Estimate, estimate, one_way, overlap_of_draws, two_way

TABLE = np.array([[0.010, 0.012, 0.008], [0.030, 0.026, 0.031], [-0.004, 0.001, -0.002], [0.015, 0.019, 0.014]])
A = [0.812, 0.805, 0.821, 0.799, 0.815, 0.808, 0.817, 0.803, 0.811, 0.809]
B = [0.801, 0.803, 0.806, 0.797, 0.799, 0.806, 0.804, 0.800, 0.802, 0.805]
DIFFERENCES = np.subtract(A, B)


def bounds(found: Estimate) -> list[float]:
    return [found.mean - found.half_width(), found.mean + found.half_width()]


def test_crossed_draws_and_seeds():
    found = two_way(TABLE)
    assert found.mean == pytest.approx(0.013333, abs=1e-6)
    assert found.variance == pytest.approx(4.072e-5, rel=1e-3)
    assert found.df == pytest.approx(2.966753, abs=1e-6)
    assert (found.t, found.p) == pytest.approx((2.089407, 0.128866), abs=1e-6)
    assert bounds(found) == pytest.approx([-0.007104, 0.033771], abs=1e-6)
    ms_draw, ms_rest = 4.887e-4, 6.750e-6
    assert found.components["draw"] == pytest.approx(math.sqrt((ms_draw - ms_rest) / 3), rel=1e-3)
    assert found.components["seed"] == 0, "its mean square is below that of the rest"
    assert found.components["rest"] == pytest.approx(math.sqrt(ms_rest), rel=1e-3)
    naive = one_way(TABLE.ravel())
    assert (naive.t, naive.p) == pytest.approx((3.9361, 0.00233), rel=2e-3)


def test_what_varies_decides_the_design():
    draws, seeds = np.indices(TABLE.shape).reshape(2, -1).tolist()
    values = TABLE.ravel().tolist()
    crossed = estimate(values, [draws, seeds])
    assert crossed == two_way(TABLE)
    by_draw = one_way(TABLE.mean(1))
    linked = estimate(TABLE.mean(1).tolist(), [[0, 1, 2, 3], [5, 6, 7, 8]])
    assert bounds(linked) == pytest.approx(bounds(by_draw)), "each draw with a seed of its own"
    one_draw = estimate(values[:3], [[0, 0, 0], [1, 2, 3]], overlap=0.5)
    assert bounds(one_draw) == pytest.approx(bounds(one_way(TABLE[0]))), "seeds do not overlap"
    missing = estimate(values[:-1], [draws[:-1], seeds[:-1]])
    assert missing.n == 4
    assert missing.mean == pytest.approx(np.mean([*TABLE[:3].mean(1), TABLE[3, :2].mean()]))
    networks = [index % 2 for index in range(24)]
    doubled = np.repeat(values, 2)
    three = estimate(doubled.tolist(), [np.repeat(draws, 2).tolist(), networks, np.repeat(seeds, 2).tolist()])
    assert three.n == 4
    assert math.isnan(estimate([0.3], [["0"], ["1"]]).half_width())


def test_a_joint_mean_square_next_to_zero_has_degrees_of_freedom_left():
    """Where draws and seeds matter less than the rest, by chance: an interval is wide and not endless."""
    rng = np.random.default_rng(0)
    found = [two_way(rng.normal(size=(5, 5))) for _ in range(2000)]
    assert min(one.df for one in found) >= 4
    assert max(one.half_width() for one in found) < 3


def test_a_missing_run_does_not_make_an_interval_shorter():
    """Seeds matter, and one of their runs is lost."""
    rng = np.random.default_rng(0)
    table = rng.normal(0, 0.001, (5, 1)) + rng.normal(0, 0.02, (1, 5)) + rng.normal(0, 0.001, (5, 5))
    draws, seeds = np.indices(table.shape).reshape(2, -1).tolist()
    whole = estimate(table.ravel().tolist(), [draws, seeds])
    without = estimate(table.ravel().tolist()[:-1], [draws[:-1], seeds[:-1]])
    assert without.half_width() == pytest.approx(whole.half_width(), rel=0.25)
    networks = [0] * 25
    three = [draws * 2, [*networks, *(1 for _ in networks)], seeds * 2]
    assert estimate([*table.ravel(), *table.ravel()], three).half_width() == pytest.approx(whole.half_width(), rel=0.25)


@pytest.mark.parametrize(
    ("rho", "t", "p", "low", "high"),
    [
        (0, 4.245147, 0.002158, 0.003597, 0.011803),
        (5 / 108, 3.483098, 0.006905, 0.002699, 0.012701),
        (0.2, 2.269127, 0.049434, 0.000024, 0.015376),
        (0.5, 1.279960, 0.232565, None, None),
    ],
)
def test_draws_from_a_pool_that_is_not_infinite(rho, t, p, low, high):
    found = one_way(DIFFERENCES, rho / (1 - rho))
    assert (found.t, found.p) == pytest.approx((t, p), abs=1e-6)
    if low is not None:
        assert bounds(found) == pytest.approx([low, high], abs=1e-6)


@pytest.mark.parametrize(
    ("rope", "rho", "expected"),
    [
        (0.01, 0, (2e-6, 0.881695, 0.118303)),
        (0.01, 0.2, (0.000276, 0.742249, 0.257475)),
        (0.005, 0, (3.2e-5, 0.085360, 0.914609)),
    ],
)
def test_practical_equivalence(rope, rho, expected):
    found = one_way(DIFFERENCES, rho / (1 - rho))
    assert found.probabilities(rope) == pytest.approx(expected, abs=1e-6)
    if rho == 0:
        assert found.equivalence_p(rope) == pytest.approx(expected[2], abs=1e-6)


def test_draws_that_take_the_whole_pool_ask_another_question():
    assert overlap_of_draws(50, 108) == pytest.approx(50 / 58)
    assert overlap_of_draws(108, 108) == 0


def test_test_examples_are_a_sample_as_runs_are():
    """Resampling both sides of a crossed table counts the rest more than once (Owen 2007); mean squares do not."""
    rng = np.random.default_rng(0)
    runs, examples, sd_run, sd_example, sd_rest = 5, 200, 0.005, 0.1, 0.05
    found, means = [], []
    for _ in range(400):
        of_run, of_example = rng.normal(0, sd_run, (runs, 1)), rng.normal(0, sd_example, (1, examples))
        table = of_run + of_example + rng.normal(0, sd_rest, (runs, examples))
        found.append(two_way(table).variance)
        means.append(table.mean())
    truth = sd_run**2 / runs + sd_example**2 / examples + sd_rest**2 / (runs * examples)
    assert np.var(means) == pytest.approx(truth, rel=0.2)
    assert np.mean(found) == pytest.approx(truth, rel=0.1)


# How often an interval covers the truth --------------------------------------------------------------------------

SIMULATIONS = 2000


def coverage(intervals: list[Estimate], truth: float = 0.0) -> float:
    return float(np.mean([abs(found.mean - truth) <= found.half_width() for found in intervals]))


@pytest.mark.parametrize(
    ("sds", "naive", "least", "most"),
    [
        ((1, 0.1, 0.3), 0.60, 0.93, 0.97),
        ((1, 0.5, 0.5), 0.62, 0.93, 0.98),
        ((0.3, 0.3, 1), 0.88, 0.97, 1.0),  # conservative where the rest dominates
        ((0, 0, 1), 0.945, 0.97, 1.0),
    ],
)
def test_crossed_repetitions_cover_the_truth(sds, naive, least, most):
    rng = np.random.default_rng(0)
    of_draw, of_seed, rest = sds
    tables = [
        rng.normal(0, of_draw, (5, 1)) + rng.normal(0, of_seed, (1, 5)) + rng.normal(0, rest, (5, 5))
        for _ in range(SIMULATIONS)
    ]
    assert coverage([one_way(table.ravel()) for table in tables]) == pytest.approx(naive, abs=0.03)
    assert least <= coverage([two_way(table) for table in tables]) <= most


@pytest.mark.parametrize(
    ("shots", "draws", "naive"), [(50, 5, 0.70), (50, 10, 0.51), (5, 5, 0.94), (5, 10, 0.90), (20, 10, 0.75)]
)
def test_draws_from_a_small_pool_cover_the_truth_of_labels_like_these(shots, draws, naive):
    """The mean of `shots` of a pool of 108, drawn anew, where the pool itself is a sample."""
    rng = np.random.default_rng(0)
    plain, corrected = [], []
    for _ in range(SIMULATIONS):
        pool = rng.normal(size=108)
        means = np.array([rng.permutation(pool)[:shots].mean() for _ in range(draws)])
        plain.append(one_way(means))
        corrected.append(one_way(means, (shots / 108) / (1 - shots / 108)))
    assert coverage(plain) == pytest.approx(naive, abs=0.03)
    assert 0.93 <= coverage(corrected) <= 0.97


def test_splits_of_one_data_set_cover_the_truth():
    """A mean over test examples, of a data set that is itself a sample, split anew each time."""
    rng = np.random.default_rng(0)
    n, n_test, splits = 200, 80, 10
    plain, corrected = [], []
    for _ in range(SIMULATIONS):
        data = rng.normal(size=n)
        orders = [rng.permutation(n) for _ in range(splits)]
        values = np.array([data[order[:n_test]].mean() for order in orders])
        plain.append(one_way(values))
        corrected.append(one_way(values, n_test / (n - n_test)))
    assert coverage(plain) < 0.75
    assert 0.93 <= coverage(corrected) <= 0.97


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_a_plain_interval_is_scipys(level):
    found = one_way(DIFFERENCES)
    low, high = stats.t.interval(level, 9, DIFFERENCES.mean(), stats.sem(DIFFERENCES))
    half = found.half_width(level)
    assert (found.mean - half, found.mean + half) == pytest.approx((low, high))
