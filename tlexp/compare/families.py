"""Statistics of many comparisons: a family of p-values, and methods over several data sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FEWEST_BLOCKS = 5  # below, an order of methods over data sets says next to nothing


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number (Holm 1979), in the order they came in.

    Raises:
        ValueError: for one outside [0, 1], nan included.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"{list(p_values)}: p-values lie in [0, 1]")
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def signed_rank(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Returns statistic and exact two-sided p-value of Wilcoxon's signed-rank test on the same seeds.

    Pairs that are equal say nothing and are left out, as Wilcoxon did; with ties among the differences the exact
    distribution is that of all signs of their mean ranks.

    Raises:
        ValueError: where the numbers of seeds differ, or all pairs are equal.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired; run both on the same seeds")
    differences = np.round(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), 12)
    differences = differences[differences != 0]
    if not len(differences):
        raise ValueError("all pairs are equal, so that there is nothing to test")
    ranks = stats.rankdata(np.abs(differences))
    statistic = min(float(ranks[differences > 0].sum()), float(ranks[differences < 0].sum()))
    # Doubled, so that mean ranks are whole numbers: how often each sum of ranks comes over all signs.
    doubled = np.round(2 * ranks).astype(int)
    counts = np.zeros(int(doubled.sum()) + 1)
    counts[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(counts)
        shifted[rank:] = counts[: len(counts) - rank]
        counts = (counts + shifted) / 2
    return statistic, min(1.0, 2 * float(counts[: round(2 * statistic) + 1].sum()))


@dataclass(frozen=True)
class Ranking:
    """Methods over several data sets, best first where more is better.

    Attributes:
        mean_ranks: (methods,), 1 for the best.
        statistic: Friedman's chi-squared.
        p: of the hypothesis that all methods are alike.
        critical_difference: of mean ranks, at 5 % (Nemenyi 1963).
    """

    mean_ranks: NDArray[np.float64]
    statistic: float
    p: float
    critical_difference: float


def ranking(scores: NDArray[np.float64]) -> Ranking:
    """Ranks methods by scores (data sets, methods); blocks are data sets with seeds averaged, never seeds.

    Raises:
        ValueError: for fewer than five data sets or three methods.
    """
    blocks, methods = scores.shape
    if blocks < FEWEST_BLOCKS or methods < 3:
        raise ValueError(f"{blocks} data sets and {methods} methods: a ranking needs {FEWEST_BLOCKS} and 3 at least")
    mean_ranks = stats.rankdata(-scores, axis=1).mean(0)
    found = stats.friedmanchisquare(*scores.T)
    quantile = stats.studentized_range.ppf(0.95, methods, np.inf) / np.sqrt(2)
    difference = float(quantile * np.sqrt(methods * (methods + 1) / (6 * blocks)))
    return Ranking(mean_ranks, float(found.statistic), float(found.pvalue), difference)
