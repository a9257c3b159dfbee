"""The contract of a term, and what terms share."""

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tlexp.data.datamodule import TransferDataModule
from tlexp.errors import UsageError
from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import TransferModel


class DomainOutput(NamedTuple):
    """One role's batch and what the model computed from it.

    Attributes:
        inputs: as the backbone took them, (batch, ...), a dict of them, or the features of a frozen backbone.
        labels: (batch,), or proportions (batch, classes) where images were mixed; -1 where they are unknown.
        features: (batch, num_features).
        logits: (batch, classes).
        ddp_scale: the factor with which the average over processes of `ddp_scale * mean` is the mean of a whole batch.
        second_view: another augmented view of the inputs, for terms that ask for two.
    """

    inputs: Any
    labels: Tensor
    features: Tensor
    logits: Tensor
    ddp_scale: float = 1.0
    second_view: Any = None


class StepContext:
    """A training step as terms see it.

    Args:
        target: the target's batch; for a term that needs no labels the unlabelled one, where there is one.
        source: the source's batch, where the term or alpha asks for it.
        progress: fraction of training that is done, in [0, 1].
    """

    def __init__(
        self, target: DomainOutput | None = None, source: DomainOutput | None = None, progress: float = 0.0
    ) -> None:
        self._outputs = {"target": target, "source": source}
        self.progress = progress

    @property
    def target(self) -> DomainOutput:
        """The target's batch.

        Raises:
            LookupError: where the step has none, since the term does not ask for it in `roles`.
        """
        return self._output("target")

    @property
    def source(self) -> DomainOutput:
        """The source's batch.

        Raises:
            LookupError: where the step has none, since the term does not ask for it in `roles`.
        """
        return self._output("source")

    def _output(self, role: str) -> DomainOutput:
        if (output := self._outputs[role]) is None:
            raise LookupError(f"this step has no batch of the {role}; add it to the term's `roles`")
        return output


class Term(nn.Module):
    """An additional loss, added to the objective `weight` times; with weight 0 it is not even built.

    A module, so that remembered weights, teachers and discriminators move with the model and are in its checkpoint. The
    parameters that it trains itself are optimizer groups of their own: new ones at the head's learning rate, those that
    are pretrained at the rate of the backbone's highest stage.

    Args:
        name: the option's name, for messages and records.
        weight: finite and >= 0.

    Raises:
        UsageError: for another weight.
    """

    roles: ClassVar[tuple[str, ...]] = ("target",)  # whose batches it needs
    needs_labels: ClassVar[bool] = True  # if not, it takes unlabelled examples of the target where there are some
    needs_backbone: ClassVar[bool] = True  # whether it has no effect where the backbone is frozen
    needs_reference: ClassVar[bool] = False  # whether it uses the source's validation split before training
    min_batch_size: int = 1  # smallest batch per process that it works with
    views: ClassVar[int] = 1  # of each training image
    pretrained: ClassVar[tuple[str, ...]] = ()  # names of its modules that train and came with the start's weights

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self.name, self.weight = name, weight
        valid = isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0
        self.require(valid, "weight", weight, "must be finite and >= 0; 0 is off")

    def require(self, valid: bool, key: str, value: object, remedy: str) -> None:
        """Checks the value of an option.

        Raises:
            UsageError: where it is not valid.
        """
        if not valid:
            raise UsageError(f"terms.{self.name}.{key}={value}: {remedy}")

    def require_int(self, key: str, value: object, minimum: int = 1) -> None:
        """Checks that an option is a whole number, at least `minimum`.

        Raises:
            UsageError: where it is not.
        """
        valid = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        self.require(valid, key, value, f"must be a whole number, at least {minimum}")

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Builds what the term keeps; what trains in some epoch has `requires_grad` already.

        Raises:
            UsageError: where model and term do not fit.
        """

    def check(self, optimizer: Optimizer) -> list[str]:
        """Returns what a reader of the result should know about the term under this optimizer.

        Raises:
            UsageError: where the two do not work together.
        """
        return []

    def on_fit_start(self, model: TransferModel, data: TransferDataModule) -> None:
        """Measures what the term needs once before the first step; it must be kept in buffers that exist already."""

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Returns the term's value, shape (), without its weight."""
        raise NotImplementedError

    def after_step(self, model: TransferModel) -> None:
        """Follows the model once the optimizer has updated it."""


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
        """Returns the copy's output."""
        return self.module(x)


def copy_pretrained_head(term: Term, start: StartingPoint) -> nn.Module:
    """Returns a trainable copy of the output layer that came with the weights the backbone started from.

    Raises:
        UsageError: where none did.
    """
    if start.pretrained_head is None:
        reason = "needs the output layer that the weights were trained with, which init= does not bring"
        raise UsageError(f"terms=[{term.name}]: {reason}; use init=source or a checkpoint that has one")
    return copy.deepcopy(start.pretrained_head).requires_grad_(True)


def mean(values: Tensor, output: DomainOutput) -> Tensor:
    """Returns the mean of (batch,) values over the whole batch, once processes have averaged theirs."""
    return values.mean() * output.ddp_scale


def at_least_float32(x: Tensor) -> Tensor:
    """Returns a tensor in single precision at least, whatever the rest of the step has."""
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> torch.autocast:
    """Disables autocast inside the block, so that it computes in the precision of its inputs."""
    return torch.autocast(x.device.type, enabled=False)


def world_size() -> int:
    """Returns over how many processes gradients are averaged."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def trained_parameters(model: TransferModel, names: Sequence[str]) -> list[str]:
    """Returns those of the named parameters that train in some epoch."""
    parameters = dict(model.named_parameters())
    return [name for name in names if parameters[name].requires_grad]
