"""Metrics of training batches and of whole splits: exact over uneven batches and processes.

Both are torchmetrics that the task updates in each step and logs at the end of an epoch.
"""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from tlexp.metric_names import METRICS


class KeepsPrecision(nn.Module):
    """Moves with a model to its device, but keeps the precision of its sums where a model is converted to half."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device)

        super()._apply(move, *args, **kwargs)  # type: ignore[no-untyped-call]
        return self


class DomainMetrics(KeepsPrecision):
    """The metrics of one domain in a validation or test split, in single precision at least.

    `accuracy` is over examples (micro); `balanced_accuracy` is the mean of the accuracies of the classes that occur
    among labels, `worst_class` the smallest of them; `macro_f1` is the mean over the classes that occur among labels or
    predictions, as scikit-learn's; `nll` is the mean negative log-likelihood; `brier` is the mean squared distance of
    the probabilities from the label's, summed over classes, in [0, 2] (Brier 1950); `ece` is the expected calibration
    error with 15 equal-width bins and the l1 norm (Guo et al. 2017). Where a logit is NaN, so is every metric: its
    largest class would be the first one.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.macro_f1 = MulticlassF1Score(num_classes, average="macro")
        self.nll = MeanMetric(nan_strategy="disable")  # the default ignores NaN, which hides divergence
        self.brier = MeanMetric(nan_strategy="disable")
        self.ece = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1")
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits (batch, classes), labels (batch,)."""
        if logits.dtype in (torch.float16, torch.bfloat16):  # in which a loss moves in steps of 1/64
            logits = logits.float()
        self.nll.update(nn.functional.cross_entropy(logits, labels, reduction="none"))
        probabilities = logits.softmax(dim=1)
        truth = nn.functional.one_hot(labels, logits.shape[1])
        self.brier.update((probabilities - truth).pow(2).sum(dim=1))
        for metric in (self.accuracy, self.macro_f1, self.ece, self.confusion):
            metric.update(probabilities, labels)

    def compute(self) -> dict[str, Tensor]:
        """Returns each metric over all examples since the last reset, over all processes."""
        counts = self.confusion.compute().double()
        of_classes = (counts.diagonal() / counts.sum(dim=1))[counts.sum(dim=1) > 0]
        by_class = {"balanced_accuracy": of_classes.mean(), "worst_class": of_classes.min()}
        values = {name: by_class[name] if name in by_class else getattr(self, name).compute() for name in METRICS}
        return {
            name: torch.full_like(value, math.nan) if values["nll"].isnan() else value for name, value in values.items()
        }

    def reset(self) -> None:
        """Removes all examples."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]


class TrainingMetrics(KeepsPrecision, Metric):
    """Loss and accuracy over a role's training batches; one small sum per step, since it is part of every step."""

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: its mean loss (), logits (batch, classes), labels (batch,) or proportions (batch, classes)."""
        n = len(labels)
        hard = labels if labels.ndim == 1 else labels.argmax(1)
        correct = (logits.argmax(1) == hard).sum()
        row = torch.stack([loss.float() * n, correct.float(), torch.full_like(loss, n, dtype=torch.float32)])
        self.sums = self.sums + row

    def compute(self) -> dict[str, Tensor]:
        """Returns `loss` and `accuracy` over all examples, in double precision."""
        loss, correct, n = self.sums.double()
        return {"loss": loss / n, "accuracy": correct / n}


class TermMetric(KeepsPrecision, Metric):
    """The mean of a term's values over training steps."""

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, value: Tensor) -> None:
        """Adds the value of a step, shape ()."""
        self.sums = self.sums + torch.stack([value.float(), torch.ones((), device=value.device)])

    def compute(self) -> Tensor:
        """Returns the mean, in double precision."""
        total, n = self.sums.double().unbind()
        return total / n


def wilson_interval(accuracy: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of an accuracy measured on `n` examples (Wilson 1927).

    It covers the sampling of the finite test set alone, not the variation between seeds.
    """
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
