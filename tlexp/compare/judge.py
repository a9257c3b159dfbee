"""What a study says: each method at what validation chose for it, against the baseline; and what alpha does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tlexp.compare.families import FEWEST_BLOCKS, Ranking, holm, ranking, signed_rank
from tlexp.compare.paired import Interval, Paired, paired
from tlexp.compare.study import Cell, Study, Values

Place = TypeVar("Place")
SIGNIFICANT = 0.05
LABELS = ("data.shots", "data.fraction")


@dataclass(frozen=True)
class Against:
    """A paired comparison within a family of them.

    Attributes:
        difference: of the reported metric, on the repetitions that both have.
        p_holm: of the paired t test, adjusted for the family (Holm 1979); nan where there is nothing to test.
        p_wilcoxon: of the exact signed-rank test, not adjusted.
    """

    difference: Paired
    p_holm: float
    p_wilcoxon: float


@dataclass(frozen=True)
class Row:
    """A method on a problem.

    Attributes:
        cell: the configuration that validation chose.
        test: the reported metric over repetitions.
        against: the baseline on the same problem; None for the baseline itself and where they share no repetition.
        trials: configurations with a result of their own, among which was chosen.
        oracle_gap: how much better the best on the test is than the chosen one; what choosing costs.
        leads: whether validation prefers it to all other methods on the problem.
    """

    problem: Values
    method: Values
    cell: Cell
    test: Interval
    against: Against | None
    trials: int
    oracle_gap: float
    leads: bool


@dataclass(frozen=True)
class Effect:
    """What a weight of the source does to a method on a problem.

    Attributes:
        gap: error with this alpha minus error with alpha = 0 (after Wang et al. 2019): above 0 the source hurts.
    """

    problem: Values
    method: Values
    alpha: str
    test: Interval
    gap: Against | None
    chosen: bool

    @property
    def verdict(self) -> str:
        """`hurts` or `helps` where the adjusted test rejects, `may` before it where its interval alone leaves 0 out."""
        if self.gap is None or math.isnan(self.gap.difference.difference.low):
            return ""
        interval = self.gap.difference.difference
        if interval.low <= 0 <= interval.high:
            return ""
        sure = self.gap.p_holm < SIGNIFICANT
        return ("" if sure else "may ") + ("hurt" if interval.low > 0 else "help") + ("s" if sure else "")


def compare(study: Study) -> list[Row]:
    """Returns a row for each method on each problem, the best first; p-values are adjusted over all of them."""
    chosen = {place: study.chosen(cells) for place, cells in study.arms.items()}
    differences = {}
    for (problem, method), cell in chosen.items():
        other = chosen.get((problem, study.baseline_method))
        if other is not None and other is not cell:
            differences[problem, method] = _paired(cell, other)
    family = _family(differences)
    lead = {problem: study.chosen([c for p, c in _places(chosen) if p == problem]) for problem, _ in chosen}
    sign = 1 if study.more_is_better else -1
    rows = []
    for place, cell in chosen.items():
        cells = study.arms[place]
        means = [sign * each.interval.mean for each in cells if len(each.results) == len(cell.results)]
        rows.append(
            Row(
                *place,
                cell,
                cell.interval,
                family.get(place),
                len({tuple(each.keys) for each in cells}),
                max(means) - sign * cell.interval.mean,
                cell is lead[place[0]],
            )
        )
    order = {problem: number for number, problem in enumerate(dict.fromkeys(row.problem for row in rows))}
    return sorted(rows, key=lambda row: (order[row.problem], -sign * row.test.mean))


def _places(chosen: dict[tuple[Values, Values], Cell]) -> list[tuple[Values, Cell]]:
    return [(problem, cell) for (problem, _), cell in chosen.items()]


def _paired(cell: Cell, other: Cell) -> Paired | None:
    """Compares two configurations on the repetitions that both have; None for none in common."""
    common = sorted(cell.tests.keys() & other.tests.keys())
    if not common:
        return None
    return paired([cell.tests[rep] for rep in common], [other.tests[rep] for rep in common])


def _family(differences: dict[Place, Paired | None]) -> dict[Place, Against]:
    """Adjusts the p-values of comparisons that are looked at together."""
    found = {place: difference for place, difference in differences.items() if difference is not None}
    tested = [place for place, difference in found.items() if not math.isnan(difference.p)]
    adjusted = dict(zip(tested, holm([found[place].p for place in tested]), strict=True))
    return {
        place: Against(difference, adjusted.get(place, math.nan), _wilcoxon(difference))
        for place, difference in found.items()
    }


def _wilcoxon(difference: Paired) -> float:
    if difference.difference.n < 2 or not any(difference.values):
        return math.nan
    return signed_rank(difference.values, [0.0] * len(difference.values))[1]


# What alpha does -----------------------------------------------------------------------------------------------


def effects(study: Study) -> list[Effect]:
    """Returns the gap of every alpha to alpha = 0, p-values adjusted over all; none where alpha was searched."""
    if "alpha" not in study.axes or study.searched:
        return []
    groups: dict[tuple[Values, Values], dict[str, list[Cell]]] = {}
    for cell in study.cells:
        method = tuple(pair for pair in cell.method if pair[0] != "alpha")
        alpha = dict((*cell.method, *cell.tuned))["alpha"]
        groups.setdefault((cell.problem, method), {}).setdefault(alpha, []).append(cell)
    best = {place: {alpha: study.chosen(cells) for alpha, cells in by.items()} for place, by in groups.items()}
    differences = {}
    sign = 1 if study.more_is_better else -1
    for place, by in best.items():
        zero = next((cell for alpha, cell in by.items() if float(alpha) == 0), None)
        for alpha, cell in by.items():
            if zero is not None and cell is not zero:
                differences[place, alpha] = _paired(*((zero, cell) if sign > 0 else (cell, zero)))
    family = _family(differences)
    found = []
    for place, by in best.items():
        chosen = study.chosen(list(by.values()))
        for alpha in sorted(by, key=float):
            gap = family.get((place, alpha))
            found.append(Effect(*place, alpha, by[alpha].interval, gap, by[alpha] is chosen))
    return found


# Labels --------------------------------------------------------------------------------------------------------


def labels_axis(study: Study) -> str | None:
    """Returns the axis of the label budget, where there is one with more than one value."""
    return next((axis for axis in LABELS if axis in study.problems and len(study.values[axis]) > 1), None)


def curves(rows: Sequence[Row], axis: str) -> dict[tuple[Values, Values], list[tuple[float, Row]]]:
    """Returns the rows by method and rest of the problem, along the label budget."""
    lines: dict[tuple[Values, Values], list[tuple[float, Row]]] = {}
    for row in rows:
        rest = tuple(pair for pair in row.problem if pair[0] != axis)
        lines.setdefault((rest, row.method), []).append((float(dict(row.problem)[axis]), row))
    return {place: sorted(line, key=lambda each: each[0]) for place, line in lines.items()}


def equivalent_labels(line: Sequence[tuple[float, Row]], reference: Sequence[tuple[float, Row]]) -> list[float]:
    """Returns how many labels the reference needs for the means of a line, interpolated in the logarithm.

    nan where the reference never gets there, or is there with its fewest labels already.
    """
    budgets = np.log([n for n, _ in reference])
    means = np.maximum.accumulate([row.test.mean for _, row in reference])
    found = []
    for _, row in line:
        inside = means[0] <= row.test.mean <= means[-1]
        found.append(float(np.exp(np.interp(row.test.mean, means, budgets))) if inside else math.nan)
    return found


# Data sets -----------------------------------------------------------------------------------------------------


def ranks(study: Study, rows: Sequence[Row]) -> tuple[list[Values], Ranking] | None:
    """Ranks the methods over data sets; None where there are too few, or problems are no data sets of their own."""
    own = all(axis.startswith(("data", "dataset@")) and axis not in LABELS for axis in study.problems)
    problems, methods = ([*dict.fromkeys(getattr(row, name) for row in rows)] for name in ("problem", "method"))
    if not own or len(problems) < FEWEST_BLOCKS or len(methods) < 3 or len(rows) < len(problems) * len(methods):
        return None
    sign = 1 if study.more_is_better else -1
    means = {(row.problem, row.method): sign * row.test.mean for row in rows}
    return methods, ranking(np.array([[means[problem, method] for method in methods] for problem in problems]))
