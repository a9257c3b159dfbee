"""What a search of a given size is worth: the expected test of what validation selects among some of its trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from tlexp.comparison.axes import Values
from tlexp.comparison.results import ConfigResult, SweepResults
from tlexp.metric_names import higher_is_better

MIN_TRIALS = 4
RESAMPLES = 500


@dataclass(frozen=True)
class BudgetCurve:
    """The expected test of a method against the number of trials.

    Attributes:
        problem, method: whose it is.
        trials: numbers of trials, from 1 to all.
        expected: the reported metric for each.
        low, high: of its 95 % bootstrap interval over repetitions; NaN with fewer than three.
        seconds: mean fit time of a trial with all its repetitions.
    """

    problem: Values
    method: Values
    trials: NDArray[np.int64]
    expected: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    seconds: float


def expected_of_selected(validation: Sequence[float], test: Sequence[float], n: int) -> float:
    """Returns the expected test of the trial with the best validation among `n` of all trials.

    They are drawn without replacement, which is unbiased; with it (Dodge et al. 2019) fewer different trials count.

    Args:
        validation: of each trial, higher being better.
        test: of each trial.
        n: number of trials that are drawn.
    """
    ordered = np.asarray(test, dtype=float)[np.argsort(validation, kind="stable")]
    total = comb(len(ordered), n)
    weights = np.array([comb(place, n - 1) / total for place in range(len(ordered))])
    return float(weights @ ordered)


def budget_curves(results: SweepResults) -> list[BudgetCurve]:
    """Returns the curve of each method of a search on each problem that has enough trials."""
    if not results.searched:
        return []
    curves = []
    for (problem, method), configs in results.by_method.items():
        most = max(len(config.frame) for config in configs)
        complete = [config for config in configs if len(config.frame) == most]
        if len(complete) >= MIN_TRIALS:
            curves.append(_curve(problem, method, complete, results))
    return curves


def _curve(problem: Values, method: Values, configs: Sequence[ConfigResult], results: SweepResults) -> BudgetCurve:
    sign = 1 if higher_is_better(results.monitor) else -1
    scores = np.array([sign * config.frame["score"].to_numpy() for config in configs])  # (trials, repetitions)
    tests = np.array([config.frame[results.metric].to_numpy() for config in configs])
    trials = np.arange(1, len(configs) + 1)

    def curve(repetitions: NDArray[np.int64]) -> list[float]:
        means = scores[:, repetitions].mean(1), tests[:, repetitions].mean(1)
        return [expected_of_selected(*means, n) for n in trials.tolist()]

    repetitions = scores.shape[1]
    low = high = np.full(len(trials), np.nan)
    if repetitions > 2:
        rng = np.random.default_rng(0)
        samples = rng.integers(0, repetitions, (RESAMPLES, repetitions))
        low, high = np.quantile([curve(np.asarray(sample)) for sample in samples], [0.025, 0.975], axis=0)
    seconds = float(np.mean([config.mean("fit_seconds") * repetitions for config in configs]))
    return BudgetCurve(problem, method, trials, np.array(curve(np.arange(repetitions))), low, high, seconds)
