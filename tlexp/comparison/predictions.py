"""What kept predictions say: classes, calibration, ensembles over seeds, differences that cover the test examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.special import log_softmax, logsumexp

from tlexp import run_folder
from tlexp.comparison.designs import Estimate, two_way
from tlexp.comparison.statistics import holm, paired_difference
from tlexp.models.temperature import temperature
from tlexp.training.metrics import wilson_interval

BINS = 15  # of the expected calibration error
MIN_FOR_TEMPERATURE = 100  # validation examples with which a temperature is worth fitting


@dataclass(frozen=True)
class Predictions:
    """The predictions of one run on a split.

    Attributes:
        ids: of the examples, (n,).
        labels: (n,).
        logits: (n, classes).
        classes: names.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    classes: tuple[str, ...]

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the largest logit is the label's, (n,)."""
        right: NDArray[np.bool_] = self.logits.argmax(1) == self.labels
        return right

    def scaled(self, t: float) -> "Predictions":
        """Returns the predictions with their logits divided by a temperature."""
        return Predictions(self.ids, self.labels, self.logits / t, self.classes)


def read_predictions(folder: Path, role: str = "target", split: str = "test") -> Predictions:
    """Returns the predictions that a run has kept.

    Raises:
        FileNotFoundError: where it has kept none of this domain.
    """
    frame = pd.read_parquet(folder / run_folder.predictions(role))
    frame = frame[frame["split"] == split]
    columns = [name for name in frame if name.startswith("logit/")]
    classes = tuple(name.removeprefix("logit/") for name in columns)
    numbers = {name: index for index, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in frame["label"]], dtype=np.int64)
    return Predictions(tuple(frame["id"]), labels, frame[columns].to_numpy(np.float64, copy=True), classes)


# Classes -------------------------------------------------------------------------------------------------------


def by_class(predictions: Predictions) -> pd.DataFrame:
    """Returns the number of examples and the accuracy of each class, with its 95 % Wilson interval."""
    rows = []
    for index, name in enumerate(predictions.classes):
        right = predictions.correct[predictions.labels == index]
        low, high = wilson_interval(float(right.mean()), len(right)) if len(right) else (math.nan, math.nan)
        accuracy = float(right.mean()) if len(right) else math.nan
        rows.append({"class": name, "examples": len(right), "accuracy": accuracy, "low": low, "high": high})
    return pd.DataFrame(rows)


def class_differences(first: Sequence[Predictions], second: Sequence[Predictions]) -> pd.DataFrame:
    """Returns, for each class, the accuracy of runs minus that of others on the same repetitions, Holm-adjusted.

    Args:
        first: predictions of each repetition.
        second: the same of what it is compared with.
    """
    rows = []
    for index, name in enumerate(first[0].classes):
        own, others = ([float(p.correct[p.labels == index].mean()) for p in runs] for runs in (first, second))
        difference = paired_difference(own, others)
        interval = difference.interval
        rows.append({"class": name, "difference": interval.mean, "low": interval.low, "high": interval.high})
        rows[-1]["p"] = difference.p
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table["p_holm"] = math.nan
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table


# Two methods ---------------------------------------------------------------------------------------------------


def mcnemar(first: Predictions, second: Predictions) -> float:
    """Returns the exact two-sided p-value that two runs are equally accurate on the same examples (McNemar 1947).

    Raises:
        ValueError: for predictions of different examples.
    """
    _check_same(first, second)
    only_first = int((first.correct & ~second.correct).sum())
    discordant = only_first + int((second.correct & ~first.correct).sum())
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def difference_over_examples(first: Sequence[Predictions], second: Sequence[Predictions]) -> Estimate:
    """Returns the difference of accuracies with an error that covers runs and test examples.

    Runs and examples are crossed: each run predicts every example. Resampling both would count the rest more than once
    (Owen 2007), so the mean squares of runs, examples and rest are used.

    Raises:
        ValueError: for predictions of different examples, which `split_seed` makes.
    """
    for one, other in zip(first, second, strict=True):
        _check_same(one, other)
        _check_same(first[0], one)
    table = np.array([a.correct.astype(float) - b.correct for a, b in zip(first, second, strict=True)])
    return two_way(table)


def _check_same(first: Predictions, second: Predictions) -> None:
    if first.ids != second.ids:
        raise ValueError("the predictions are of different examples")


# Probabilities -------------------------------------------------------------------------------------------------


def calibration(predictions: Predictions) -> dict[str, float]:
    """Returns `nll`, `brier` (summed over classes), `ece` (15 bins of equal width) and `ece_mass` (of equal size)."""
    log_p = log_softmax(predictions.logits, axis=1)
    p = np.exp(log_p)
    rows = np.arange(len(p))
    truth = np.zeros_like(p)
    truth[rows, predictions.labels] = 1
    confidence, right = p.max(1), predictions.correct.astype(float)
    edges = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    by_width = [np.flatnonzero(edges == number) for number in range(BINS)]
    by_size = np.array_split(np.argsort(confidence, kind="stable"), BINS)
    return {
        "nll": -float(log_p[rows, predictions.labels].mean()),
        "brier": float(((p - truth) ** 2).sum(1).mean()),
        "ece": _calibration_error(by_width, confidence, right),
        "ece_mass": _calibration_error(by_size, confidence, right),
    }


def _calibration_error(
    bins: Sequence[NDArray[np.intp]], confidence: NDArray[np.float64], right: NDArray[np.float64]
) -> float:
    gaps = [len(bin_) * abs(float(right[bin_].mean() - confidence[bin_].mean())) for bin_ in bins if len(bin_)]
    return sum(gaps) / len(right)


def fitted_temperature(validation: Predictions) -> float:
    """Returns the temperature that fits validation best.

    Raises:
        ValueError: for fewer than a hundred examples, which fit anything.
    """
    if len(validation.labels) < MIN_FOR_TEMPERATURE:
        raise ValueError(f"{len(validation.labels)} validation examples: a temperature needs {MIN_FOR_TEMPERATURE}")
    return temperature(validation.logits, validation.labels)


def ensemble(runs: Sequence[Predictions]) -> Predictions:
    """Returns the mean of the probabilities of several runs, as the logits of one.

    Raises:
        ValueError: for predictions of different examples.
    """
    for run in runs:
        _check_same(runs[0], run)
    log_p = np.stack([log_softmax(run.logits, axis=1) for run in runs])
    mean = logsumexp(log_p, axis=0) - math.log(len(runs))
    return Predictions(runs[0].ids, runs[0].labels, mean, runs[0].classes)
