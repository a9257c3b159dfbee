"""CORAL: source and target features with the same covariance."""

from torch import Tensor

from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import StepContext, Term, at_least_float32, full_precision


class Coral(Term):
    """The distance of the covariances of a source and a target batch (Sun and Saenko 2016).

    Args:
        name: the option's name.
        weight: the authors choose it so that both losses are of one size at the end.
        kind: `covariance`, |C_S - C_T|^2 / (4 d^2) as in the paper, or `mean`, the mean squares of the differences of
            means and of covariances, as much public code has it.

    Raises:
        UsageError: for another kind.
    """

    roles = ("target", "source")
    needs_labels = False
    min_batch_size = 2

    def __init__(self, name: str, weight: float = 1.0, kind: str = "covariance") -> None:
        super().__init__(name, weight)
        self.require(kind in ("covariance", "mean"), "kind", kind, "choose one of covariance, mean")
        self.kind = kind

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Compares each process's own parts of the batches."""
        source, target = at_least_float32(step.source.features), at_least_float32(step.target.features)
        with full_precision(source):
            difference = (covariance(source) - covariance(target)).pow(2)
        if self.kind == "covariance":
            return difference.sum() / (4 * source.shape[1] ** 2)
        return (source.mean(0) - target.mean(0)).pow(2).mean() + difference.mean()


def covariance(features: Tensor) -> Tensor:
    """Returns the covariance (d, d) of features (n, d), with n - 1 in the denominator."""
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)
