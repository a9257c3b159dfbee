"""Pictures of a comparison, for people who would rather look than read."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tlexp.compare.judge import SIGNIFICANT, Effect, Row, curves, labels_axis
from tlexp.compare.study import Study, Values, shown

# Okabe and Ito's colours, and markers, stay apart for colour-blind readers and on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_PANELS = 6


def figures(study: Study, rows: Sequence[Row], effects: Sequence[Effect]) -> dict[str, Figure]:
    """Returns the pictures that a study has something to show in, by name."""
    drawn = {
        "methods": methods(study, rows),
        "alpha_curve": alpha_curve(study, effects),
        "negative_transfer": negative_transfer(study, effects),
        "label_efficiency": label_efficiency(study, rows),
        "heat_map": heat_map(study, rows),
        "cost": cost(study, rows),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def methods(study: Study, rows: Sequence[Row]) -> Figure:
    """Draws the reported metric of each method with its interval; a filled dot is what validation prefers."""
    problems = list(dict.fromkeys(row.problem for row in rows))[:MOST_PANELS]
    figure = Figure(figsize=(7, sum(0.9 + 0.36 * _count(rows, problem) for problem in problems)), layout="constrained")
    heights = [0.9 + 0.36 * _count(rows, problem) for problem in problems]
    panels = figure.subplots(len(problems), 1, squeeze=False, height_ratios=heights, sharex=True)[:, 0]
    for axes, problem in zip(panels, problems, strict=True):
        own = [row for row in rows if row.problem == problem][::-1]
        for place, row in enumerate(own):
            _interval(axes, place, row, study)
        axes.set_yticks(range(len(own)), [shown(row.method) or study.name for row in own])
        axes.set_ylim(-0.6, len(own) - 0.4)
        axes.set_title(shown(problem), fontsize=10, loc="left")
        axes.grid(axis="x", color="#dddddd")
    panels[-1].set_xlabel(f"{_named(study)}, mean and 95 % interval; filled: preferred by validation")
    return figure


def _count(rows: Sequence[Row], problem: Values) -> int:
    return sum(row.problem == problem for row in rows)


def _interval(axes: Axes, place: int, row: Row, study: Study) -> None:
    mean, low, high = (study.scale * value for value in (row.test.mean, row.test.low, row.test.high))
    if math.isfinite(low):
        axes.plot([low, high], [place, place], color=COLOURS[0])
    axes.plot(mean, place, "o", color=COLOURS[0], markerfacecolor=COLOURS[0] if row.leads else "white")


def _named(study: Study) -> str:
    """Returns the reported metric as an axis says it."""
    _, role, name = study.metric.split("/")
    return f"{role} test {name.replace('_', ' ')}" + (", %" if study.scale != 1 else "")


# alpha ---------------------------------------------------------------------------------------------------------


def alpha_curve(study: Study, effects: Sequence[Effect]) -> Figure | None:
    """Draws the reported metric against alpha / (1 + alpha), so that 0 and infinity are the ends.

    A star marks the alpha that validation chooses; the curve itself shows tests.
    """
    problems = list(dict.fromkeys(effect.problem for effect in effects))[:MOST_PANELS]
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
        names = list(dict.fromkeys(effect.method for effect in effects))
        for method, colour, marker in zip(names, _cycle(COLOURS), _cycle(MARKERS), strict=False):
            own = [effect for effect in effects if (effect.problem, effect.method) == (problem, method)]
            if own:
                _curve(axes, study, own, colour, marker)
        axes.xaxis.set_major_locator(FixedLocator([place(alpha) for alpha in alphas]))
        axes.set_xticklabels([f"{alpha:g}" for alpha in alphas], fontsize=8)
        axes.set(title=shown(problem), xlabel="alpha")
        axes.grid(axis="y", color="#dddddd")
    panels[0, 0].set_ylabel(_named(study))
    panels[0, 0].legend(fontsize=8)
    return figure


def _cycle(values: Sequence[str]) -> list[str]:
    return [*values] * 10


def place(alpha: float) -> float:
    """Returns where an alpha is drawn, from 0 for target only to 1 for the source alone."""
    return 1.0 if math.isinf(alpha) else alpha / (1 + alpha)


def _curve(axes: Axes, study: Study, own: Sequence[Effect], colour: str, marker: str) -> None:
    own = sorted(own, key=lambda effect: float(effect.alpha))
    x = [place(float(effect.alpha)) for effect in own]
    mean, low, high = (
        study.scale * np.array([getattr(effect.test, name) for effect in own]) for name in ("mean", "low", "high")
    )
    axes.plot(x, mean, color=colour, marker=marker, label=shown(own[0].method) or study.name, markersize=5)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for effect, at, value in zip(own, x, mean, strict=True):
        if effect.chosen:
            axes.plot(at, value, "*", color=colour, markersize=15, markeredgecolor="white")


def negative_transfer(study: Study, effects: Sequence[Effect]) -> Figure | None:
    """Draws error with alpha minus error without, a line each (a forest plot); coloured where the test rejects."""
    gaps = [effect for effect in effects if effect.gap is not None]
    if not gaps:
        return None
    figure = Figure(figsize=(7.5, 1.2 + 0.3 * len(gaps)), layout="constrained")
    axes = figure.subplots()
    colours = {"hurts": COLOURS[1], "helps": COLOURS[2]}
    for line, effect in enumerate(reversed(gaps)):
        assert effect.gap is not None
        gap = effect.gap.difference.difference
        mean, low, high = (study.scale * value for value in (gap.mean, gap.low, gap.high))
        colour = colours.get(effect.verdict, COLOURS[7])
        if math.isfinite(low):
            axes.plot([low, high], [line, line], color=colour)
        axes.plot(mean, line, "s", color=colour)
    names = [f"{shown((*effect.problem, *effect.method))} alpha={effect.alpha}" for effect in reversed(gaps)]
    axes.set_yticks(range(len(gaps)), [name.strip() for name in names], fontsize=8)
    axes.set_ylim(-0.8, len(gaps) - 0.2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"error with the source minus error without, {study.unit or 'nats'}: right of 0 the source hurts")
    axes.grid(axis="x", color="#dddddd")
    return figure


# Labels, problems, cost ----------------------------------------------------------------------------------------


def label_efficiency(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draws the reported metric against the label budget."""
    axis = labels_axis(study)
    if axis is None:
        return None
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    lines = curves(rows, axis)
    for ((rest, method), line), colour, marker in zip(lines.items(), _cycle(COLOURS), _cycle(MARKERS), strict=False):
        x = [n for n, _ in line]
        mean, low, high = (
            study.scale * np.array([getattr(row.test, name) for _, row in line]) for name in ("mean", "low", "high")
        )
        name = shown((*rest, *method)) or study.name
        axes.plot(x, mean, color=colour, marker=marker, markersize=5, label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ticks = sorted({float(value) for value in study.values[axis]})
    axes.set(xscale="log", ylabel=_named(study), xlabel=f"{'labels a class' if axis == 'data.shots' else axis}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.legend(fontsize=8)
    axes.grid(axis="y", color="#dddddd")
    return figure


def heat_map(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draws each method's difference to the baseline on each problem; a star where the adjusted test rejects."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    names = [method for method in dict.fromkeys(row.method for row in rows) if method != study.baseline_method]
    if len(problems) < 2 or not names:
        return None
    values = np.full((len(names), len(problems)), np.nan)
    figure = Figure(figsize=(2.2 + 1.1 * len(problems), 1.8 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row.against is None or row.method not in names:
            continue
        y, x = names.index(row.method), problems.index(row.problem)
        values[y, x] = study.scale * row.against.difference.difference.mean
    limit = max(1e-9, float(np.nanmax(np.abs(values)))) if np.isfinite(values).any() else 1.0
    image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row in rows:
        if row.against is not None and row.method in names:
            y, x = names.index(row.method), problems.index(row.problem)
            digits = 1 if study.scale != 1 else 2
            star = " *" if row.against.p_holm < SIGNIFICANT else ""
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
    axes.set_xticks(range(len(problems)), [shown(problem) for problem in problems], rotation=30, ha="right")
    axes.set_yticks(range(len(names)), [shown(name) for name in names])
    figure.colorbar(image, ax=axes, label=f"minus {shown(study.baseline_method)}, {study.unit or 'nats'}")
    return figure


def cost(study: Study, rows: Sequence[Row]) -> Figure | None:
    """Draws the reported metric against the time of a fit; the larger the dot, the more parameters train."""
    seconds = [row.cell.mean("fit_seconds") for row in rows]
    if len(rows) < 2 or not all(map(math.isfinite, seconds)):
        return None
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    trained = np.array([max(1.0, row.cell.mean("trainable_parameters")) for row in rows])
    sizes = 30 + 25 * (np.log10(trained) - np.log10(trained.min()))
    names = list(dict.fromkeys(row.method for row in rows))
    for row, x, size in zip(rows, seconds, sizes, strict=True):
        colour = _cycle(COLOURS)[names.index(row.method)]
        y = study.scale * row.test.mean
        axes.scatter(x, y, s=size, color=colour, alpha=0.8, linewidths=0)
        name = shown((*row.method, *row.problem)) or study.name
        axes.annotate(name, (x, y), (6, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="seconds of a fit (dots grow with the parameters that train)", ylabel=_named(study), xscale="log")
    axes.margins(0.15)
    axes.grid(color="#eeeeee")
    return figure
