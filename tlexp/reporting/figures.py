"""Figures of a run and of data sets: confusion matrix, learning curves, class counts and shared examples."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tlexp.data.domains import Domain
from tlexp.data.quality.leakage import DuplicatePair
from tlexp.data.quality.scan import Facts
from tlexp.data.samples import SPLITS

# Okabe and Ito's palette can be told apart by colour-blind readers.
COLOURS = {"train/target": "#0072B2", "val/target": "#D55E00", "train/source": "#56B4E9", "val/source": "#E69F00"}


def confusion_matrix(counts: NDArray[np.int64], classes: tuple[str, ...]) -> Figure:
    """Plots counts (classes, classes), rows the true classes, shaded by the fraction of the row."""
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.45 * len(classes) + 1.5)
    classes = tuple(_escape(name) for name in classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="Target test: counts, shaded by row")
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 3 else 0)
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= 20:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return figure


def _escape(text: str) -> str:
    """Escapes dollar signs, between which matplotlib would look for a formula."""
    return text.replace("$", r"\$")


def learning_curves(history: list[dict[str, Any]], best_epoch: int) -> Figure:
    """Plots loss and accuracy by epoch; the line marks the epoch whose checkpoint was kept."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, names in zip(figure.subplots(1, 2), (("loss", "nll"), ("accuracy",)), strict=True):
        for domain, colour in COLOURS.items():
            for name in names:
                points = [(row["epoch"] + 1, row[f"{domain}/{name}"]) for row in history if f"{domain}/{name}" in row]
                if points and all(math.isfinite(value) for _, value in points):
                    axes.plot(*zip(*points, strict=True), color=colour, label=f"{domain}/{name}")
        axes.axvline(best_epoch + 1, color="grey", linestyle=":", label="kept")
        axes.set(xlabel="epoch", title=names[0])
        axes.legend(fontsize=8)
    return figure


def lr_curve(rates: NDArray[np.float64], losses: NDArray[np.float64], lr: float) -> Figure:
    """Plots the smoothed losses (n,) at growing learning rates (n,), and the selected rate."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="#0072B2")
    axes.axvline(lr, color="grey", linestyle=":", label=f"lr={lr:.2g}")
    axes.set(xscale="log", xlabel="learning rate of the head", ylabel="loss, smoothed", title="lr_find")
    axes.legend(fontsize=8)
    return figure


def data_report(
    domains: Mapping[str, Domain], facts: Mapping[str, Sequence[Facts]], pairs: Sequence[DuplicatePair]
) -> Figure:
    """Plots, for each role, classes by split and sizes of examples; below, what splits share."""
    num_classes = max(len(domain.samples.classes) for domain in domains.values())
    figure = Figure(figsize=(11, 3.4 * len(domains) + 4.2), layout="constrained")
    heights = [3.4] * len(domains) + [4.2]
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    *rows, last = (figure.add_subfigure(grid[row]) for row in range(len(heights)))
    for row, (role, domain) in zip(rows, domains.items(), strict=True):
        counts, sizes = row.subplots(1, 2, width_ratios=[2, 1])
        row.suptitle(_escape(f"{role}: {domain.samples.name}"), fontsize=11)
        _class_counts(counts, domain, num_classes)
        _sizes(sizes, facts[role], domain.samples.inputs.kind)
    _shared(last.subplots(), [f"{role}/{split}" for role in domains for split in SPLITS], pairs)
    return figure


def _class_counts(axes: Axes, domain: Domain, num_classes: int) -> None:
    classes = [_escape(name) for name in domain.samples.classes]
    totals = np.bincount(domain.samples.labels, minlength=len(classes))
    bottom = np.zeros(len(classes), int)
    for split, colour in zip(SPLITS, ("#0072B2", "#56B4E9", "#D55E00"), strict=True):
        counts = np.bincount(domain.labels(split).numpy(), minlength=len(classes))
        axes.bar(range(len(classes)), counts, bottom=bottom, color=colour, label=split)
        bottom += counts
    axes.bar(range(len(classes)), totals - bottom, bottom=bottom, color="#DDDDDD", label="unused")
    axes.set(ylabel="examples")
    if num_classes <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 3 else 0, ha="right")
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)


def _sizes(axes: Axes, facts: Sequence[Facts], kind: str) -> None:
    if kind == "images":
        sizes, counts = np.unique([(fact.width, fact.height) for fact in facts], axis=0, return_counts=True)
        axes.scatter(
            sizes[:, 0], sizes[:, 1], s=8 + 40 * counts / counts.max(), color="#0072B2", alpha=0.5, linewidths=0
        )
        limit = 1.1 * sizes.max()
        axes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, limit), ylim=(0, limit), aspect="equal")
    else:
        axes.hist([fact.width for fact in facts], bins=30, color="#0072B2")
        axes.set(xlabel="characters", ylabel="texts")


def _shared(axes: Axes, names: Sequence[str], pairs: Sequence[DuplicatePair]) -> None:
    """Plots how many examples two splits share: identical ones and near duplicates."""
    same, near = (np.zeros((len(names), len(names)), int) for _ in range(2))
    for pair in pairs:
        cell = names.index(pair.second), names.index(pair.first)
        same[cell], near[cell] = pair.same, pair.near
    shown = np.ma.masked_array(same + near, np.triu(np.ones_like(same), 1))
    axes.imshow(shown, cmap="Reds", vmin=0, vmax=max(1, shown.max()))
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(title="Examples of the row that are also in the column: identical + nearly identical")
    for column, row in combinations_with_replacement(range(len(names)), 2):
        text = f"{same[row, column]}" + (f" + {near[row, column]}" if near[row, column] else "")
        dark = shown[row, column] > shown.max() / 2 and shown.max() > 0
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
