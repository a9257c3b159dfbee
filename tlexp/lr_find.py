"""A learning rate by a short trial: a tenth of the rate at which the loss is smallest (Smith 2017)."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.progress import track

from tlexp.data.pair import TransferData
from tlexp.errors import UsageError
from tlexp.report import console
from tlexp.streams import forked
from tlexp.task import TransferTask

LOW, HIGH, STEPS = 1e-6, 1.0, 100
SMOOTH = 0.9  # of the loss's moving average
DIVERGED = 4.0  # times the smallest loss so far
SHARE = 0.1  # of the rate with the smallest loss: there it is about to grow again, and smoothed losses lag behind


@dataclass(frozen=True)
class Trial:
    """The curve of a trial and what it suggests.

    Attributes:
        lr: the head's rate; stages keep their factors of it.
        rates: that were tried, (n,).
        losses: smoothed, (n,).
    """

    lr: float
    rates: np.ndarray
    losses: np.ndarray


def find_lr(task: TransferTask, data: TransferData, trainer: pl.Trainer) -> Trial:
    """Trains a copy of the task with a rate that grows from step to step, until the loss runs away.

    Weights, optimizer and random streams of the task itself stay as they are.

    Args:
        task: assembled, not yet trained.
        data: its loaders, read.
        trainer: whose device and precision are used.

    Raises:
        UsageError: where the loss falls at no rate, or the strategy has none.
    """
    device = trainer.strategy.root_device
    rates = np.geomspace(LOW, HIGH, STEPS)
    losses: list[float] = []
    average, lowest = 0.0, math.inf
    with forked(task.seed, "lr_find"):
        trial = copy.deepcopy(task).to(device)
        trial.model.set_trainable(trial.strategy.trainable(0))
        for term in trial.all_terms():
            term.start(trial.model, data)
        trial.train()
        optimizer = trial.build_optimizer()
        factors = [group["lr"] / task.lr for group in optimizer.param_groups]
        if not any(factors):
            raise UsageError(f"lr_find=true: strategy={task.strategy.name} has no rate; leave it out")
        batches = _endless(data)
        for step in track(range(STEPS), "lr_find", transient=True, console=console, disable=not console.is_terminal):
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = factor * rates[step]
            with trainer.strategy.precision_plugin.forward_context():
                loss = trial.training_step(_moved(next(batches), device), step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average = SMOOTH * average + (1 - SMOOTH) * loss.item()
            smoothed = average / (1 - SMOOTH ** (step + 1))
            if not smoothed < DIVERGED * lowest:
                break
            lowest = min(lowest, smoothed)
            losses.append(smoothed)
    return Trial(_suggested(rates, losses), rates[: len(losses)], np.array(losses))


def _suggested(rates: np.ndarray, losses: list[float]) -> float:
    if not losses or (place := int(np.argmin(losses))) == 0:
        raise UsageError(f"lr_find=true: between {LOW:g} and {HIGH:g} the loss falls at no rate; give lr= yourself")
    return float(SHARE * rates[place])


def _endless(data: TransferData) -> Iterator[Any]:
    while True:
        for batch, _, _ in data.train_dataloader():
            yield batch


def _moved(batch: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, batch)
