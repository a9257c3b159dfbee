"""Where the weights of a run come from, as the phases after loading need to know it."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tlexp.backbones.weights import LoadedWeights


@dataclass(frozen=True)
class StartingPoint:
    """What came with the weights a run starts from.

    Attributes:
        weights: how many of the backbone's tensors were loaded, and from where.
        pretrained_head: the output layer that came with the weights, if one did.
        new_parameters: names of the model's backbone parameters that did not come with them.
        metadata: what the checkpoint says about itself; empty for published weights.
        augmented: whether training inputs are randomly augmented.
        has_reference: whether the data module has the data that `pretrained_head` was trained on, as role `reference`.
    """

    weights: LoadedWeights
    pretrained_head: nn.Module | None = None
    new_parameters: frozenset[str] = frozenset()
    metadata: dict[str, Any] = field(default_factory=dict)
    augmented: bool = False
    has_reference: bool = False
