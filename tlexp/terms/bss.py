"""Batch spectral shrinkage: the smallest singular values of the features are held down."""

import torch
from torch import Tensor

from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import StepContext, Term, at_least_float32, full_precision


class BSS(Term):
    """The sum of the squares of the `k` smallest singular values of a batch's features (Chen et al. 2019).

    What fine-tuning on few examples puts into the weak directions of the features transfers badly. The value depends on
    the size of the batch, of which each process takes its own part; it is 0 where a batch is larger than the rank of
    its features.

    Args:
        name: the option's name.
        weight: the authors use 0.001.
        k: how many singular values; at most a batch's examples or the number of features.

    Raises:
        UsageError: for a `k` below 1 or above what a batch has.
    """

    min_batch_size = 2

    def __init__(self, name: str, weight: float = 0.001, k: int = 1) -> None:
        super().__init__(name, weight)
        self.require_int("k", k)
        self.k, self.min_batch_size = k, max(2, k)

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Sees that there are so many singular values."""
        width = model.backbone.num_features
        self.require(self.k <= width, "k", self.k, f"the backbone has {width} features")

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Takes singular values in single precision: the Gram matrix would square their condition number."""
        with full_precision(step.target.features):
            values: Tensor = torch.linalg.svdvals(at_least_float32(step.target.features))
        return values[-self.k :].pow(2).sum()
