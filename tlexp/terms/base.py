"""The contract of a term, and what terms share."""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tlexp.errors import UsageError
from tlexp.model import TransferModel

if TYPE_CHECKING:
    from tlexp.data.pair import TransferData

Module = TypeVar("Module", bound=nn.Module)


class Passed(NamedTuple):
    """What became of one role's batch on its way through the model.

    Attributes:
        inputs: as the backbone took them, (batch, ...), a dict of them, or the features of a frozen backbone.
        labels: (batch,), or shares (batch, classes) where pictures were mixed; -1 where they are not to be known.
        features: (batch, num_features).
        logits: (batch, classes).
        share: what makes the average over processes of `share * mean` the mean over the whole batch.
        second: another augmented view of the inputs, for terms that ask for two.
    """

    inputs: Any
    labels: Tensor
    features: Tensor
    logits: Tensor
    share: float = 1.0
    second: Any = None


class Step(NamedTuple):
    """A training step as terms see it.

    Attributes:
        target: the target's batch; for a term without need of labels the unlabelled one, where there is one.
        source: the source's batch, where the term or alpha asks for it.
        progress: the share of training that is done, in [0, 1].
    """

    target: Passed | None
    source: Passed | None
    progress: float = 0.0


class Term(nn.Module):
    """One more loss, added to the objective `weight` times; with weight 0 it is not even built.

    A module, so that remembered weights, teachers and discriminators move with the model and are in its checkpoint.
    What it trains itself is an optimizer group of its own at the base rate.

    Args:
        name: the option's name, for messages and records.
        weight: finite and >= 0.

    Raises:
        UsageError: for another weight.
    """

    roles: ClassVar[tuple[str, ...]] = ("target",)  # whose batches it needs
    needs_labels: ClassVar[bool] = True  # if not, it takes unlabelled examples of the target where there are some
    needs_backbone: ClassVar[bool] = True  # whether it does nothing where the backbone is frozen
    looks_at_source: ClassVar[bool] = False  # whether it wants the source's validation split before training
    least: int = 1  # examples of a batch that it can do with
    views: ClassVar[int] = 1  # of each training picture

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self.name, self.weight = name, weight
        ok = isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0
        self.require(ok, "weight", weight, "must be finite and >= 0; 0 is off")

    def require(self, holds: bool, key: str, value: object, rule: str) -> None:
        """Makes sure that an option's value is one it can have.

        Raises:
            UsageError: where it is not.
        """
        if not holds:
            raise UsageError(f"terms.{self.name}.{key}={value}: {rule}")

    def whole(self, key: str, value: object, least: int = 1) -> None:
        """Makes sure that an option is a whole number, `least` at least.

        Raises:
            UsageError: where it is not.
        """
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
        self.require(ok, key, value, f"must be a whole number, at least {least}")

    def prepare(self, model: TransferModel, data: "TransferData") -> None:
        """Builds what the term keeps; what moves in some epoch has `requires_grad` already.

        Raises:
            UsageError: where model and term do not fit.
        """

    def check(self, optimizer: Optimizer) -> list[str]:
        """Returns what a reader of the result should know about the term under this optimizer.

        Raises:
            UsageError: where the two cannot work together.
        """
        return []

    def start(self, model: TransferModel, data: "TransferData") -> None:
        """Measures what the term must know, once before the first step; what it keeps must be a buffer by then."""

    def forward(self, model: TransferModel, step: Step) -> Tensor:
        """Returns the term's value, shape (), without its weight."""
        raise NotImplementedError

    def after_step(self, model: TransferModel) -> None:
        """Follows the model once the optimizer has moved it."""


class Frozen(nn.Module):
    """A copy of a module as it is now that never changes: no gradients, eval mode whoever calls `train()`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stays in eval mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: Any) -> Any:
        """Passes on what the copy makes of its input."""
        return self.module(x)


def output_layer(term: Term, model: TransferModel) -> nn.Module:
    """Returns a copy of the output layer that came with the weights the backbone started from.

    Raises:
        UsageError: where none did.
    """
    if model.old_head is None:
        rule = "needs the output layer that the weights were trained with, which init= does not bring"
        raise UsageError(f"terms=[{term.name}]: {rule}; use init=source or a checkpoint that has one")
    return copy.deepcopy(model.old_head).requires_grad_(True)


def mean(values: Tensor, passed: Passed) -> Tensor:
    """Returns the mean of (batch,) values over the whole batch, once processes have averaged theirs."""
    return values.mean() * passed.share


def single(x: Tensor) -> Tensor:
    """Returns a tensor in single precision at least, whatever the rest of the step has."""
    return x if x.dtype == torch.float64 else x.float()


def exactly(x: Tensor) -> torch.autocast:
    """Computes as precisely as the inputs are inside the block, also where the rest of the step does not."""
    return torch.autocast(x.device.type, enabled=False)


def world_size() -> int:
    """Returns over how many processes gradients are averaged."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def moving(model: TransferModel, tensors: Sequence[str]) -> list[str]:
    """Returns those of the named parameters that move in some epoch."""
    parameters = dict(model.named_parameters())
    return [name for name in tensors if parameters[name].requires_grad]
