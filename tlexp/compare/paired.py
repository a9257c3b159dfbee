"""Statistics of runs that differ in one thing and share their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NOISE = 1e-12  # of subtraction: differences that vary by less do not vary


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % t interval over `n` seeds; the bounds are nan for a single one."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """The difference of two sets of runs on the same seeds.

    Attributes:
        difference: mean of a - b with its 95 % t interval.
        p: two-sided p-value of the paired t test; nan where the differences do not vary.
        d_z: effect size, mean over standard deviation of the differences.
        wins: number of seeds on which a is above b.
        values: the differences.
    """

    difference: Interval
    p: float
    d_z: float
    wins: int
    values: tuple[float, ...] = ()


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean with its t interval at 95 %."""
    sample = np.asarray(values, dtype=float)
    n = len(sample)
    mean = float(sample.mean())
    half = float(stats.t.ppf(0.975, n - 1) * sample.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Interval(mean, mean - half, mean + half, n)


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """Compares values on the same seeds, in the same order, by the paired t test.

    Raises:
        ValueError: where the numbers of seeds differ.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired; run both on the same seeds")
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    spread = spread if spread > NOISE else 0.0
    p = float(stats.ttest_1samp(differences, 0.0).pvalue) if spread > 0 else float("nan")
    d_z = float(differences.mean() / spread) if spread > 0 else float("nan")
    return Paired(
        mean_interval(differences.tolist()), p, d_z, int((differences > 0).sum()), tuple(differences.tolist())
    )
