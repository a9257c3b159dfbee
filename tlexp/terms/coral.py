"""CORAL: source and target features with the same covariance."""

from torch import Tensor

from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import StepContext, Term, at_least_float32, full_precision


class Coral(Term):
    """The distance of the covariances of a source and a target batch (Sun and Saenko 2016).

    In batches smaller than the features are wide, the distance is mostly the error of the two covariances: two batches
    of one domain are as far apart as batches of two. `unbiased` splits each batch in halves and takes the inner product
    <C_S1 - C_T1, C_S2 - C_T2>, whose expectation is the squared distance itself; the value can then be below 0.

    Args:
        name: the option's name.
        weight: the authors choose it so that both losses are of one size at the end.
        kind: `covariance`, |C_S - C_T|^2 / (4 d^2) as in the paper, or `mean`, the mean squares of the differences of
            means and of covariances, as much public code has it.
        unbiased: whether differences are multiplied over halves of the batch; else they are squared, as in the paper.

    Raises:
        UsageError: for another kind.
    """

    roles = ("target", "source")
    needs_labels = False

    def __init__(self, name: str, weight: float = 1.0, kind: str = "covariance", unbiased: bool = True) -> None:
        super().__init__(name, weight)
        self.require(kind in ("covariance", "mean"), "kind", kind, "choose one of covariance, mean")
        self.kind, self.unbiased = kind, unbiased
        self.min_batch_size = 4 if unbiased else 2  # a covariance needs two examples

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Compares each process's own parts of the batches."""
        source, target = at_least_float32(step.source.features), at_least_float32(step.target.features)
        parts = [(source, target)]
        if self.unbiased:  # batches come in random order, so halves are independent samples
            parts = list(zip(source.tensor_split(2), target.tensor_split(2), strict=True))
        with full_precision(source):
            covariances = [covariance(of_source) - covariance(of_target) for of_source, of_target in parts]
        distance = covariances[0] * covariances[-1]
        if self.kind == "covariance":
            return distance.sum() / (4 * source.shape[1] ** 2)
        means = [of_source.mean(0) - of_target.mean(0) for of_source, of_target in parts]
        return (means[0] * means[-1]).mean() + distance.mean()


def covariance(features: Tensor) -> Tensor:
    """Returns the covariance (d, d) of features (n, d), with n - 1 in the denominator."""
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)
