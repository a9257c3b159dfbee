"""Pictures of one run: what was confused with what, and how training went."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's colours stay apart for colour-blind readers.
COLOURS = {"train/target": "#0072B2", "val/target": "#D55E00", "train/source": "#56B4E9", "val/source": "#E69F00"}


def confusion_matrix(counts: NDArray[np.int64], classes: tuple[str, ...]) -> Figure:
    """Draws counts (classes, classes), rows the truth, shaded by the share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="Target test: counts, shaded by row")
    if len(classes) <= 40:
        axes.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 3 else 0)
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= 20:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    return figure


def learning_curves(history: list[dict[str, Any]], kept_epoch: int) -> Figure:
    """Draws loss and accuracy by epoch; the line marks the epoch whose checkpoint was kept."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, names in zip(figure.subplots(1, 2), (("loss", "nll"), ("accuracy",)), strict=True):
        for domain, colour in COLOURS.items():
            for name in names:
                points = [(row["epoch"] + 1, row[f"{domain}/{name}"]) for row in history if f"{domain}/{name}" in row]
                if points and all(math.isfinite(value) for _, value in points):
                    axes.plot(*zip(*points, strict=True), color=colour, label=f"{domain}/{name}")
        axes.axvline(kept_epoch + 1, color="grey", linestyle=":", label="kept")
        axes.set(xlabel="epoch", title=names[0])
        axes.legend(fontsize=8)
    return figure
