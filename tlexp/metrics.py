"""What is measured of a domain: exact over uneven batches and processes, absent classes left out."""

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from tlexp.config import METRICS


class Evaluation(nn.Module):
    """The metrics of one domain in one split.

    `accuracy` is over examples (micro); `macro_f1` is the mean over the classes that occur among labels or
    predictions, as scikit-learn's; `nll` is the mean negative log-likelihood; `ece` is the expected calibration
    error with 15 equal-width bins and the l1 norm (Guo et al. 2017).

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.macro_f1 = MulticlassF1Score(classes, average="macro")
        self.nll = MeanMetric(nan_strategy="disable")  # the default leaves nan out and looks well
        self.ece = MulticlassCalibrationError(classes, n_bins=15, norm="l1")
        self.confusion = MulticlassConfusionMatrix(classes)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: logits (batch, classes), labels (batch,)."""
        self.nll.update(nn.functional.cross_entropy(logits, labels, reduction="none"))
        probabilities = logits.softmax(dim=1)
        for metric in (self.accuracy, self.macro_f1, self.ece, self.confusion):
            metric.update(probabilities, labels)

    def compute(self) -> dict[str, Tensor]:
        """Returns each metric over everything added since the last reset, over all processes."""
        return {name: getattr(self, name).compute() for name in METRICS}

    def reset(self) -> None:
        """Forgets everything."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]
