"""The tables of a comparison: as text for the terminal, MLflow and the page, and as numbers in a file."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from tlexp.comparison.analysis import (
    MethodResult,
    PairedContrast,
    SourceEffect,
    budget_axis,
    equivalent_labels,
    learning_curves,
    rank_over_data_sets,
)
from tlexp.comparison.axes import describe
from tlexp.comparison.results import SweepResults
from tlexp.comparison.statistics import Interval
from tlexp.reporting.console import shorten_paths

COSTS = {
    "trainable_parameters": "trainable params",
    "steps": "steps",
    "training_examples": "examples",
    "forward_passes": "forward passes",
    "fit_seconds": "fit time (s)",
    "examples_per_second": "examples/s",
    "peak_memory_mib": "memory (MiB)",
}
COUNTED = ("trainable_parameters", "steps", "training_examples", "forward_passes")
REPETITIONS_FOR_A_CLAIM = 10  # with fewer, exact tests cannot reject in a family of any size
NOTABLE_OVERLAP = 0.1  # of repetitions, from which on a note says so
LONGEST_PATH = 24  # characters shown of a path
PAGE_ONLY = ("validation", "d_z", "wins", "oracle gap")  # columns that a terminal has no room for
TERMS = {
    "validation": "mean over repetitions of the validation score of each run's kept checkpoint; it selects, and is no"
    " result",
    "test": "mean with its 95 % t interval over repetitions; see the notes for what these share",
    "difference": "mean of the paired differences with its 95 % interval: both methods on the same splits and seeds",
    "p (Holm)": "p-value of the paired t-test, adjusted for the number of tests of the table (Holm 1979)",
    "d_z": "effect size: mean of the differences over their standard deviation",
    "wins": "repetitions on which the method is the better one, and those on which both are equal",
    "verdict": "equivalent where the 90 % interval of the difference is within the sweep's rope, else better or worse"
    " where p (Holm) is below 0.05, else undecided",
    "oracle gap": "how much better the best configuration on the test is than the selected one; the maximum of noisy"
    " means, so biased upwards",
    "candidates": "configurations among which validation selected",
    "error vs alpha=0": "error with the source's loss minus error without it; above 0 the source hurts",
    "worst class": "the class with the lowest accuracy, mean over runs",
    "ECE": "expected calibration error on the test, 15 bins, mean over runs; scaled: after a temperature that fits"
    " validation, where it has a hundred examples",
    "ensemble": "accuracy of the mean of the probabilities of all runs",
    "difference over examples": "difference vs the baseline with a 95 % interval that covers other test examples too,"
    " from the mean squares of runs and of examples",
    "the source": "hurts or helps where p (Holm) is below 0.05, may hurt or may help where only the interval excludes"
    " 0, equivalent where its effect is within the sweep's rope",
}


def method_table(results: SweepResults, rows: Sequence[MethodResult]) -> pd.DataFrame:
    """Returns the main table as text, a row for each method on each problem."""
    baseline = describe(results.baseline_method) or "baseline"
    lines = []
    for row in rows:
        contrast = row.contrast
        line = dict(row.problem)
        line["method"] = (describe(row.method) or results.name) + (" *" if row.selected else "")
        if results.tuned:
            line["selected by validation"] = describe(row.config.tuned) or "-"
        line["validation"] = f"{row.config.score:.4f}"
        line["test"] = format_interval(results, row.test)
        if results.methods:
            line[f"difference vs {baseline}"] = "" if contrast is None else format_difference(results, contrast)
            line["p (Holm)"] = "" if contrast is None else format_p(contrast.p_holm)
            d_z = math.nan if contrast is None else contrast.difference.d_z
            line["d_z"] = "" if math.isnan(d_z) else f"{d_z:+.2f}"
            line["wins"] = "" if contrast is None else format_wins(contrast, results.higher_is_better)
            verdict = "" if contrast is None else contrast.verdict(results.rope, results.higher_is_better)
            line["verdict"] = verdict
        if results.tuned:
            gap = f"{results.scale * row.oracle_gap:.{results.digits}f}"
            line["oracle gap"] = gap if row.candidates > 1 else "-"
            line["candidates"] = str(row.candidates)
        lines.append(line)
    return without_empty_columns(pd.DataFrame(lines))


def without_empty_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table without the columns that say nothing."""
    nothing = ({"", "-"}, {"1"})  # the latter of candidates
    says = [name for name in table if not set(table[name]) <= nothing[name == "candidates"]]
    return table[says]


def explained(
    results: SweepResults, rows: Sequence[MethodResult], effects: Sequence[SourceEffect], others: Sequence[str] = ()
) -> dict[str, str]:
    """Returns the meaning of each column of the tables, and of others, that is not plain."""
    columns = [*method_table(results, rows), *(effect_table(results, effects) if effects else ()), *others]
    return {name: text for name, text in TERMS.items() if any(str(column).startswith(name) for column in columns)}


def cost_table(results: SweepResults, rows: Sequence[MethodResult]) -> pd.DataFrame:
    """Returns the cost of each method as text: means over repetitions."""
    lines = []
    for row in rows:
        line = {**dict(row.problem), "method": describe(row.method) or results.name}
        for metric, column in COSTS.items():
            format_number = format_count if metric in COUNTED else format_cost
            line[column] = format_number(row.config.mean(metric))
        lines.append(line)
    return without_empty_columns(pd.DataFrame(lines))


def effect_table(results: SweepResults, effects: Sequence[SourceEffect]) -> pd.DataFrame:
    """Returns the effect of every alpha as text."""
    lines = []
    for effect in effects:
        gap = effect.gap
        line = {"method": describe((*effect.problem, *effect.method)) or results.name}
        line["alpha"] = effect.alpha + (" *" if effect.selected else "")
        line["test"] = format_interval(results, effect.test)
        line["error vs alpha=0"] = "" if gap is None else format_difference(results, gap)
        line["p (Holm)"] = "" if gap is None else format_p(gap.p_holm)
        line["wins"] = "" if gap is None else format_wins(gap, higher_is_better=False)
        line["the source"] = effect.verdict
        lines.append(line)
    return pd.DataFrame(lines)


# Cells ---------------------------------------------------------------------------------------------------------


def format_interval(results: SweepResults, interval: Interval) -> str:
    """Returns a mean and its interval, or the mean alone for a single repetition."""
    mean = f"{results.scale * interval.mean:.{results.digits}f}"
    if math.isnan(interval.low):
        return f"{mean} (n=1)"
    low, high = (f"{results.scale * bound:.{results.digits}f}" for bound in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def format_difference(results: SweepResults, contrast: PairedContrast) -> str:
    """Returns a mean difference and its interval, with signs."""
    interval = contrast.difference.interval
    mean = f"{results.scale * interval.mean:+.{results.digits}f}"
    if math.isnan(interval.low):
        return mean
    low, high = (f"{results.scale * bound:+.{results.digits}f}" for bound in (interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def format_p(p: float) -> str:
    """Returns a p-value with two significant digits."""
    return "" if math.isnan(p) else f"{p:.2g}"


def format_wins(contrast: PairedContrast, higher_is_better: bool) -> str:
    """Returns on how many of the common repetitions a method is the better one, and on how many neither is."""
    values = contrast.difference.values
    ties = f", {equal} equal" if (equal := values.count(0.0)) else ""
    return f"{contrast.wins(higher_is_better)} of {len(values)}{ties}"


def format_count(number: float) -> str:
    """Returns a number of parameters, such as 4.2M."""
    if math.isnan(number):
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def format_cost(number: float) -> str:
    """Returns a time, a rate or a size with three significant digits."""
    if math.isnan(number):
        return ""
    return f"{number:,.3g}" if number < 100 else f"{number:,.0f}"


# Notes ---------------------------------------------------------------------------------------------------------


def notes(results: SweepResults, rows: Sequence[MethodResult]) -> list[str]:
    """Returns what a reader must know to read the table."""
    repeated = " and ".join(results.replicates) or "one run"
    unit = ", %" if results.scale != 1 else ""
    size = f"{len(results.frame)} grid points, {results.jobs} unique jobs"
    lines = [f"{results.metric}{unit}: mean and 95 % t interval over {repeated}; {size}"]
    if results.unfinished:
        lines.append(f"{results.unfinished} grid points have no result: their jobs failed or have not run yet")
    lines += _choice_notes(results, rows)
    tested = sum(row.contrast is not None and not math.isnan(row.contrast.p_holm) for row in rows)
    if tested:
        tests = f"{tested} paired t-test{'s' if tested > 1 else ''}"
        lines.append(f"{tests} vs {describe(results.baseline_method)}, Holm-adjusted")
    lines += _design_notes(results, rows)
    if results.changed:
        lines.append(f"{', '.join(results.changed)}: chosen post hoc; treat p-values as exploratory")
    lines += [*_ranking_note(results, rows), *_label_notes(results, rows)]
    candidates = {describe(row.method): row.candidates for row in rows}
    if len(set(candidates.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in candidates.items())
        lines.append(f"unequal tuning budgets (configurations with different results): {listed}")
    phased = [row.config.frame for row in rows if _has_phases(row)]
    if early := sum(int((frame["best_epoch"] < frame["last_phase"]).sum()) for frame in phased):
        kept = sum(map(len, phased))
        lines.append(f"{early} of {kept} checkpoints of methods with phases are from before the last phase")
    fewest = min(row.test.n for row in rows)
    if fewest < REPETITIONS_FOR_A_CLAIM:
        lines.append(f"exploratory (n = {fewest}; use at least {REPETITIONS_FOR_A_CLAIM} for a claim)")
    return lines


def _has_phases(row: MethodResult) -> bool:
    """Returns whether a method trains different stages in different epochs."""
    return row.config.mean("last_phase") > 0 and "best_epoch" in row.config.frame


def _choice_notes(results: SweepResults, rows: Sequence[MethodResult]) -> list[str]:
    """Returns what the choice by validation rests on."""
    lines = [f"selected by the mean of {results.monitor}, the kept checkpoint's of each run"]
    if results.choose == "one_se":
        lines[0] += "; of those within one standard error of the best the one with the fewest trained parameters"
    if any(row.selected for row in rows):
        lines.append("* validation prefers it to every other method (paired over label draws, one-sided 5 %, Holm)")
    first = rows[0].config
    if first.draws == 1 and len(first.frame) > 1:
        examples = first.mean("val_examples")
        each = "" if math.isnan(examples) else f" of {examples:.0f} examples"
        lines.append(
            f"{len(first.frame)} repetitions share one label draw and one validation set{each}: intervals are for these"
            " labels, and validation recommends nothing; vary data.draw to ask about labels like these"
        )
    return lines


def _design_notes(results: SweepResults, rows: Sequence[MethodResult]) -> list[str]:
    """Returns what repetitions share, and what the intervals do about it."""
    lines = []
    contrast = next((row.contrast for row in rows if row.contrast is not None), None)
    found = rows[0].config.estimate(results.metric) if contrast is None else contrast.difference.estimate
    if found.components:
        parts = (f"{name} {results.scale * value:.{results.digits + 1}f}" for name, value in found.components.items())
        what = "the metric" if contrast is None else "the first difference"
        crossed = " and ".join(results.replicates)
        lines.append(f"{crossed} are crossed: two-way intervals; standard deviations of {what}: {', '.join(parts)}")
    config = rows[0].config
    if config.overlap >= NOTABLE_OVERLAP:
        labels, pool = config.mean("labels"), config.mean("label_pool")
        lines.append(
            f"each draw takes {labels:.0f} of {pool:.0f} labels, so draws overlap: intervals are corrected for it, and"
            " are about labels like these rather than about this pool"
        )
    return lines


def _ranking_note(results: SweepResults, rows: Sequence[MethodResult]) -> list[str]:
    """Returns the mean ranks of the methods, where there are enough data sets."""
    if (ranked := rank_over_data_sets(results, rows)) is None:
        return []
    methods, ranking = ranked
    listed = ", ".join(f"{describe(name)} {rank:.2f}" for name, rank in zip(methods, ranking.mean_ranks, strict=True))
    test = f"Friedman p = {ranking.p:.2g}, critical difference {ranking.critical_difference:.2f} (Nemenyi, 5 %)"
    return [f"mean ranks over data sets: {listed}; {test}"]


def _label_notes(results: SweepResults, rows: Sequence[MethodResult]) -> list[str]:
    """Returns how many labels the baseline needs for what the other methods reach, where the budget varies."""
    if (axis := budget_axis(results)) is None or not results.higher_is_better:
        return []
    curves = learning_curves(rows, axis)
    baseline = describe(results.baseline_method)
    lines = []
    for (rest, method), curve in curves.items():
        reference = curves.get((rest, results.baseline_method))
        if reference is None or reference is curve:
            continue
        needed = equivalent_labels(curve, reference)
        known = [(n, other) for (n, _), other in zip(curve, needed, strict=True) if not math.isnan(other)]
        if known:
            own, others = (", ".join(f"{number:.3g}" for number in numbers) for numbers in zip(*known, strict=True))
            name = describe((*rest, *method))
            lines.append(f"{name} with {own} labels matches {baseline} with {others} (log-linear interpolation)")
    return lines


# Output --------------------------------------------------------------------------------------------------------


def rich_table(title: str, table: pd.DataFrame, without: Sequence[str] = ()) -> Table:
    """Returns a table for the terminal."""
    shown = table.drop(columns=[*without], errors="ignore").apply(_shortened)
    rich = Table(title=escape(title), title_justify="left")
    for column in map(str, shown):
        keep_whole = column in ("method", "test") or column.startswith("difference")
        min_width = 14 if column == "selected by validation" else None
        rich.add_column(escape(column), no_wrap=keep_whole, min_width=min_width, overflow="fold")
    for row in shown.itertuples(index=False):
        rich.add_row(*map(escape, row))
    return rich


def _shortened(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Returns a column with the ends of its long paths, where these tell them apart."""
    short = column.map(lambda cell: shorten_paths(cell, LONGEST_PATH))
    return short if short.nunique() == column.nunique() else column


def markdown(results: SweepResults, rows: Sequence[MethodResult]) -> str:
    """Returns the main table and its notes in Markdown, for MLflow's description of the sweep or a README."""
    table = method_table(results, rows)
    lines = [list(map(str, table)), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    bullets = "\n".join("- " + note.replace("*", r"\*") for note in notes(results, rows))
    return f"{text}\n\n{bullets}"


def write_comparison(file: Path, results: SweepResults, rows: Sequence[MethodResult]) -> None:
    """Writes the comparison as numbers, a row for each method on each problem."""
    lines = []
    for row in rows:
        tests = row.config.frame[results.metric]
        line: dict[str, Any] = {**dict(row.problem), **dict(row.method), **dict(row.config.tuned)}
        line |= {"n": row.test.n, "validation": row.config.score, "mean": row.test.mean}
        line |= {"sd": tests.std(), "low": row.test.low, "high": row.test.high}
        line |= {"median": tests.median(), "min": tests.min()}
        if row.contrast is not None:
            difference = row.contrast.difference
            line |= {"difference": difference.interval.mean, "difference_low": difference.interval.low}
            line |= {"difference_high": difference.interval.high, "pairs": difference.interval.n, "p": difference.p}
            line |= {"p_holm": row.contrast.p_holm, "p_wilcoxon": row.contrast.p_wilcoxon, "d_z": difference.d_z}
            line |= {"wins": row.contrast.wins(results.higher_is_better)}
            worse, equal, better = difference.estimate.probabilities(results.rope)
            worse, better = (worse, better) if results.higher_is_better else (better, worse)
            line |= {"p_worse": worse, "p_equal": equal, "p_better": better, "df": difference.estimate.df}
            line |= {"verdict": row.contrast.verdict(results.rope, results.higher_is_better)}
            line |= {f"sd_{name}": value for name, value in difference.estimate.components.items()}
        line |= {"oracle_gap": row.oracle_gap, "trials": row.candidates, "best": row.best, "preferred": row.selected}
        lines.append(line | {metric: row.config.mean(metric) for metric in COSTS})
    frame = pd.DataFrame(lines)
    counts = {name: "Int64" for name in ("pairs", "wins") if name in frame}
    frame.astype(counts).to_csv(file, index=False, lineterminator="\n")
