"""Batch spectral shrinkage: the smallest singular values of the features are held down."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tlexp.model import TransferModel
from tlexp.terms.base import Step, Term, exactly, single

if TYPE_CHECKING:
    from tlexp.data.pair import TransferData


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

    least = 2

    def __init__(self, name: str, weight: float = 0.001, k: int = 1) -> None:
        super().__init__(name, weight)
        self.whole("k", k)
        self.k, self.least = k, max(2, k)

    def prepare(self, model: TransferModel, data: "TransferData") -> None:
        """Sees that there are so many singular values."""
        width = model.backbone.num_features
        self.require(self.k <= width, "k", self.k, f"the backbone has {width} features")

    def forward(self, model: TransferModel, step: Step) -> Tensor:
        """Takes singular values in single precision: the Gram matrix would square their condition number."""
        assert step.target is not None
        with exactly(step.target.features):
            values: Tensor = torch.linalg.svdvals(single(step.target.features))
        return values[-self.k :].pow(2).sum()
