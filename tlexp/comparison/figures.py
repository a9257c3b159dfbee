"""The figures of a comparison."""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

from tlexp.comparison.analysis import MethodResult, SourceEffect, budget_axis, learning_curves
from tlexp.comparison.axes import describe
from tlexp.comparison.budget import budget_curves
from tlexp.comparison.results import SweepResults
from tlexp.comparison.statistics import SIGNIFICANCE_LEVEL

# Okabe and Ito's colours, and markers, stay apart for colour-blind readers and on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_PANELS = 6


def figures(results: SweepResults, rows: Sequence[MethodResult], effects: Sequence[SourceEffect]) -> dict[str, Figure]:
    """Returns the figures that the results have data for, by name."""
    candidates = {
        "methods": methods(results, rows),
        "alpha_curve": alpha_curve(results, effects),
        "negative_transfer": negative_transfer(results, effects),
        "label_efficiency": label_efficiency(results, rows),
        "heat_map": heat_map(results, rows),
        "cost": cost(results, rows),
        "budget": budget(results),
    }
    return {name: figure for name, figure in candidates.items() if figure is not None}


def methods(results: SweepResults, rows: Sequence[MethodResult]) -> Figure:
    """Draws the reported metric of each method with its interval; a filled dot is preferred by validation."""
    problems = list(dict.fromkeys(row.problem for row in rows))[:MAX_PANELS]
    heights = [0.9 + 0.36 * sum(row.problem == problem for row in rows) for problem in problems]
    figure = Figure(figsize=(7, sum(heights)), layout="constrained")
    panels = figure.subplots(len(problems), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, problem in zip(panels, problems, strict=True):
        shown = [row for row in rows if row.problem == problem][::-1]
        for height, row in enumerate(shown):
            _draw_interval(axes, height, row, results)
        axes.set_yticks(range(len(shown)), [describe(row.method) or results.name for row in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_title(describe(problem), fontsize=10, loc="left")
        axes.grid(axis="x", color="#dddddd")
    panels[-1].set_xlabel(f"{_metric_label(results)}, mean and 95 % interval")
    return figure


def _draw_interval(axes: Axes, height: int, row: MethodResult, results: SweepResults) -> None:
    mean, low, high = (results.scale * value for value in (row.test.mean, row.test.low, row.test.high))
    if math.isfinite(low):
        axes.plot([low, high], [height, height], color=COLOURS[0])
    axes.plot(mean, height, "o", color=COLOURS[0], markerfacecolor=COLOURS[0] if row.selected else "white")


def _metric_label(results: SweepResults) -> str:
    """Returns the axis label of the reported metric."""
    _, role, name = results.metric.split("/")
    return f"{role} test {name.replace('_', ' ')}" + (", %" if results.scale != 1 else "")


# alpha ---------------------------------------------------------------------------------------------------------


def alpha_curve(results: SweepResults, effects: Sequence[SourceEffect]) -> Figure | None:
    """Draws the reported metric against alpha / (1 + alpha), so that 0 and infinity are the ends.

    A star marks the alpha that validation prefers to all others; the curve itself shows the test.
    """
    problems = list(dict.fromkeys(effect.problem for effect in effects))[:MAX_PANELS]
    alphas = sorted({float(effect.alpha) for effect in effects})
    if len(alphas) < 2:
        return None
    columns = min(3, len(problems))
    lines = math.ceil(len(problems) / columns)
    figure = Figure(figsize=(max(5.5, 4.2 * columns), 3.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(problems) :]:
        axes.remove()
    for axes, problem in zip(panels.flat, problems, strict=False):
        methods = list(dict.fromkeys(effect.method for effect in effects))
        for method, (colour, marker) in zip(methods, styles(), strict=False):
            curve = [effect for effect in effects if (effect.problem, effect.method) == (problem, method)]
            if curve:
                _draw_curve(axes, results, curve, colour, marker)
        axes.xaxis.set_major_locator(FixedLocator([alpha_position(alpha) for alpha in alphas]))
        axes.set_xticklabels([f"{alpha:g}" for alpha in alphas], fontsize=8)
        axes.set(title=describe(problem), xlabel="alpha")
        axes.grid(axis="y", color="#dddddd")
    panels[0, 0].set_ylabel(_metric_label(results))
    panels[0, 0].legend(fontsize=8)
    return figure


def styles() -> Iterator[tuple[str, str]]:
    """Yields colours with markers, over and over."""
    return zip(cycle(COLOURS), cycle(MARKERS), strict=True)


def alpha_position(alpha: float) -> float:
    """Returns where an alpha is drawn, from 0 for target only to 1 for the source alone."""
    return 1.0 if math.isinf(alpha) else alpha / (1 + alpha)


def _draw_curve(axes: Axes, results: SweepResults, curve: Sequence[SourceEffect], colour: str, marker: str) -> None:
    curve = sorted(curve, key=lambda effect: float(effect.alpha))
    x = [alpha_position(float(effect.alpha)) for effect in curve]
    mean, low, high = (
        results.scale * np.array([getattr(effect.test, name) for effect in curve]) for name in ("mean", "low", "high")
    )
    axes.plot(x, mean, color=colour, marker=marker, label=describe(curve[0].method) or results.name, markersize=5)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for effect, position, value in zip(curve, x, mean, strict=True):
        if effect.selected:
            axes.plot(position, value, "*", color=colour, markersize=15, markeredgecolor="white")


def negative_transfer(results: SweepResults, effects: Sequence[SourceEffect]) -> Figure | None:
    """Draws error with alpha minus error without, one row per alpha (forest plot); coloured where the test rejects."""
    gaps = [effect for effect in effects if effect.gap is not None]
    if not gaps:
        return None
    figure = Figure(figsize=(7.5, 1.2 + 0.3 * len(gaps)), layout="constrained")
    axes = figure.subplots()
    colours = {"hurts": COLOURS[1], "helps": COLOURS[2]}
    for line, effect in enumerate(reversed(gaps)):
        assert effect.gap is not None
        gap = effect.gap.difference.interval
        mean, low, high = (results.scale * value for value in (gap.mean, gap.low, gap.high))
        colour = colours.get(effect.verdict, COLOURS[7])
        if math.isfinite(low):
            axes.plot([low, high], [line, line], color=colour)
        axes.plot(mean, line, "s", color=colour)
    names = [f"{describe((*effect.problem, *effect.method))} alpha={effect.alpha}" for effect in reversed(gaps)]
    axes.set_yticks(range(len(gaps)), [name.strip() for name in names], fontsize=8)
    axes.set_ylim(-0.8, len(gaps) - 0.2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"error with the source minus error without, {results.unit or 'nats'}: right of 0 the source hurts")
    axes.grid(axis="x", color="#dddddd")
    return figure


# Labels, problems, cost ----------------------------------------------------------------------------------------


def label_efficiency(results: SweepResults, rows: Sequence[MethodResult]) -> Figure | None:
    """Draws the reported metric against the label budget."""
    axis = budget_axis(results)
    if axis is None:
        return None
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    curves = learning_curves(rows, axis)
    for ((rest, method), curve), (colour, marker) in zip(curves.items(), styles(), strict=False):
        x = [labels for labels, _ in curve]
        mean, low, high = (
            results.scale * np.array([getattr(row.test, name) for _, row in curve]) for name in ("mean", "low", "high")
        )
        name = describe((*rest, *method)) or results.name
        axes.plot(x, mean, color=colour, marker=marker, markersize=5, label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ticks = sorted({float(value) for value in results.values[axis]})
    axes.set(xscale="log", ylabel=_metric_label(results), xlabel="labels per class" if axis == "data.shots" else axis)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.legend(fontsize=8)
    axes.grid(axis="y", color="#dddddd")
    return figure


def budget(results: SweepResults) -> Figure | None:
    """Draws the expected test of what validation selects against the number of trials, and against their time."""
    if not (curves := budget_curves(results)):
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    by_trials, by_time = figure.subplots(1, 2, sharey=True)
    for curve, (colour, marker) in zip(curves, styles(), strict=False):
        name = describe((*curve.problem, *curve.method)) or results.name
        for axes, x in ((by_trials, curve.trials), (by_time, curve.trials * curve.seconds)):
            y, low, high = (results.scale * values for values in (curve.expected, curve.low, curve.high))
            axes.plot(x, y, color=colour, marker=marker, markersize=4, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.grid(axis="y", color="#dddddd")
    by_trials.set(xlabel="trials", ylabel=f"expected {_metric_label(results)}")
    by_time.set(xlabel="fit time of the trials, s", xscale="log")
    by_trials.legend(fontsize=8)
    return figure


def heat_map(results: SweepResults, rows: Sequence[MethodResult]) -> Figure | None:
    """Draws each method's difference vs the baseline on each problem; a star marks p < 0.05 after Holm."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    names = [method for method in dict.fromkeys(row.method for row in rows) if method != results.baseline_method]
    if len(problems) < 2 or not names:
        return None
    values = np.full((len(names), len(problems)), np.nan)
    figure = Figure(figsize=(2.2 + 1.1 * len(problems), 1.8 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row.contrast is None or row.method not in names:
            continue
        y, x = names.index(row.method), problems.index(row.problem)
        values[y, x] = results.scale * row.contrast.difference.interval.mean
    limit = max(1e-9, float(np.nanmax(np.abs(values)))) if np.isfinite(values).any() else 1.0
    image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row in rows:
        if row.contrast is not None and row.method in names:
            y, x = names.index(row.method), problems.index(row.problem)
            digits = 1 if results.scale != 1 else 2
            star = " *" if row.contrast.p_holm < SIGNIFICANCE_LEVEL else ""
            colour = "white" if abs(values[y, x]) > 0.6 * limit else "black"
            axes.text(
                x,
                y,
                f"{values[y, x]:+.{digits}f}{star}",
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
            )
    axes.set_xticks(range(len(problems)), [describe(problem) for problem in problems], rotation=30, ha="right")
    axes.set_yticks(range(len(names)), [describe(name) for name in names])
    figure.colorbar(
        image, ax=axes, label=f"difference vs {describe(results.baseline_method)}, {results.unit or 'nats'}"
    )
    return figure


def cost(results: SweepResults, rows: Sequence[MethodResult]) -> Figure | None:
    """Draws the reported metric against the fit time; dots grow with the number of trainable parameters."""
    seconds = [row.config.mean("fit_seconds") for row in rows]
    if len(rows) < 2 or not all(map(math.isfinite, seconds)):
        return None
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    trained = np.array([max(1.0, row.config.mean("trainable_parameters")) for row in rows])
    sizes = 30 + 25 * (np.log10(trained) - np.log10(trained.min()))
    names = list(dict.fromkeys(row.method for row in rows))
    for row, x, size in zip(rows, seconds, sizes, strict=True):
        colour = COLOURS[names.index(row.method) % len(COLOURS)]
        y = results.scale * row.test.mean
        axes.scatter(x, y, s=size, color=colour, alpha=0.8, linewidths=0)
        name = describe((*row.method, *row.problem)) or results.name
        axes.annotate(name, (x, y), (6, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="fit time, s (dots grow with the number of trainable parameters)",
        ylabel=_metric_label(results),
        xscale="log",
    )
    axes.xaxis.set_major_formatter(LogFormatter())  # 20, not 2 * 10^1
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.margins(0.15)
    axes.grid(color="#eeeeee")
    return figure
