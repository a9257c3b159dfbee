"""The joint objective of a run: a criterion for each trained domain, mixed batches, and the weighted sum."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlexp.objective.weights import DomainWeights


class Objective(nn.Module):
    """L(f; target) + alpha * L(f; source) as a training step computes it.

    Args:
        weights: what alpha means.
        criteria: maps logits (batch, classes) and labels to losses (batch,), for each of `weights.roles`.
        num_classes: number of classes of each of these roles.
        mixing: mixes training images and labels of a role with each other; None for no mixing.
    """

    def __init__(
        self,
        weights: DomainWeights,
        criteria: Mapping[str, nn.Module],
        num_classes: Mapping[str, int],
        mixing: "BatchMixing | None" = None,
    ) -> None:
        super().__init__()
        self.weights, self.num_classes, self.mixing = weights, dict(num_classes), mixing
        self.criteria = nn.ModuleDict(dict(criteria))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose loss is in the objective."""
        return self.weights.roles

    def mixes(self, role: str) -> bool:
        """Returns whether batches of a role are mixed."""
        return self.mixing is not None and role in self.roles

    def mix(self, role: str, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mixed inputs and label proportions (batch, classes), drawn from the global generator."""
        assert self.mixing is not None
        return self.mixing(inputs, labels, self.num_classes[role])

    def loss(self, role: str, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss of a role's batch, shape ()."""
        loss: Tensor = self.criteria[role](logits, labels).mean()
        return loss

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        """Returns the weighted sum of the roles' losses, shape ()."""
        return self.weights.combine(losses)


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Returns class weights (num_classes,) inverse to the class counts, with mean one over `labels` (n,)."""
    counts = torch.bincount(labels, minlength=num_classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), torch.zeros(()))


class CrossEntropy(nn.Module):
    """Cross-entropy of each example, so that the caller says what to average over.

    `weights` (classes,) multiply an example's loss as scikit-learn's `class_weight` does; with weights of mean one over
    the training split the mean over examples stays an unbiased estimate in every batch and rank.
    """

    weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns losses (batch,) of logits (batch, classes) for labels (batch,) or proportions (batch, classes).

        With proportions it is the sum of each label's loss times its proportion, class weights included. Losses are
        in single precision at least: in bfloat16 they would move in steps of 1/64.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if labels.ndim == 2:
            log_p = F.log_softmax(logits, 1)
            per_class = -(1 - self.label_smoothing) * log_p - self.label_smoothing * log_p.mean(1, keepdim=True)
            return (labels * per_class if self.weights is None else labels * per_class * self.weights).sum(1)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        return losses if self.weights is None else losses * self.weights[labels]


class BatchMixing:
    """Mixes images and labels within a batch: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

    Args:
        mixup: both parameters of the beta distribution of the mixing proportion; 0 for no mixup.
        cutmix: the same for the area of the patch; 0 for no CutMix. With both, each batch draws one of them.
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        self.mixup, self.cutmix = mixup, cutmix

    def __call__(self, inputs: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Returns inputs (batch, channels, height, width) and label proportions (batch, num_classes)."""
        from torchvision.transforms import v2

        choices = [v2.MixUp(alpha=self.mixup, num_classes=num_classes)] if self.mixup else []
        choices += [v2.CutMix(alpha=self.cutmix, num_classes=num_classes)] if self.cutmix else []
        chosen = choices[int(torch.randint(len(choices), ()))] if len(choices) > 1 else choices[0]
        mixed, proportions = chosen(inputs, labels)
        return mixed, proportions
