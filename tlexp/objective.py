"""The joint objective  f* = argmin_f  L(f; target) + alpha * L(f; source), as pure functions.

Both losses are means over examples, so alpha weighs tasks and does not depend on the sizes of the data.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def domain_weights(alpha: float, form: str = "sum") -> tuple[float, float]:
    """Returns the weights (target, source) of the two losses.

    Args:
        alpha: finite and >= 0, or infinity, which means the source alone.
        form: `sum` gives (1, alpha), the letter of the formula; `convex` gives (1, alpha) / (1 + alpha),
            the same argmin without alpha scaling the learning rate of plain SGD.
    """
    if math.isinf(alpha):
        return 0.0, 1.0
    total = 1.0 + alpha if form == "convex" else 1.0
    return 1.0 / total, alpha / total


def joint_objective(losses: dict[str, Tensor], alpha: float, form: str = "sum") -> Tensor:
    """Combines the domains' mean losses, each of shape (); a domain of weight zero must not be there at all.

    A product with zero would still move BatchNorm statistics, consume random numbers and leave zero gradients
    for weight decay to act on: alpha = 0 is a branch, never a product.
    """
    target_weight, source_weight = domain_weights(alpha, form)
    if alpha == 0:
        return losses["target"]
    if math.isinf(alpha):
        return losses["source"]
    return target_weight * losses["target"] + source_weight * losses["source"]


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Returns weights (num_classes,) inverse to the class counts, of mean one over `labels` (n,)."""
    counts = torch.bincount(labels, minlength=num_classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), torch.zeros(()))


class CrossEntropy(torch.nn.Module):
    """Cross-entropy as one number for each example, so that the caller says what it is a mean over.

    `weights` (classes,) multiply an example's loss as scikit-learn's `class_weight` does; with weights of mean
    one over the training split the mean over examples stays an unbiased estimate in every batch and rank.
    """

    weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weights: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns losses (batch,) for logits (batch, classes) and labels (batch,), or shares of them (batch, classes).

        With shares it is the sum of each label's loss by its share: what is mixed is the loss, weights included.
        """
        if labels.ndim == 2:
            logs = F.log_softmax(logits, 1)
            each = -(1 - self.label_smoothing) * logs - self.label_smoothing * logs.mean(1, keepdim=True)
            return (labels * each if self.weights is None else labels * each * self.weights).sum(1)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        return losses if self.weights is None else losses * self.weights[labels]


class Mix:
    """Pictures and labels mixed within a batch: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

    Args:
        mixup: both parameters of the beta distribution that shares are drawn from; 0 for no mixup.
        cutmix: the same for the area of the patch; 0 for no CutMix. With both, each batch draws one of them.
    """

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        self.mixup, self.cutmix = mixup, cutmix

    def __call__(self, inputs: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Returns inputs like (batch, channels, height, width) and shares of the labels (batch, num_classes)."""
        from torchvision.transforms import v2

        choices = [v2.MixUp(alpha=self.mixup, num_classes=num_classes)] if self.mixup else []
        choices += [v2.CutMix(alpha=self.cutmix, num_classes=num_classes)] if self.cutmix else []
        chosen = choices[int(torch.randint(len(choices), ()))] if len(choices) > 1 else choices[0]
        mixed, shares = chosen(inputs, labels)
        return mixed, shares
