import math

import pytest

from tlexp.compare.paired import mean_interval, paired

A = [0.812, 0.805, 0.821, 0.799, 0.815, 0.808, 0.817, 0.803, 0.811, 0.809]
B = [0.801, 0.803, 0.806, 0.797, 0.799, 0.806, 0.804, 0.800, 0.802, 0.805]


def test_the_reference_vector():
    """Ten pairs whose statistics were computed once by other means than ours."""
    result = paired(A, B)
    assert result.difference.mean == pytest.approx(0.0077, abs=1e-6)
    assert (result.difference.low, result.difference.high) == pytest.approx((0.003597, 0.011803), abs=1e-6)
    assert result.p == pytest.approx(0.002158, abs=1e-6)
    assert result.d_z == pytest.approx(1.342433, abs=1e-6)
    assert result.wins == 10
    assert result.difference.n == 10


def test_the_half_width_is_a_known_multiple_of_the_deviation():
    """Student's quantile over the root of n: 1.242 standard deviations for five seeds."""
    interval = mean_interval([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert interval.high == pytest.approx(1.2416 * math.sqrt(2.5), abs=1e-3)


def test_equal_runs_have_no_p_value():
    result = paired(A, A)
    assert (result.difference.mean, result.difference.low, result.difference.high) == (0, 0, 0)
    assert math.isnan(result.p)
    assert math.isnan(result.d_z)


def test_one_seed_has_no_interval():
    assert math.isnan(mean_interval([0.5]).low)


def test_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="run both on the same seeds"):
        paired(A, B[:-1])
