"""The results of a sweep as one tidy frame, a row for each grid point, and its configurations over repetitions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from tlexp import run_folder
from tlexp.comparison.axes import ABSENT, REPLICATES, Values, baseline_values, changes_test_set, is_problem, method_axes
from tlexp.comparison.designs import Estimate, estimate, overlap_of_draws
from tlexp.comparison.statistics import (
    DIGITS,
    SIGNIFICANCE_LEVEL,
    Interval,
    PairedDifference,
    holm,
    paired_difference,
)
from tlexp.errors import UsageError
from tlexp.metric_names import higher_is_better

POINTS = "points.csv"
DRAW = "split_seed/draw"  # the column that tells which repetitions share their splits and labels
ROPE = 0.01  # differences up to a point are practically 0, unless a sweep declares another value
Metrics = Mapping[str, Mapping[str, float]]  # what each finished job measured, by its key


@dataclass(frozen=True, eq=False)
class ConfigResult:
    """One configuration over its repetitions.

    Attributes:
        problem, method, tuned: its values, by the kind of their axes.
        metric: the reported one.
        keys: of its jobs; configurations with the same keys have the same results.
        frame: a row for each repetition that has a result, indexed by the values of the replicate axes.
    """

    problem: Values
    method: Values
    tuned: Values
    metric: str
    keys: tuple[str, ...]
    frame: pd.DataFrame

    @property
    def score(self) -> float:
        """Mean of the best validation values."""
        return self.mean("score")

    @property
    def interval(self) -> Interval:
        """The reported metric, its mean and interval over repetitions."""
        return Interval.of(self.estimate(self.metric), *bounds(self.metric))

    def estimate(self, name: str) -> Estimate:
        """Returns the mean of a metric over repetitions with the distribution of its error."""
        factors = [] if self.always_tests_alike(name) else self._factors(self.frame, self.repeats_itself)
        return estimate(self.frame[name].tolist(), factors, self.overlap)

    def difference(self, other: "ConfigResult", name: str) -> PairedDifference | None:
        """Returns this configuration's metric minus another's on the repetitions that both have; None without any."""
        common = self.frame.index.intersection(other.frame.index, sort=None)
        if not len(common):
            return None
        own, others = self.frame.loc[common], other.frame.loc[common]
        factors = self._factors(own, self.repeats_itself and other.repeats_itself)
        if self.always_tests_alike(name) and other.always_tests_alike(name):
            factors = []
        return paired_difference(own[name].tolist(), others[name].tolist(), factors, self.overlap)

    @property
    def draws(self) -> int:
        """Number of label draws, each with a validation set of its own."""
        return int(self.frame[DRAW].nunique())

    @property
    def repeats_itself(self) -> bool:
        """Whether seeds change nothing: all that was measured is equal to the bit where draws and networks are."""
        measured = [name for name in self.frame if str(name).startswith(("test/", "val/", "score"))]
        shared = [levels for levels in self._factors(self.frame, True) if len(set(levels)) > 1]
        groups = self.frame[measured].groupby(shared) if shared else [((), self.frame[measured])]
        return all(len(group.drop_duplicates()) == 1 for _, group in groups)

    def always_tests_alike(self, name: str) -> bool:
        """Whether a metric is of the test, and no repetition changes any of the test: labels do not matter to it."""
        tests = self.frame[[column for column in self.frame if str(column).startswith("test/")]]
        return name.startswith("test/") and len(tests.drop_duplicates()) == 1

    @property
    def overlap(self) -> float:
        """How much repetitions share, for the variance of their mean: labels of one pool, tests of one data set."""
        split_seeds, draws = zip(*(str(value).split("/") for value in self.frame[DRAW]), strict=True)
        labels, pool, tested = (self.mean(name) for name in ("labels", "label_pool", "test_examples"))
        overlaps = [0.0]
        if not math.isnan(pool):
            overlaps += [overlap_of_draws(labels, pool)] if len(set(draws)) > 1 else []
            overlaps += [tested / pool] if len(set(split_seeds)) > 1 else []
        return max(overlaps)

    @staticmethod
    def _factors(frame: pd.DataFrame, only_data: bool) -> list[list[Any]]:
        """Returns what runs share, the broadest first: label draws, source networks and, unless nothing but what a run
        starts from matters, seeds.
        """
        names = [name for name in ("pretrain.seed", "seed") if name in frame.index.names]
        names = names[:1] if only_data and "pretrain.seed" in names else [] if only_data else names
        return [frame[DRAW].tolist(), *(frame.index.get_level_values(name).tolist() for name in names)]

    @property
    def tests(self) -> dict[Any, float]:
        """The reported metric by repetition."""
        return dict(zip(self.frame.index, self.frame[self.metric].tolist(), strict=True))

    def mean(self, name: str) -> float:
        """Mean of any metric over the repetitions that have it; NaN where none has."""
        if name not in self.frame or not (values := self.frame[name].dropna().to_numpy()).size:
            return float("nan")
        return float(values.mean())


@dataclass(frozen=True, eq=False)
class Choice:
    """What validation says about some configurations.

    Attributes:
        best: the one with the best mean score.
        chosen: the same, or by the rule of one standard error the simplest that is as good.
        members: those that validation does not tell apart from the best: differences are paired over label draws, tests
            are one-sided at 5 % and Holm-adjusted. With one draw these are all.
        draws: label draws, each with a validation set of its own.
    """

    best: ConfigResult
    chosen: ConfigResult
    members: tuple[ConfigResult, ...]
    draws: int

    @property
    def preferred(self) -> ConfigResult | None:
        """The best where validation tells all others apart from it; else None."""
        return self.best if len(self.members) == 1 and self.draws > 1 else None


class SweepResults:
    """A sweep as its comparison sees it.

    Args:
        manifest: what the sweep wrote down: axes, grid points, what is compared.
        metrics: what the finished jobs measured, by key.

    Attributes:
        frame: a row for each grid point: a column for each axis, `key`, `score`, and each metric; NaN where missing.
        methods, problems, tuned, replicates: the axes by kind.
        baseline: what methods are compared with, a value for each of their axes.

    Raises:
        UsageError: where what is compared or reported is not in the sweep.
    """

    def __init__(self, manifest: Mapping[str, Any], metrics: Metrics) -> None:
        self.name, self.metric, self.monitor = manifest["name"], manifest["metric"], manifest["monitor"]
        self.searched: bool = manifest.get("searched", False)
        self.rope: float = manifest.get("rope", ROPE)
        self.choose: str = manifest.get("choose", "best")
        self.jobs_folder = Path(manifest.get("jobs", "outputs/jobs"))
        self.changed: list[str] = manifest.get("changed", [])
        self.axes: list[str] = manifest["axes"]
        self.replicates = [axis for axis in self.axes if axis in REPLICATES]
        self._other_tests: list[str] = manifest.get("other_tests", [])
        self.methods = compared_axes(manifest)
        others = [axis for axis in self.axes if axis not in (*self.replicates, *self.methods)]
        self.problems = [axis for axis in others if is_problem(axis) or axis in self._other_tests]
        self.tuned = [axis for axis in others if axis not in self.problems]
        self.frame = tidy_frame(manifest["points"], metrics)
        self.values = {axis: self.frame[axis].unique().tolist() for axis in self.axes}
        self._check(manifest["baseline"])
        if lacking := [key for key, measured in metrics.items() if self.metric not in measured]:
            raise UsageError(f"{self.metric}: {len(lacking)} of {len(metrics)} jobs did not measure it; choose another")
        self.baseline = baseline_values(manifest["baseline"], self.methods, self.values)

    def _check(self, baseline: str | None) -> None:
        """Checks that what is compared varies.

        Raises:
            UsageError: where it does not, naming what does.
        """
        axis, _, value = (baseline or "").partition("=")
        if baseline and not self.searched and axis in self.values and value not in self.values[axis]:
            known = ", ".join(f"{axis}={value}" for value in self.values[axis])
            raise UsageError(f"{baseline}: not in {self.name}; choose one of {known}")
        if unknown := [name for name in (*self.methods, *([axis] if axis else [])) if name not in self.axes]:
            raise UsageError(f"{unknown[0]}: not an axis of {self.name}; choose one of {', '.join(self.axes)}")
        if different := [name for name in self.methods if changes_test_set(name) or name in self._other_tests]:
            remedy = "its values have different test sets, so they are problems and no methods; leave it out"
            raise UsageError(f"methods={','.join(self.methods)}: {different[0]}: {remedy}")
        if axis and axis not in self.methods and not self.searched:
            remedy = f"name it among the methods, such as {','.join([*self.methods, axis])}"
            raise UsageError(f"{baseline}: {axis} is not compared but selected by validation; {remedy}")

    @property
    def unfinished(self) -> int:
        """Number of grid points without a result."""
        return int(self.frame["score"].isna().sum())

    @property
    def jobs(self) -> int:
        """Number of jobs, of which several grid points may share one."""
        return int(self.frame["key"].nunique())

    @property
    def higher_is_better(self) -> bool:
        """Direction of the reported metric."""
        return higher_is_better(self.metric)

    @property
    def scale(self) -> float:
        """Proportions are shown in per cent."""
        return 100.0 if bounds(self.metric) == (0, 1) else 1.0

    @property
    def digits(self) -> int:
        """Digits after the point of what is shown."""
        return 1 if self.scale != 1 else 4

    @property
    def unit(self) -> str:
        """Unit of differences."""
        return "" if self.scale == 1 else "points"

    @property
    def baseline_method(self) -> Values:
        """The baseline as values of the method axes."""
        return tuple((axis, self.baseline[axis]) for axis in self.methods)

    @cached_property
    def configs(self) -> list[ConfigResult]:
        """All configurations with at least one result, in the order of the grid."""
        columns = [*self.problems, *self.methods, *self.tuned]
        groups = self.frame.groupby(columns, sort=False) if columns else [((), self.frame)]
        configs = []
        for _, points in groups:
            # Repetitions that share a job are one: counted apart they would look like certainty.
            finished = points.drop_duplicates("key").dropna(subset="score")
            if len(finished):
                first = points.iloc[0]
                problem, method, tuned = (
                    tuple((axis, str(first[axis])) for axis in axes)
                    for axes in (self.problems, self.methods, self.tuned)
                )
                repetitions = finished.set_index(self.replicates or finished.index.map(lambda _: "only"))
                keys = tuple(points["key"])
                configs.append(ConfigResult(problem, method, tuned, self.metric, keys, repetitions))
        return configs

    @cached_property
    def by_method(self) -> dict[tuple[Values, Values], list[ConfigResult]]:
        """The configurations of each method on each problem, among which validation selects."""
        groups: dict[tuple[Values, Values], list[ConfigResult]] = {}
        for config in self.configs:
            groups.setdefault((config.problem, config.method), []).append(config)
        return groups

    def select(self, configs: Sequence[ConfigResult]) -> ConfigResult:
        """Returns the configuration that validation chooses; see `choice`."""
        return self.choice(configs).chosen

    def choice(self, configs: Sequence[ConfigResult]) -> Choice:
        """Returns what validation says about configurations, among those with the most repetitions.

        The best mean score wins. Test values play no part (Gulrajani and Lopez-Paz 2021: the selection rule affects
        results more than the method does). Of those that are equal to `DIGITS` digits the first of the grid is taken.
        With `choose=one_se` it is the one with the fewest trained parameters among those within one standard error of
        the best (Breiman et al. 1984), of equal ones the first of the grid.
        """
        most = max(len(config.frame) for config in configs)
        complete = [config for config in configs if len(config.frame) == most]
        sign = 1 if higher_is_better(self.monitor) else -1
        best = max(complete, key=lambda config: round(sign * config.score, DIGITS))
        chosen = best
        if self.choose == "one_se" and (variance := best.estimate("score").variance) > 0:
            as_good = [config for config in complete if sign * (best.score - config.score) <= math.sqrt(variance)]
            chosen = min(as_good, key=lambda config: config.mean("trainable_parameters"))
        return Choice(best, chosen, self._not_told_apart(best, complete, sign), best.draws)

    def _not_told_apart(
        self, best: ConfigResult, configs: Sequence[ConfigResult], sign: int
    ) -> tuple[ConfigResult, ...]:
        others = [config for config in configs if config is not best]
        if best.draws < 2:
            return (best, *others)
        p_values = []
        for other in others:
            difference = best.difference(other, "score")
            two_sided = math.nan if difference is None else difference.p
            # The best is better by its mean, so that half of the two-sided p-value is the one-sided one.
            p_values.append(1.0 if math.isnan(two_sided) else two_sided / 2)
        adjusted = zip(others, holm(p_values), strict=True)
        return (best, *(other for other, p in adjusted if p >= SIGNIFICANCE_LEVEL))


def bounds(metric: str) -> tuple[float, float]:
    """Returns the range of a metric."""
    return (0.0, {"nll": math.inf, "brier": 2.0}.get(metric.rsplit("/", 1)[-1], 1.0))


def tidy_frame(points: Sequence[Mapping[str, Any]], metrics: Metrics) -> pd.DataFrame:
    """Returns a row for each grid point: its values by axis, the key of its job, and what the job measured."""
    keys = pd.DataFrame([{**point["values"], "key": point["key"], DRAW: draw_of(point)} for point in points])
    measured = pd.DataFrame.from_dict({key: dict(values) for key, values in metrics.items()}, orient="index")
    if "score" not in measured:
        measured["score"] = float("nan")
    measured = measured.drop(columns=[name for name in measured if name in keys])  # such as lr, where it is an axis
    frame = keys.join(measured, on="key")
    first = [*(points[0]["values"] if points else ()), "key", DRAW, "score"]
    return frame[[*first, *(name for name in frame if name not in first)]]


def draw_of(point: Mapping[str, Any]) -> str:
    """Returns which splits and label draw a grid point has, as `split_seed/draw`.

    A sweep writes it down, since both may follow the seed; without that the axes say it.
    """
    values = point["values"]
    return str(point.get("draw", f"{values.get('split_seed', '')}/{values.get('data.draw', '')}"))


def write_points(file: Path, results: SweepResults) -> None:
    """Writes the grid points that have a result of their own, with all that was measured."""
    rows = results.frame.dropna(subset="score")
    others = [axis for axis in results.axes if axis not in results.replicates]
    rows.drop_duplicates([*others, "key"]).drop(columns=["key", DRAW]).to_csv(file, index=False, lineterminator="\n")


def read_comparison(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Reads a comparison back from its files: the sweep's manifest, and what was measured by key.

    Raises:
        UsageError: for a folder without them.
    """
    for name in (run_folder.MANIFEST, POINTS):
        if not (folder / name).is_file():
            raise UsageError(f"{folder}: has no {name}; give the folder of a finished comparison")
    try:
        manifest = run_folder.read_manifest(folder)
        axes: list[str] = manifest["axes"]
    except (ValueError, KeyError) as error:
        raise UsageError(f"{folder / run_folder.MANIFEST}: corrupt ({error}); rerun the sweep's command") from error
    keys = {tuple(point["values"][axis] for axis in axes): point["key"] for point in manifest["points"]}
    texts = pd.read_csv(folder / POINTS, dtype=str, keep_default_na=False)
    metrics = {}
    for row in texts.to_dict("records"):
        key = keys[tuple(row[axis] for axis in axes)]
        metrics[key] = {str(name): float(text) for name, text in row.items() if name not in axes and text}
    return manifest, metrics


def compared_axes(manifest: Mapping[str, Any]) -> list[str]:
    """Returns the axes whose values a sweep compares: those it declares, or those that its axes suggest."""
    if manifest["methods"] is not None:
        return list(manifest["methods"])
    return method_axes(manifest["axes"], manifest.get("other_tests", ()))


def with_questions(manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a sweep's manifest with other questions than its own, which notes name; None leaves one as it is."""
    own = {**manifest, "methods": compared_axes(manifest)}
    changed = {key: value for key, value in asked.items() if value is not None and value != own[key]}
    return {**manifest, **changed, "changed": [*manifest.get("changed", ()), *changed]}


def side_by_side(sweeps: Sequence[tuple[Mapping[str, Any], Metrics]]) -> tuple[dict[str, Any], Metrics]:
    """Joins sweeps, given as manifest and metrics, each as one method.

    Raises:
        UsageError: for sweeps that select and report by different metrics, or on different data.
    """
    manifests = [manifest for manifest, _ in sweeps]
    for name in ("monitor", "metric"):
        if len(different := {manifest[name] for manifest in manifests}) > 1:
            raise UsageError(f"{', '.join(sorted(different))}: sweeps with a different {name} cannot be compared")
    if len({manifest["name"] for manifest in manifests}) < len(manifests):
        raise UsageError(f"{manifests[0]['name']}: given twice; name different sweeps")
    for name in {name for manifest in manifests for name in manifest.get("task", {})}:
        if len(different := {str(manifest.get("task", {}).get(name)) for manifest in manifests}) > 1:
            raise UsageError(f"{name} {' and '.join(sorted(different))}: sweeps on different data cannot be compared")
    axes = list(dict.fromkeys(axis for manifest in manifests for axis in manifest["axes"]))
    points = []
    for manifest in manifests:
        for point in manifest["points"]:
            values = {axis: point["values"].get(axis, ABSENT) for axis in axes}
            points.append({**point, "values": {"sweep": manifest["name"], **values}})
    joined = {**manifests[0], "name": " and ".join(manifest["name"] for manifest in manifests)}
    joined |= {"axes": ["sweep", *axes], "methods": ["sweep"], "baseline": None, "points": points}
    joined |= {"searched": True, "changed": ["methods"]}
    return joined, {key: value for _, measured in sweeps for key, value in measured.items()}
