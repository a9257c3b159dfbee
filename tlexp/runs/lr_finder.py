"""The learning-rate range test: a tenth of the rate at which the loss is smallest (Smith 2017)."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import track

from tlexp.data.datamodule import TransferDataModule
from tlexp.errors import UsageError
from tlexp.rng import fork_rng
from tlexp.training.optim import trained_stages
from tlexp.training.task import TransferTask

LOW, HIGH, STEPS = 1e-6, 1.0, 100
SMOOTHING = 0.9  # of the loss's moving average
DIVERGED = 4.0  # times the smallest loss so far
SAFETY = 0.1  # of the rate with the smallest loss, where it is about to grow again; smoothed losses lag behind


@dataclass(frozen=True)
class LRFinderResult:
    """The curve of a range test and the rate it suggests.

    Attributes:
        lr: the head's learning rate; stages keep their factors of it.
        rates: the rates that were tried, (n,).
        losses: smoothed, (n,).
    """

    lr: float
    rates: np.ndarray
    losses: np.ndarray


def find_lr(task: TransferTask, data: TransferDataModule, trainer: pl.Trainer, console: Console) -> LRFinderResult:
    """Trains a copy of the task with a rate that grows from step to step, until the loss diverges.

    Weights, optimizer and random streams of the task itself do not change.

    Args:
        task: built, not yet trained.
        data: its loaders.
        trainer: its device and precision are used.
        console: shows a progress bar.

    Raises:
        UsageError: where the loss falls at no rate, or the strategy has none.
    """
    device = trainer.strategy.root_device
    rates = np.geomspace(LOW, HIGH, STEPS)
    losses: list[float] = []
    average, lowest = 0.0, math.inf
    with fork_rng(task.seed, "lr_find"):
        twin = copy.deepcopy(task).to(device)
        # What ever trains, or a strategy with phases would get the rate of its first, a linear probe.
        twin.model.set_trainable(trained_stages(twin.strategy, twin.optimization.epochs))
        for term in twin.all_terms():
            term.on_fit_start(twin.model, data)
        twin.train()
        optimizer = twin.build_optimizer()
        factors = [group["lr"] / task.lr for group in optimizer.param_groups]
        if not any(factors):
            raise UsageError(f"lr_find=true: strategy={task.strategy.name} has no rate; leave it out")
        batches = _endless(data)
        for step in track(range(STEPS), "lr_find", transient=True, console=console, disable=not console.is_terminal):
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = factor * rates[step]
            with trainer.strategy.precision_plugin.forward_context():
                loss = twin.training_step(_to_device(next(batches), device), step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average = SMOOTHING * average + (1 - SMOOTHING) * loss.item()
            smoothed = average / (1 - SMOOTHING ** (step + 1))
            if not smoothed < DIVERGED * lowest:
                break
            lowest = min(lowest, smoothed)
            losses.append(smoothed)
    return LRFinderResult(_suggest(rates, losses), rates[: len(losses)], np.array(losses))


def _suggest(rates: np.ndarray, losses: list[float]) -> float:
    if not losses or (index := int(np.argmin(losses))) == 0:
        raise UsageError(f"lr_find=true: the loss decreases at no rate between {LOW:g} and {HIGH:g}; set lr= yourself")
    return float(SAFETY * rates[index])


def _endless(data: TransferDataModule) -> Iterator[Any]:
    loader = data.train_dataloader()  # once, since each would start workers of its own
    while True:
        for batch, _, _ in loader:
            yield batch


def _to_device(batch: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, batch)
