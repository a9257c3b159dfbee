"""The nearest class mean on features: what labels are worth without any optimization."""

from typing import Any

import torch

from tlexp.backbones.base import Stage
from tlexp.data.datamodule import TransferDataModule
from tlexp.models.transfer_model import TransferModel
from tlexp.objective.joint import Objective
from tlexp.strategies.closed_probe import check_linear, weighted_examples
from tlexp.strategies.heads_only import HeadsOnly


class NearestMean(HeadsOnly):
    """Predicts the class whose mean feature is nearest, as a linear head; nothing is selected and nothing is random.

    With class means m and the mean squared distance v of examples from their own, the logit is -|f - m|^2 / (2 v)
    without the part that all classes share. With one head the source's examples count too, their mean weighted by
    alpha.

    Args:
        name: the option's name.

    Raises:
        UsageError: in `prepare`, for a head that is not one linear layer.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, "target")

    def prepare(self, model: TransferModel) -> None:
        """Checks that the head is linear."""
        super().prepare(model)
        check_linear(model, self.name, "head_hidden=0 head_dropout=0")

    def lr_scale(self, stage: Stage) -> float:
        """Nothing is left to train."""
        return 0.0

    @torch.no_grad()
    def on_fit_start(self, model: TransferModel, objective: Objective, data: TransferDataModule) -> None:
        """Computes the means."""
        examples = weighted_examples(model, "target", objective, data)
        x, labels = examples.features.double(), examples.labels
        weights = torch.from_numpy(examples.weights)
        membership = torch.nn.functional.one_hot(labels, model.classes["target"]).double() * weights[:, None]
        means = membership.T @ x / membership.sum(0)[:, None]
        within = ((x - means[labels]).pow(2).sum(1) * weights).sum() / weights.sum()
        variance = within if within > 0 else torch.ones_like(within)  # one label a class
        head: Any = model.heads["target"]
        head.weight.copy_(means / variance)
        head.bias.copy_(-means.pow(2).sum(1) / (2 * variance))
