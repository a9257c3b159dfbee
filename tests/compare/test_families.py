import math
import warnings

import numpy as np
import pytest
from scipy import stats

from tests.compare.test_paired import A, B
from tlexp.compare.families import holm, ranking, signed_rank

SCORES = np.array([[0.81, 0.79, 0.83], [0.72, 0.70, 0.71], [0.90, 0.88, 0.91], [0.65, 0.66, 0.69], [0.78, 0.75, 0.80]])


def test_a_family_of_p_values():
    assert holm([0.001, 0.04, 0.03, 0.005]) == pytest.approx([0.004, 0.06, 0.06, 0.015])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values lie in"):
        holm([0.1, math.nan])


def test_signed_ranks_of_the_reference_vector():
    """All ten differences are positive: 2 / 2^10."""
    statistic, p = signed_rank(A, B)
    assert statistic == 0
    assert p == pytest.approx(2 / 1024)
    assert signed_rank(B, A) == (statistic, p)


@pytest.mark.parametrize("n", [5, 8, 14])
@pytest.mark.parametrize("seed", range(3))
def test_signed_ranks_without_ties_are_scipys(n, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    theirs = stats.wilcoxon(a, b, method="exact")
    statistic, p = signed_rank(a, b)
    assert (statistic, p) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_signed_ranks_with_ties_are_those_of_all_signs():
    differences = np.array([1.0, 1.0, -1.0, 2.0, 2.0, -3.0, 4.0])
    statistic, p = signed_rank([*differences, 7.0], [*np.zeros(7), 7.0])
    ranks = stats.rankdata(np.abs(differences))
    signs = np.array(np.meshgrid(*[[0, 1]] * 7)).reshape(7, -1)
    sums = ranks @ signs
    assert statistic == ranks[differences < 0].sum()
    assert p == pytest.approx(min(1, 2 * (sums <= statistic).mean()))


def test_nothing_to_rank_is_said():
    with pytest.raises(ValueError, match="all pairs are equal"):
        signed_rank(A, A)
    with pytest.raises(ValueError, match="run both on the same seeds"):
        signed_rank(A, B[:-1])


def test_methods_over_data_sets():
    found = ranking(SCORES)
    assert found.mean_ranks.tolist() == pytest.approx([2, 2.8, 1.2])
    assert (found.statistic, found.p) == pytest.approx((6.4, 0.040762), abs=1e-6)
    assert found.critical_difference == pytest.approx(1.482, abs=1e-3)
    with pytest.raises(ValueError, match="4 data sets and 3 methods"):
        ranking(SCORES[:4])


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (4, 2.569), (6, 2.850), (10, 3.164)])
def test_critical_differences_are_the_published_quantiles(methods, q):
    scores = np.random.default_rng(0).normal(size=(6, methods))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ranking(scores)
    assert found.critical_difference == pytest.approx(q * math.sqrt(methods * (methods + 1) / 36), abs=1.5e-3)
