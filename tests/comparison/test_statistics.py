import math
import warnings

import numpy as np
import pytest
from scipy import stats

from tlexp.comparison.designs import estimate
from tlexp.comparison.statistics import Interval, holm, paired_difference, rank_methods, wilcoxon

A = [0.812, 0.805, 0.821, 0.799, 0.815, 0.808, 0.817, 0.803, 0.811, 0.809]
B = [0.801, 0.803, 0.806, 0.797, 0.799, 0.806, 0.804, 0.800, 0.802, 0.805]


def test_the_reference_vector():
    """Ten pairs whose statistics were computed once by other means than ours."""
    result = paired_difference(A, B)
    assert result.interval.mean == pytest.approx(0.0077, abs=1e-6)
    assert (result.interval.low, result.interval.high) == pytest.approx((0.003597, 0.011803), abs=1e-6)
    assert result.p == pytest.approx(0.002158, abs=1e-6)
    assert result.d_z == pytest.approx(1.342433, abs=1e-6)
    assert sum(value > 0 for value in result.values) == 10
    assert result.interval.n == 10


def test_the_half_width_is_a_known_multiple_of_the_deviation():
    """Student's quantile over the root of n: 1.242 standard deviations for five seeds."""
    interval = paired_difference([-2.0, -1.0, 0.0, 1.0, 2.0], [0.0] * 5).interval
    assert interval.high == pytest.approx(1.2416 * math.sqrt(2.5), abs=1e-3)


def test_equal_runs_have_no_p_value():
    result = paired_difference(A, A)
    assert (result.interval.mean, result.interval.low, result.interval.high) == (0, 0, 0)
    assert math.isnan(result.p)
    assert math.isnan(result.d_z)


def test_one_seed_has_no_interval():
    assert math.isnan(paired_difference([0.5], [0.0]).interval.low)


def test_intervals_of_shares_stay_within_them():
    found = estimate([0.99, 1.0, 0.97], [range(3)])
    assert found.mean + found.half_width() > 1
    assert Interval.of(found, 0, 1).high == 1
    assert Interval.of(found, 0, 1).low == found.mean - found.half_width()


def test_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="run both on the same seeds"):
        paired_difference(A, B[:-1])


SCORES = np.array([[0.81, 0.79, 0.83], [0.72, 0.70, 0.71], [0.90, 0.88, 0.91], [0.65, 0.66, 0.69], [0.78, 0.75, 0.80]])


def test_a_family_of_p_values():
    assert holm([0.001, 0.04, 0.03, 0.005]) == pytest.approx([0.004, 0.06, 0.06, 0.015])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values lie in"):
        holm([0.1, math.nan])


def test_signed_ranks_of_the_reference_vector():
    """All ten differences are positive: 2 / 2^10."""
    differences = np.subtract(A, B)
    statistic, p = wilcoxon(differences)
    assert statistic == 0
    assert p == pytest.approx(2 / 1024)
    assert wilcoxon(-differences) == (statistic, p)


def test_signed_ranks_with_ties_are_those_of_all_signs():
    differences = np.array([1.0, 1.0, -1.0, 2.0, 2.0, -3.0, 4.0])
    statistic, p = wilcoxon([*differences, 0.0])
    ranks = stats.rankdata(np.abs(differences))
    signs = np.array(np.meshgrid(*[[0, 1]] * 7)).reshape(7, -1)
    sums = ranks @ signs
    assert statistic == ranks[differences < 0].sum()
    assert p == pytest.approx(min(1, 2 * (sums <= statistic).mean()))


def test_signed_ranks_of_more_pairs_with_ties_are_sampled_reproducibly():
    differences = np.random.default_rng(0).integers(-4, 7, 30).astype(float)
    assert wilcoxon(differences) == wilcoxon(differences)
    nonzero = differences[differences != 0]
    ranks = stats.rankdata(np.abs(nonzero))
    signs = np.random.default_rng(1).integers(0, 2, (100_000, len(nonzero)))
    smaller = np.minimum(signs @ ranks, ranks.sum() - signs @ ranks)
    statistic, p = wilcoxon(differences)
    assert p == pytest.approx((smaller <= statistic).mean(), abs=0.01)


def test_accuracies_in_single_precision_are_as_good_as_counts():
    a, b = (np.float32(np.array(counts) / 100).tolist() for counts in ((91, 93, 95), (90, 92, 94)))
    constant = paired_difference(a, b)
    assert constant.interval.mean == pytest.approx(0.01, abs=1e-7)
    assert math.isnan(constant.p)
    assert math.isnan(constant.d_z)
    rng = np.random.default_rng(0)
    for n_test in (50, 300, 10_000):
        for _ in range(100):
            counts = rng.binomial(n_test, 0.9, (2, 8))
            measured = np.float32(counts / np.float32(n_test)).astype(float)
            if (differences := counts[0] - counts[1]).any():
                found = paired_difference(*measured).values
                assert wilcoxon(found)[1] == wilcoxon(differences.astype(float))[1]


def test_equal_means_have_equal_ranks():
    single = np.float32([[0.9, 0.7], [0.8, 0.8], [0.1, 0.1]]).astype(float)
    rows = [single.mean(1).tolist()] * 5
    assert rows[0][0] != rows[0][1], "by a rounding error"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert rank_methods(np.array(rows)).mean_ranks.tolist() == [1.5, 1.5, 3]


def test_differences_that_are_rounding_errors_are_zero():
    with pytest.raises(ValueError, match="all pairs are equal"):
        wilcoxon([0.0, 1e-15, -1e-16])


def test_methods_over_data_sets():
    ranking = rank_methods(SCORES)
    assert ranking.mean_ranks.tolist() == pytest.approx([2, 2.8, 1.2])
    assert (ranking.statistic, ranking.p) == pytest.approx((6.4, 0.040762), abs=1e-6)
    assert ranking.critical_difference == pytest.approx(1.482, abs=1e-3)
    with pytest.raises(ValueError, match="4 data sets and 3 methods: a ranking needs at least 5 and 3"):
        rank_methods(SCORES[:4])


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (4, 2.569), (6, 2.850), (10, 3.164)])
def test_critical_differences_are_the_published_quantiles(methods, q):
    scores = np.random.default_rng(0).normal(size=(6, methods))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranking = rank_methods(scores)
    assert ranking.critical_difference == pytest.approx(q * math.sqrt(methods * (methods + 1) / 36), abs=1.5e-3)
