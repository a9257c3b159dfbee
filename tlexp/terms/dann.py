"""Domain-adversarial training: features that do not tell which domain they are from."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import DomainOutput, StepContext, Term, at_least_float32


class Reversal(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `-strength`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        """Returns the input."""
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Turns the gradient round."""
        return -ctx.strength * gradients[0], None


def grl_lambda(progress: float, steepness: float = 10.0) -> float:
    """Returns 2 / (1 + exp(-steepness * progress)) - 1: from 0 at the start of training to almost 1 at its end."""
    return 2 / (1 + math.exp(-steepness * progress)) - 1


class DANN(Term):
    """A discriminator of the domains whose gradient the backbone receives reversed (Ganin et al. 2016).

    Two hidden layers with BatchNorm and ReLU and one output, trained with binary cross-entropy, source = 1; its
    learning rate is the head's. The reversed gradient grows with the progress of training.

    Args:
        name: the option's name.
        weight: of the discriminator's loss.
        hidden: units of each hidden layer.
        steepness: of the growth.

    Raises:
        UsageError: for a value outside its range.
    """

    roles = ("target", "source")
    needs_labels = False
    min_batch_size = 2

    def __init__(self, name: str, weight: float = 1.0, hidden: int = 1024, steepness: float = 10.0) -> None:
        super().__init__(name, weight)
        self.require_int("hidden", hidden)
        self.require(steepness >= 0, "steepness", steepness, "must be >= 0; 0 reverses nothing")
        self.hidden, self.steepness = hidden, steepness

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Builds the discriminator."""
        self.discriminator = discriminator(model.backbone.num_features, self.hidden)

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Tells the domains apart, each with half of the weight however many examples it has."""
        features = torch.cat([step.source.features, step.target.features])
        logits = self.discriminator(Reversal.apply(features, grl_lambda(step.progress, self.steepness)))
        n = len(step.source.features)
        return domain_loss(logits[:n, 0], logits[n:, 0])


class CDAN(DANN):
    """The same on features together with predictions (Long et al. 2018).

    The discriminator sees the outer product of the features and the softmax, which carries no gradient; where that is
    wider than `widest`, random projections of both are multiplied instead. With `entropy` sure
    predictions weigh more, 1 + exp(-entropy), to a mean of 1 in each domain; these weights carry no gradient, where the
    authors' let a reversed one into the logits.

    Args:
        name: the option's name.
        weight: of the discriminator's loss.
        hidden: units of each hidden layer.
        steepness: of the growth of the reversed gradient.
        entropy: whether sure predictions weigh more.
        widest: the widest outer product that is used as it is.
        random: the width of the random projections otherwise.

    Raises:
        UsageError: for a value outside its range, or two heads, whose predictions are of different classes.
    """

    of_features: Tensor
    of_predictions: Tensor

    def __init__(
        self,
        name: str,
        weight: float = 1.0,
        hidden: int = 1024,
        steepness: float = 10.0,
        entropy: bool = True,
        widest: int = 4096,
        random: int = 1024,
    ) -> None:
        super().__init__(name, weight, hidden, steepness)
        self.require_int("random", random)
        self.require_int("widest", widest, 0)
        self.entropy, self.widest, self.random = entropy, widest, random

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Builds the discriminator, and the projections where they are needed."""
        heads = "source and target have a head each, whose predictions cannot be compared"
        self.require(len(model.heads) == 1, "weight", self.weight, f"{heads}; use terms=[dann], or head=one")
        width, classes = model.backbone.num_features, model.classes["target"]
        self.projected = width * classes > self.widest
        if self.projected:
            self.register_buffer("of_features", torch.randn(width, self.random))
            self.register_buffer("of_predictions", torch.randn(classes, self.random))
        self.discriminator = discriminator(self.random if self.projected else width * classes, self.hidden)

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Tells the domains apart by features and predictions."""
        outputs: list[DomainOutput] = [step.source, step.target]
        predictions = [at_least_float32(output.logits.detach()).softmax(1) for output in outputs]
        features, g = torch.cat([output.features for output in outputs]), torch.cat(predictions)
        f = Reversal.apply(features, grl_lambda(step.progress, self.steepness))
        if self.projected:
            seen = (f @ self.of_features) * (g.to(f.dtype) @ self.of_predictions) / math.sqrt(self.random)
        else:
            seen = (g.to(f.dtype)[:, :, None] * f[:, None, :]).flatten(1)
        logits = self.discriminator(seen)[:, 0]
        n = len(step.source.features)
        weights = [certainty(p) if self.entropy else None for p in predictions]
        return domain_loss(logits[:n], logits[n:], *weights)


def discriminator(width: int, hidden: int) -> nn.Sequential:
    """Returns a network with two hidden layers that maps (batch, width) to (batch, 1)."""
    layers: list[nn.Module] = []
    for inputs in (width, hidden):
        layers += [nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 1))


def domain_loss(
    source: Tensor, target: Tensor, source_weights: Tensor | None = None, target_weights: Tensor | None = None
) -> Tensor:
    """Returns the mean of both domains' binary cross-entropies of logits (batch,), source = 1."""
    ones, zeros = torch.ones_like(source), torch.zeros_like(target)
    losses = (
        F.binary_cross_entropy_with_logits(source, ones, weight=source_weights),
        F.binary_cross_entropy_with_logits(target, zeros, weight=target_weights),
    )
    return (losses[0] + losses[1]) / 2


def certainty(probabilities: Tensor) -> Tensor:
    """Returns weights (n,) of mean 1 for predictions (n, classes): 1 + exp(-entropy), normalised."""
    entropy = -(probabilities * (probabilities + 1e-5).log()).sum(1)
    weights = 1 + (-entropy).exp()
    return weights * len(weights) / weights.sum()
