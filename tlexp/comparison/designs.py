"""Means over runs that share label draws, seeds or test examples, with intervals that know what is shared.

Runs of five label draws with five seeds each are not 25 independent repetitions: five of them share a draw. Draws from
a small pool share labels, and splits of one data set share test examples. Treated as independent, such runs give
intervals that are too short; `scripts/coverage.py` measures how often each interval covers the truth.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with the t distribution of its error.

    Attributes:
        mean: over all runs.
        variance: of the mean; NaN for a single repetition.
        df: degrees of freedom, in crossed designs by Satterthwaite (1946).
        n: independent repetitions: those of what varies most broadly.
        components: standard deviations by what varies, in crossed designs: `draw`, `seed`, `rest`.
    """

    mean: float
    variance: float
    df: float
    n: int
    components: Mapping[str, float] = field(default_factory=dict)

    @property
    def t(self) -> float:
        """The t statistic of the hypothesis that the mean is 0; NaN where nothing varies."""
        return self.mean / math.sqrt(self.variance) if self.variance > 0 else math.nan

    @property
    def p(self) -> float:
        """Two-sided p-value of that hypothesis; NaN where nothing varies."""
        return float(2 * stats.t.sf(abs(self.t), self.df))

    def half_width(self, level: float = 0.95) -> float:
        """Returns half the width of a t interval; NaN for a single repetition."""
        return float(stats.t.ppf((1 + level) / 2, self.df) * math.sqrt(self.variance))

    def probabilities(self, rope: float) -> tuple[float, float, float]:
        """Returns the posterior probabilities that the mean is below -rope, practically 0, and above rope.

        The posterior is the t distribution around the mean (Corani and Benavoli 2015).
        """
        below, above = (self._cdf(-rope), 1 - self._cdf(rope))
        return below, 1 - below - above, above

    def equivalence_p(self, rope: float) -> float:
        """Returns the p-value of two one-sided tests that the mean is within rope of 0 (Schuirmann 1987)."""
        return max(self._cdf(-rope), 1 - self._cdf(rope))

    def _cdf(self, x: float) -> float:
        return (
            float(stats.t.cdf((x - self.mean) / math.sqrt(self.variance), self.df)) if self.variance > 0 else math.nan
        )


def estimate(values: Sequence[float], factors: Sequence[Sequence[Hashable]], overlap: float = 0.0) -> Estimate:
    """Returns the mean of runs with an error that fits what they share.

    Of the factors that vary the two first are crossed where every combination of their levels was run. Of further ones,
    and of all where combinations are missing, the one with the largest variance of its means counts.

    Args:
        values: one for each run.
        factors: what runs share, the broadest first, such as label draws and seeds: a level of each for each run.
        overlap: see `one_way`, of the first factor.
    """
    frame = pd.DataFrame({"value": np.asarray(values, dtype=float)})
    names = []
    for index, levels in enumerate(factors):
        if len(set(levels)) > 1:
            frame[index] = pd.Categorical([str(level) for level in levels])
            names.append(index)
    if not names:  # one repetition, however often it was run
        return one_way(np.array([frame["value"].mean()]))
    overlap = overlap if names[0] == 0 else 0.0
    by_factor = [frame.groupby(name, observed=True)["value"].mean().to_numpy() for name in names]
    found = [one_way(means, overlap if name == names[0] else 0.0) for name, means in zip(names, by_factor, strict=True)]
    if len(names) > 1:
        table = frame.groupby(names[:2], observed=True)["value"].mean().unstack()
        if min(table.shape) > 1 and table.notna().all(axis=None):
            found = [two_way(table.to_numpy(), overlap), *found[2:]]
    widest = max(found, key=lambda one: one.variance)
    return replace(widest, mean=found[0].mean, n=found[0].n, components=found[0].components)


def one_way(values: Matrix, overlap: float = 0.0) -> Estimate:
    """Returns the mean of independent repetitions.

    Args:
        values: (n,).
        overlap: rho / (1 - rho) where any two repetitions have the correlation rho: n / N for n labels drawn from a
            pool of N, so that splits of one data set have n_test / n_train (Nadeau and Bengio 2003). The variance of
            the mean is s^2 (1 / n + overlap).
    """
    n = len(values)
    variance = float(values.var(ddof=1)) * (1 / n + overlap) if n > 1 else math.nan
    return Estimate(float(values.mean()), variance, n - 1, n)


def two_way(table: Matrix, overlap: float = 0.0) -> Estimate:
    """Returns the mean of a complete table (rows, columns) whose rows and columns are both samples.

    With the mean squares of rows, columns and rest the variance is (MS_r + MS_c - MS_e) / (r c), at least that of rows
    or of columns alone; the interval is conservative where neither matters.

    Args:
        table: (rows, columns), rows being the broader factor, such as label draws.
        overlap: of rows; see `one_way`.
    """
    rows, columns = table.shape
    mean = float(table.mean())
    by_row, by_column = table.mean(1) - mean, table.mean(0) - mean
    rest = table - mean - by_row[:, None] - by_column[None, :]
    ms_rows = columns * float((by_row**2).sum()) / (rows - 1)
    ms_columns = rows * float((by_column**2).sum()) / (columns - 1)
    df_rest = (rows - 1) * (columns - 1)
    ms_rest = float((rest**2).sum()) / df_rest
    joint = ms_rows + ms_columns - ms_rest
    variance = max(joint, ms_rows, ms_columns) / (rows * columns)
    of_rows, of_columns = (max(0.0, ms_rows - ms_rest) / columns, max(0.0, ms_columns - ms_rest) / rows)
    spread = ms_rows**2 / (rows - 1) + ms_columns**2 / (columns - 1) + ms_rest**2 / df_rest
    # The variance is at least that of rows or columns alone, and so are the degrees of freedom: where draws and seeds
    # hardly matter the joint mean square can be next to 0, and they would be, too.
    fewest = min(rows, columns) - 1
    df = max(fewest, joint**2 / spread) if joint > 0 and spread > 0 else fewest
    parts = {"draw": math.sqrt(of_rows), "seed": math.sqrt(of_columns), "rest": math.sqrt(ms_rest)}
    return Estimate(mean, variance + overlap * of_rows, df, rows, parts)


def overlap_of_draws(labels: float, pool: float) -> float:
    """Returns the overlap of draws of `labels` from a pool of so many; 0 where a draw takes all of it.

    Another draw has then nothing to differ in, and the question is about this pool.
    """
    rho = labels / pool
    return rho / (1 - rho) if rho < 1 else 0.0
