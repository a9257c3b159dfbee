"""Statistics of runs that share their repetitions: intervals, paired tests, families of tests and rankings."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tlexp.comparison.designs import Estimate, estimate

# Metrics are measured in single precision: what is equal to this many digits after the point is equal. Finer digits
# would break ties, and give a p-value to differences that do not vary.
DIGITS = 6
SIGNIFICANCE_LEVEL = 0.05
MIN_DATA_SETS = 5  # a ranking over fewer data sets says next to nothing
MIN_METHODS = 3
# All signs of up to 13 pairs, SciPy's own limit for an exact permutation test; more pairs are sampled, reproducibly.
RESAMPLES = 2**13


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % t interval over `n` independent repetitions; the bounds are NaN for a single one."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, found: Estimate, lowest: float = -math.inf, highest: float = math.inf) -> "Interval":
        """Returns the interval of an estimate within the range of what is measured."""
        half = found.half_width()
        if math.isnan(half):
            return cls(found.mean, math.nan, math.nan, found.n)
        return cls(found.mean, max(lowest, found.mean - half), min(highest, found.mean + half), found.n)


@dataclass(frozen=True)
class PairedDifference:
    """The difference a - b of two sets of runs on the same repetitions.

    Attributes:
        estimate: mean of the differences with the distribution of its error.
        p: two-sided p-value of the paired t-test; NaN where the differences do not vary.
        d_z: effect size, mean over standard deviation of the differences.
        values: the differences, to `DIGITS` digits.
        independent: the same, averaged over what shares the broadest factor that varies, such as a label draw.
    """

    estimate: Estimate
    p: float
    d_z: float
    values: tuple[float, ...]
    independent: tuple[float, ...]

    @property
    def interval(self) -> Interval:
        """The mean of the differences with its 95 % t interval."""
        return Interval.of(self.estimate)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    factors: Sequence[Sequence[Hashable]] | None = None,
    overlap: float = 0.0,
) -> PairedDifference:
    """Compares values of the same repetitions, in the same order, by the paired t-test.

    Args:
        a: one value for each repetition.
        b: one value for each repetition.
        factors: what repetitions share; see `designs.estimate`. None for nothing.
        overlap: of the first factor; see `designs.one_way`.

    Raises:
        ValueError: where the numbers of values differ.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired; run both on the same seeds")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    factors = [range(len(differences))] if factors is None else factors
    found = estimate(differences.tolist(), factors, overlap)
    varies = np.ptp(differences) > 10**-DIGITS
    d_z = float(differences.mean() / differences.std(ddof=1)) if varies else math.nan
    first = next((levels for levels in factors if len(set(levels)) > 1), [0] * len(differences))
    groups = {level: differences[[other == level for other in first]] for level in dict.fromkeys(first)}
    return PairedDifference(
        found,
        found.p if varies else math.nan,
        d_z,
        tuple(differences.round(DIGITS).tolist()),
        tuple(round(float(group.mean()), DIGITS) for group in groups.values()),
    )


def wilcoxon(differences: Sequence[float]) -> tuple[float, float]:
    """Returns statistic and two-sided p-value of Wilcoxon's signed-rank test of paired differences.

    Pairs that are equal are left out, as Wilcoxon did. Without ties the p-value is exact up to 50 pairs; with ties it
    is that of SciPy's permutation test, exact up to 13 pairs.

    Raises:
        ValueError: where all pairs are equal.
    """
    rounded = np.round(np.asarray(differences, dtype=float), DIGITS)
    nonzero = rounded[rounded != 0]
    if not len(nonzero):
        raise ValueError("all pairs are equal: there is nothing to test")
    has_ties = len(np.unique(np.abs(nonzero))) < len(nonzero)
    permutations = stats.PermutationMethod(n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    result = stats.wilcoxon(nonzero, method=permutations if has_ties else "auto")
    return float(result.statistic), float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number (Holm 1979), in the order given.

    Raises:
        ValueError: for one outside [0, 1], NaN included.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"{list(p_values)}: p-values lie in [0, 1]")
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted.tolist()


@dataclass(frozen=True)
class Ranking:
    """Methods ranked over several data sets, where a higher score is better.

    Attributes:
        mean_ranks: (methods,), 1 for the best.
        statistic: Friedman's chi-squared.
        p: of the hypothesis that all methods are equally good.
        critical_difference: of mean ranks, at 5 % (Nemenyi 1963).
    """

    mean_ranks: NDArray[np.float64]
    statistic: float
    p: float
    critical_difference: float


def rank_methods(scores: NDArray[np.float64]) -> Ranking:
    """Ranks methods by scores (data sets, methods); a row is a data set averaged over seeds, never a seed.

    Scores that are equal to `DIGITS` digits have the same rank.

    Raises:
        ValueError: for fewer than five data sets or three methods.
    """
    data_sets, methods = scores.shape
    if data_sets < MIN_DATA_SETS or methods < MIN_METHODS:
        minimum = f"needs at least {MIN_DATA_SETS} and {MIN_METHODS}"
        raise ValueError(f"{data_sets} data sets and {methods} methods: a ranking {minimum}")
    rounded = scores.round(DIGITS)
    mean_ranks = stats.rankdata(-rounded, axis=1).mean(0)
    friedman = stats.friedmanchisquare(*rounded.T)
    quantile = stats.studentized_range.ppf(0.95, methods, np.inf) / np.sqrt(2)
    critical = float(quantile * np.sqrt(methods * (methods + 1) / (6 * data_sets)))
    return Ranking(mean_ranks, float(friedman.statistic), float(friedman.pvalue), critical)
