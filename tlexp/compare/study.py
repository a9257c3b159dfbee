"""What a sweep asked and what it got: points by problem, method, tuned values and repetition."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tlexp.compare.paired import Interval, mean_interval
from tlexp.config import METRICS
from tlexp.errors import UsageError
from tlexp.sweep.layout import LAYOUT, REPLICATES, short

# Axes that name ways of transferring, in the order in which they are looked for; of a kind all are taken.
METHODS = (("strategy", "terms"), ("backbone", "backbone.name"), ("alpha",))
ALONE = ("strategy", "backbone", "data", "sweep")  # axes whose values say what they are
PROBLEM = ("data", "dataset@", "backbone")  # how names of axes begin that set another task
FIRST = {"strategy": ("scratch", "linear_probe"), "alpha": ("0", "0.0"), "terms": ("[]",)}  # as baselines
Values = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Result:
    """One finished job: its best validation value, and everything that was measured."""

    score: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One configuration over its repetitions.

    Attributes:
        problem, method, tuned: its values, by the kind of their axes.
        results: by repetition; those that failed are not there.
        keys: of the jobs, so that configurations with the same result are known.
    """

    problem: Values
    method: Values
    tuned: Values
    metric: str
    results: dict[Values, Result] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Mean of the best validation values."""
        return float(np.mean([result.score for result in self.results.values()]))

    @property
    def interval(self) -> Interval:
        """The reported metric, its mean and interval over repetitions."""
        return mean_interval(list(self.tests.values()))

    @property
    def tests(self) -> dict[Values, float]:
        """The reported metric by repetition."""
        return {rep: result.metrics[self.metric] for rep, result in self.results.items()}

    def mean(self, name: str) -> float:
        """Mean of any measure over the repetitions that have it; nan where none has."""
        found = [result.metrics[name] for result in self.results.values() if name in result.metrics]
        return float(np.mean(found)) if found else float("nan")


class Study:
    """A sweep as its comparison sees it.

    Args:
        layout: what the sweep wrote down: axes, points, what is compared.
        results: of the jobs that finished, by key.

    Attributes:
        cells: all configurations with a result at least once, in the order they were asked for.
        missing: how many points have no result.
        methods, problems, tuned, replicates: the axes by kind.
        baseline: what methods are compared with, a value for each of their axes.
    """

    def __init__(self, layout: Mapping[str, Any], results: Mapping[str, Result]) -> None:
        self.name, self.metric, self.monitor = layout["name"], layout["metric"], layout["monitor"]
        self.searched: bool = layout.get("searched", False)
        self.changed: list[str] = layout.get("changed", [])
        self.axes: list[str] = layout["axes"]
        self.replicates = [axis for axis in self.axes if axis in REPLICATES]
        self.methods = methods_of(self.axes) if layout["methods"] is None else list(layout["methods"])
        others = [axis for axis in self.axes if axis not in (*self.replicates, *self.methods)]
        self.problems = [axis for axis in others if axis.startswith(PROBLEM)]
        self.tuned = [axis for axis in others if axis not in self.problems]
        self.values = {axis: list(dict.fromkeys(p["values"][axis] for p in layout["points"])) for axis in self.axes}
        self._check(layout["baseline"])
        if lacking := [key for key, result in results.items() if self.metric not in result.metrics]:
            raise UsageError(f"{self.metric}: {len(lacking)} of {len(results)} jobs did not measure it; choose another")
        self.baseline = baseline_of(layout["baseline"], self.methods, self.values)
        self.missing = sum(point["key"] not in results for point in layout["points"])
        self.jobs = len({point["key"] for point in layout["points"]})
        self.points = len(layout["points"])
        cells: dict[tuple[Values, Values, Values], Cell] = {}
        for point in layout["points"]:
            problem, method, tuned = (
                self._of(point["values"], axes) for axes in (self.problems, self.methods, self.tuned)
            )
            cell = cells.setdefault((problem, method, tuned), Cell(problem, method, tuned, self.metric))
            cell.keys.append(point["key"])
            # Repetitions with one result by contract are one: counted apart they would look like certainty.
            if point["key"] in results and point["key"] not in cell.keys[:-1]:
                cell.results[self._of(point["values"], self.replicates)] = results[point["key"]]
        self.cells = [cell for cell in cells.values() if cell.results]

    def _check(self, baseline: str | None) -> None:
        """Makes sure that what is compared varies.

        Raises:
            UsageError: where it does not, naming what does.
        """
        named = [*self.methods, *([baseline.partition("=")[0]] if baseline else [])]
        axis, _, value = (baseline or "").partition("=")
        if baseline and not self.searched and axis in self.values and value not in self.values[axis]:
            known = ", ".join(f"{axis}={value}" for value in self.values[axis])
            raise UsageError(f"{baseline}: is no point of {self.name}; choose of {known}")
        if unknown := [axis for axis in named if axis not in self.axes]:
            raise UsageError(f"{unknown[0]}: is no axis of {self.name}; choose of {', '.join(self.axes)}")

    @staticmethod
    def _of(values: Mapping[str, str], axes: Sequence[str]) -> Values:
        return tuple((axis, values[axis]) for axis in axes)

    @property
    def more_is_better(self) -> bool:
        """Of the reported metric."""
        return METRICS[self.metric.rsplit("/", 1)[-1]]

    @property
    def scale(self) -> float:
        """Shares are shown in per cent."""
        return 1.0 if self.metric.endswith("nll") else 100.0

    @property
    def digits(self) -> int:
        """After the point, of what is shown."""
        return 1 if self.scale != 1 else 4

    @property
    def unit(self) -> str:
        """Of differences."""
        return "" if self.scale == 1 else "points"

    @cached_property
    def arms(self) -> dict[tuple[Values, Values], list[Cell]]:
        """The configurations of each method on each problem, among which validation chooses."""
        arms: dict[tuple[Values, Values], list[Cell]] = {}
        for cell in self.cells:
            arms.setdefault((cell.problem, cell.method), []).append(cell)
        return arms

    def chosen(self, cells: Sequence[Cell]) -> Cell:
        """Returns the configuration with the best mean validation value, of those with the most repetitions.

        Test values are not looked at (Gulrajani and Lopez-Paz 2021: the rule of choice moves results more than the
        method does). Of equal ones the first that was asked for is taken.
        """
        most = max(len(cell.results) for cell in cells)
        whole = [cell for cell in cells if len(cell.results) == most]
        sign = 1 if METRICS[self.monitor.rsplit("/", 1)[-1]] else -1
        return max(whole, key=lambda cell: sign * cell.score)

    @property
    def baseline_method(self) -> Values:
        """The baseline as values of the methods' axes."""
        return tuple((axis, self.baseline[axis]) for axis in self.methods)


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Result]]:
    """Reads a comparison back from its files: what the sweep wrote down, and the points that were measured."""
    layout = json.loads((folder / LAYOUT).read_text())
    keys = {tuple(point["values"][axis] for axis in layout["axes"]): point["key"] for point in layout["points"]}
    results = {}
    with (folder / "points.csv").open() as file:
        for line in csv.DictReader(file):
            place = tuple(line[axis] for axis in layout["axes"])
            numbers = {name: float(value) for name, value in line.items() if name not in layout["axes"] and value}
            results[keys[place]] = Result(numbers["score"], numbers)
    return layout, results


def side_by_side(
    sweeps: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Joins sweeps, given as what they wrote down and what their jobs measured, each as one method.

    Raises:
        UsageError: for sweeps that do not choose and report by the same metrics.
    """
    layouts = [layout for layout, _ in sweeps]
    for name in ("monitor", "metric"):
        if len(found := {layout[name] for layout in layouts}) > 1:
            raise UsageError(f"{', '.join(sorted(found))}: sweeps with another {name} cannot be compared")
    if len({layout["name"] for layout in layouts}) < len(layouts):
        raise UsageError(f"{layouts[0]['name']}: stands there twice; name different sweeps")
    for name in {name for layout in layouts for name in layout.get("task", {})}:
        if len(found := {str(layout.get("task", {}).get(name)) for layout in layouts}) > 1:
            raise UsageError(f"{name} {' and '.join(sorted(found))}: sweeps on other data cannot be compared")
    axes = list(dict.fromkeys(axis for layout in layouts for axis in layout["axes"]))
    points = [
        {
            "key": point["key"],
            "values": {axis: point["values"].get(axis, "-") for axis in axes} | {"sweep": layout["name"]},
        }
        for layout in layouts
        for point in layout["points"]
    ]
    joined = {**layouts[0], "name": " and ".join(layout["name"] for layout in layouts), "axes": ["sweep", *axes]}
    joined |= {"methods": ["sweep"], "baseline": None, "points": points, "searched": True, "changed": ["methods"]}
    return joined, {key: value for _, measured in sweeps for key, value in measured.items()}


def methods_of(axes: Sequence[str]) -> list[str]:
    """Returns the axes whose values are compared unless the configuration says: ways of transfer, networks, alphas."""
    for kind in METHODS:
        if found := [axis for axis in axes if axis in kind]:
            return found
    others = [axis for axis in axes if axis not in REPLICATES and not axis.startswith(PROBLEM)]
    return others[:1] or [axis for axis in axes if axis not in REPLICATES][:1]


def baseline_of(declared: str | None, methods: Sequence[str], values: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns what methods are compared with: as declared; else scratch, a linear probe, alpha 0, or the first."""
    baseline = {}
    for axis in methods:
        known = [value for value in FIRST.get(axis, ()) if value in values[axis]]
        baseline[axis] = known[0] if known else values[axis][0]
    if declared is not None:
        axis, _, value = declared.partition("=")
        baseline[axis] = value
    return baseline


def shown(values: Values) -> str:
    """Returns values to read: the strategy's alone, others with their axis, numbers with the digits that tell."""
    known = [(axis, short(value)) for axis, value in values if value != "-"]  # which a sweep beside it may lack
    return " ".join(value if axis in ALONE else f"{axis}={value}" for axis, value in known)
