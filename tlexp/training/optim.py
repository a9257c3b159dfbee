"""Optimizer groups: every parameter that ever trains is in exactly one named group."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.base import Strategy


@dataclass(frozen=True)
class Optimization:
    """How parameters are updated.

    Attributes:
        make_optimizer: maps parameter groups and `lr` to an optimizer.
        schedule: maps (step, total steps) to the factor of every group's learning rate.
        lr: of the head.
        epochs: the epochs that will be trained, over which the strategy decides what trains.
    """

    make_optimizer: Callable[..., Optimizer]
    schedule: Callable[[int, int], float]
    lr: float
    epochs: range


def trained_stages(strategy: Strategy, epochs: Iterable[int]) -> set[str]:
    """Returns the names of the stages that train in any of the epochs."""
    return set().union(*(strategy.trainable(epoch) for epoch in epochs))


def parameter_groups(model: TransferModel, strategy: Strategy, lr: float, epochs: range) -> list[dict[str, Any]]:
    """Returns the optimizer's groups by stage, with what has no weight decay apart.

    That is biases, other 1-d parameters, and what the backbone names as such: position embeddings and tokens.

    Every parameter of a stage that trains in any of `epochs` is in exactly one group from the first step on; phases
    switch gradients, never groups. The stage's factor is written into the group's own `lr`.
    """
    trained = trained_stages(strategy, epochs)
    parameters = dict(model.named_parameters())
    spared = {f"backbone.{name}" for name in getattr(model.backbone, "no_weight_decay", ())}
    groups = []
    for stage in model.stages:
        if stage.name in trained:
            tensors = [parameters[name] for name in stage.parameters]
            plain = [parameters[name] for name in stage.parameters if name in spared]
            groups += split_by_decay(tensors, stage.name, lr * strategy.lr_scale(stage), plain)
    return groups


def split_by_decay(
    parameters: list[nn.Parameter], name: str, lr: float, spared: Collection[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Returns the groups of some parameters: those with weight decay, and those without, `spared` among the latter."""
    without = {id(p) for p in spared} | {id(p) for p in parameters if p.ndim <= 1}
    decayed = [p for p in parameters if id(p) not in without]
    plain = [p for p in parameters if id(p) in without]
    groups: list[dict[str, Any]] = [{"params": decayed, "name": name, "lr": lr}] if decayed else []
    return groups + ([{"params": plain, "name": f"{name}/no_decay", "lr": lr, "weight_decay": 0.0}] if plain else [])
