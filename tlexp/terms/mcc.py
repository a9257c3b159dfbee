"""Minimum class confusion of unlabelled predictions."""

import torch
from torch import Tensor

from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import StepContext, Term, at_least_float32, full_precision

NO_MASS = 1e-30  # far above underflow in single precision


class MCC(Term):
    """How much the classes of a batch's predictions overlap (Jin et al. 2020): 0 where each is sure.

    With p = softmax(logits / T), each example weighed by 1 + exp(-entropy) to a mean of 1, the confusion p^T W p has
    its rows normalised, and what is off its diagonal counts, divided by the number of classes. A class that no example
    predicts, even with a probability of 1e-30, has no row. The entropy clamps p at 1e-5, where public code adds 1e-5 to
    it; the difference is below 1e-4. It needs no domain but the target.

    Args:
        name: the option's name.
        weight: the authors use 1.
        temperature: T.

    Raises:
        UsageError: for a temperature that is not above 0.
    """

    needs_labels = False
    needs_backbone = False

    def __init__(self, name: str, weight: float = 1.0, temperature: float = 2.5) -> None:
        super().__init__(name, weight)
        self.require(temperature > 0, "temperature", temperature, "must be above 0")
        self.temperature = temperature

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Takes each process's own part of the batch."""
        p = (at_least_float32(step.target.logits) / self.temperature).softmax(1)
        entropy = -(p * p.clamp(min=1e-5).log()).sum(1).detach()
        certainty = 1 + (-entropy).exp()
        weights = len(p) * certainty / certainty.sum()
        with full_precision(p):
            confusion = (p * weights[:, None]).T @ p
        mass = confusion.sum(1, keepdim=True)
        # A constant added to the mass instead would change the row, and the gradient, of a class that is merely rare.
        confusion = confusion / torch.where(mass > NO_MASS, mass, torch.ones_like(mass))
        return (confusion.sum() - confusion.trace()) / len(confusion)
