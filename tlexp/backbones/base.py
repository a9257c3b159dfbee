"""The contract of a backbone, and how tensors and modules are grouped into stages."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InputSpec:
    """The images a backbone expects: square, `size` pixels a side, normalised by channel."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.size, self.size


@dataclass(frozen=True)
class Stage:
    """A part of a network that moves or stays as a whole; names are relative to the module that was grouped.

    Attributes:
        name: what reports and `freeze_until` call it.
        parameters: names of the parameters it owns.
        buffers: names of the buffers it owns, running statistics among them.
        modules: names of the modules whose mode (train or eval) is this stage's alone.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    modules: tuple[str, ...]


class Backbone(Protocol):
    """Any `nn.Module` with these members will do; there is no base class."""

    name: str
    num_features: int
    input: InputSpec

    def __call__(self, x: Tensor) -> Tensor:
        """Maps images (batch, *input.shape) to features (batch, num_features)."""

    def stages(self) -> list[Stage]:
        """Returns the stages in order, stem first; together they own each parameter and buffer once."""


def measured_width(module: nn.Module, spec: InputSpec) -> int:
    """Returns the width of the module's output by one forward pass; what libraries declare is not always it."""
    was_training = module.training
    with torch.no_grad():
        features = module.eval()(torch.zeros(2, *spec.shape))
    module.train(was_training)
    return int(features.shape[1])


def group_stages(module: nn.Module, stage_of: dict[str, str], order: Iterable[str]) -> list[Stage]:
    """Groups a module's tensors and submodules into stages.

    A submodule belongs to a stage if all tensors below it do. One without tensors, such as a dropout, belongs to
    the stage of its nearest such ancestor or else to that of the module registered before it. A submodule that
    spans several stages belongs to none.

    Args:
        module: what is grouped.
        stage_of: the stage's name for the name of every parameter and buffer.
        order: the stages' names from the stem on.
    """
    # By identity, since a tensor that is used in two places has a name in each.
    tensors = [*module.named_parameters(), *module.named_buffers()]
    stage_by_tensor = {id(tensor): stage_of[name] for name, tensor in tensors}
    owner: dict[str, str] = {}
    previous = next(iter(order := list(order)), "")
    for name, child in module.named_modules():
        stages = {stage_by_tensor[id(tensor)] for tensor in (*child.parameters(), *child.buffers())}
        if len(stages) == 1:
            previous = owner[name] = stages.pop()
        elif not stages and not any(True for _ in child.children()):
            ancestors = (name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1))
            owner[name] = next((owner[a] for a in ancestors if a in owner), previous)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    return [
        Stage(
            stage,
            tuple(name for name in parameters if stage_of[name] == stage),
            tuple(name for name in buffers if stage_of[name] == stage),
            tuple(name for name, its in owner.items() if its == stage),
        )
        for stage in order
    ]
