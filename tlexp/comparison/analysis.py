"""The analysis of a sweep: each method as validation selected it against the baseline, and the effect of alpha."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tlexp.comparison.axes import Values
from tlexp.comparison.results import ConfigResult, SweepResults
from tlexp.comparison.statistics import (
    MIN_DATA_SETS,
    MIN_METHODS,
    SIGNIFICANCE_LEVEL,
    Interval,
    PairedDifference,
    Ranking,
    holm,
    rank_methods,
    wilcoxon,
)

Key = TypeVar("Key")
BUDGET_AXES = ("data.shots", "data.fraction")


@dataclass(frozen=True)
class PairedContrast:
    """One paired comparison of a family.

    Attributes:
        difference: of the reported metric, on the repetitions that both have.
        p_holm: of the paired t-test, Holm-adjusted within the family (Holm 1979); NaN where nothing could be tested.
        p_wilcoxon: of the signed-rank test, not adjusted.
    """

    difference: PairedDifference
    p_holm: float
    p_wilcoxon: float

    def verdict(self, rope: float, higher_is_better: bool) -> str:
        """Returns `equivalent`, `better`, `worse` or `undecided`; nothing where there is no interval.

        Equivalent are methods of which the 90 % interval of the difference lies within `rope` of 0 (two one-sided
        tests at 5 %); otherwise the adjusted test decides.
        """
        found = self.difference.estimate
        if not found.variance > 0:
            return ""
        if found.equivalence_p(rope) < SIGNIFICANCE_LEVEL:
            return "equivalent"
        if not self.p_holm < SIGNIFICANCE_LEVEL:
            return "undecided"
        return "better" if (found.mean > 0) == higher_is_better else "worse"

    def wins(self, higher_is_better: bool) -> int:
        """Returns on how many repetitions the method beats what it is compared with."""
        return sum(value > 0 if higher_is_better else value < 0 for value in self.difference.values)


@dataclass(frozen=True, eq=False)
class MethodResult:
    """A method on a problem, in the configuration that validation selected.

    Attributes:
        config: the selected configuration.
        test: the reported metric over repetitions.
        contrast: with the baseline on the same problem; None for the baseline itself, or without a common repetition.
        candidates: configurations with different results among which was selected.
        oracle_gap: how much better the best on the test is than the selected one: the price of selecting by validation.
        best: whether it has the best validation score of all methods on the problem.
        selected: whether validation, by which it has to differ over label draws, prefers it to every other method.
    """

    problem: Values
    method: Values
    config: ConfigResult
    test: Interval
    contrast: PairedContrast | None
    candidates: int
    oracle_gap: float
    best: bool
    selected: bool


@dataclass(frozen=True, eq=False)
class SourceEffect:
    """What a weight of the source does to a method on a problem.

    Attributes:
        gap: error with this alpha minus error with alpha = 0 (after Wang et al. 2019): above 0 the source hurts.
        selected: whether validation prefers this alpha to every other one.
        rope: differences up to this are practically 0.
    """

    problem: Values
    method: Values
    alpha: str
    test: Interval
    gap: PairedContrast | None
    selected: bool
    rope: float

    @property
    def verdict(self) -> str:
        """`hurts` or `helps` where the adjusted test rejects, `may hurt` or `may help` where only its interval does.

        `equivalent` where the effect is practically 0; `undecided` otherwise.
        """
        if self.gap is None or not self.gap.difference.estimate.variance > 0:
            return ""
        if (known := self.gap.verdict(self.rope, higher_is_better=False)) != "undecided":
            return {"worse": "hurts", "better": "helps"}.get(known, known)
        interval = self.gap.difference.interval
        if interval.low <= 0 <= interval.high:
            return known
        return "may hurt" if interval.low > 0 else "may help"


def compare_methods(results: SweepResults) -> list[MethodResult]:
    """Returns a row for each method on each problem, the best first; p-values are adjusted over all of them."""
    selected = {key: results.select(configs) for key, configs in results.by_method.items()}
    differences = {}
    for (problem, method), config in selected.items():
        baseline = selected.get((problem, results.baseline_method))
        if baseline is not None and baseline is not config:
            differences[problem, method] = config.difference(baseline, results.metric)
    contrasts = _adjust(differences)
    by_problem: dict[Values, list[ConfigResult]] = {}
    for (problem, _), config in selected.items():
        by_problem.setdefault(problem, []).append(config)
    choices = {problem: results.choice(configs) for problem, configs in by_problem.items()}
    sign = 1 if results.higher_is_better else -1
    rows = []
    for key, config in selected.items():
        configs = results.by_method[key]
        means = [sign * other.interval.mean for other in configs if len(other.frame) == len(config.frame)]
        rows.append(
            MethodResult(
                *key,
                config,
                config.interval,
                contrasts.get(key),
                candidates=len({other.keys for other in configs}),
                oracle_gap=max(means) - sign * config.interval.mean,
                best=config is choices[key[0]].best,
                selected=config is choices[key[0]].preferred,
            )
        )
    order = list(by_problem)
    return sorted(rows, key=lambda row: (order.index(row.problem), -sign * row.test.mean))


def _adjust(differences: Mapping[Key, PairedDifference | None]) -> dict[Key, PairedContrast]:
    """Adjusts the p-values of differences that are one family."""
    family = {key: difference for key, difference in differences.items() if difference is not None}
    tested = [key for key, difference in family.items() if not math.isnan(difference.p)]
    adjusted = dict(zip(tested, holm([family[key].p for key in tested]), strict=True))
    return {
        key: PairedContrast(difference, adjusted.get(key, math.nan), _wilcoxon_p(difference))
        for key, difference in family.items()
    }


def _wilcoxon_p(difference: PairedDifference) -> float:
    values = difference.independent
    if len(values) < 2 or not any(values) or math.isnan(difference.p):
        return math.nan
    return wilcoxon(values)[1]


# The effect of alpha -------------------------------------------------------------------------------------------


def source_effects(results: SweepResults) -> list[SourceEffect]:
    """Returns the gap of every alpha to alpha = 0, p-values adjusted over all; none where alpha was searched."""
    if "alpha" not in results.axes or results.searched:
        return []
    groups: dict[tuple[Values, Values], dict[str, list[ConfigResult]]] = {}
    for config in results.configs:
        method = tuple(pair for pair in config.method if pair[0] != "alpha")
        alpha = dict((*config.method, *config.tuned))["alpha"]
        groups.setdefault((config.problem, method), {}).setdefault(alpha, []).append(config)
    by_alpha = {
        key: {alpha: results.select(configs) for alpha, configs in alphas.items()} for key, alphas in groups.items()
    }
    differences = {}
    for key, configs in by_alpha.items():
        zero = next((config for alpha, config in configs.items() if float(alpha) == 0), None)
        for alpha, config in configs.items():
            if zero is not None and config is not zero:
                first, second = (zero, config) if results.higher_is_better else (config, zero)
                differences[key, alpha] = first.difference(second, results.metric)
    contrasts = _adjust(differences)
    effects = []
    for key, configs in by_alpha.items():
        preferred = results.choice(list(configs.values())).preferred
        for alpha in sorted(configs, key=float):
            config = configs[alpha]
            gap = contrasts.get((key, alpha))
            effects.append(SourceEffect(*key, alpha, config.interval, gap, config is preferred, results.rope))
    return effects


# Label budgets -------------------------------------------------------------------------------------------------


def budget_axis(results: SweepResults) -> str | None:
    """Returns the axis of the label budget, where there is one with several values."""
    return next((axis for axis in BUDGET_AXES if axis in results.problems and len(results.values[axis]) > 1), None)


def learning_curves(
    rows: Sequence[MethodResult], axis: str
) -> dict[tuple[Values, Values], list[tuple[float, MethodResult]]]:
    """Returns the rows by method and rest of the problem, along the label budget."""
    curves: dict[tuple[Values, Values], list[tuple[float, MethodResult]]] = {}
    for row in rows:
        rest = tuple(pair for pair in row.problem if pair[0] != axis)
        curves.setdefault((rest, row.method), []).append((float(dict(row.problem)[axis]), row))
    return {key: sorted(curve, key=lambda pair: pair[0]) for key, curve in curves.items()}


def equivalent_labels(
    curve: Sequence[tuple[float, MethodResult]], reference: Sequence[tuple[float, MethodResult]]
) -> list[float]:
    """Returns how many labels the reference needs for the means of a curve, interpolated in the logarithm.

    NaN where the reference never gets there, or is there with its fewest labels already.
    """
    budgets = np.log([labels for labels, _ in reference])
    means = np.maximum.accumulate([row.test.mean for _, row in reference])
    needed = []
    for _, row in curve:
        inside = means[0] <= row.test.mean <= means[-1]
        needed.append(float(np.exp(np.interp(row.test.mean, means, budgets))) if inside else math.nan)
    return needed


# Several data sets ---------------------------------------------------------------------------------------------


def rank_over_data_sets(results: SweepResults, rows: Sequence[MethodResult]) -> tuple[list[Values], Ranking] | None:
    """Ranks the methods over data sets; None where there are too few, or problems are not different data sets."""
    data_axes = all(axis.startswith(("data", "dataset@")) for axis in results.problems)
    if not data_axes or any(axis in BUDGET_AXES for axis in results.problems):
        return None
    problems, methods = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("problem", "method"))
    if len(problems) < MIN_DATA_SETS or len(methods) < MIN_METHODS or len(rows) < len(problems) * len(methods):
        return None
    sign = 1 if results.higher_is_better else -1
    means = {(row.problem, row.method): sign * row.test.mean for row in rows}
    scores = np.array([[means[problem, method] for method in methods] for problem in problems])
    return methods, rank_methods(scores)
