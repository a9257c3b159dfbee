"""Which examples make up a batch: pure functions of (seed, epoch), divided over processes without a remainder.

A sampler yields a whole batch at a time, so that a loader fetches it with one indexing operation.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tlexp.rng import permutation

Indices = NDArray[np.int64]


class Pick(NamedTuple):
    """A process's part of one batch.

    Attributes:
        indices: the examples, shape (local batch,).
        ddp_scale: the factor with which the average over processes of `ddp_scale * mean loss` is the mean over the
            whole batch, also where the parts differ in size; 1 for a single process.
        times: how often each example came before, shape (local batch,): its augmentation depends on nothing else.
    """

    indices: Indices
    ddp_scale: float
    times: Indices


class Batch(NamedTuple):
    """A process's part of one batch, as the loader yields it.

    Attributes:
        inputs: a tensor (batch, ...), or several by name.
        labels: (batch,).
        ddp_scale: as in `Pick`.
        second_view: another augmented view of the inputs, where a term asks for two.
    """

    inputs: Tensor | dict[str, Tensor]
    labels: Tensor
    ddp_scale: float
    second_view: Tensor | None = None


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Returns the number of batches of one pass over the target's `n` training examples."""
    return math.ceil(n / batch_size)


class ArrayDataset(Dataset[Batch]):
    """Examples as the backbone takes them: an object that maps indices to inputs, and labels (n,)."""

    def __init__(self, inputs: Any, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, pick: Pick) -> Batch:
        return Batch(self.inputs[pick.indices], self.labels[pick.indices], pick.ddp_scale)


def _part(batch: Indices, times: Indices, rank: int, world: int) -> Pick:
    local = batch[rank::world]
    return Pick(local, len(local) * world / len(batch), times[rank::world])


def ordered(n: int, balance: Indices | None, seed: int, name: str, number: int) -> tuple[Indices, Indices]:
    """Returns the order of the examples in pass `number` over the data, and how often each came before.

    Args:
        n: the number of examples of a pass.
        balance: the labels of all examples, shape (n,): every class comes equally often, up to one example. Each class
            has an endless stream of its own, reshuffled at each wrap, so that a rare class is repeated while a frequent
            one contributes other examples in each pass; None for every example once.
        seed: of the named stream.
        name: of the stream.
        number: of the pass.
    """
    if balance is None:
        return permutation(n, seed, name, number), np.full(n, number)
    classes = np.unique(balance)
    quota = math.ceil(n / len(classes))
    chosen, times = [], []
    for label in classes:
        members = np.flatnonzero(balance == label)
        positions = np.arange(number * quota, (number + 1) * quota)
        wraps = positions // len(members)
        orders = {wrap: permutation(len(members), seed, name, label, wrap) for wrap in np.unique(wraps)}
        pairs = zip(wraps, positions, strict=True)
        chosen.append(members[[orders[wrap][position % len(members)] for wrap, position in pairs]])
        times.append(wraps)
    mixed = permutation(quota * len(classes), seed, name, "mixed", number)[:n]
    return np.concatenate(chosen)[mixed], np.concatenate(times)[mixed]


class ShuffledBatches(Sampler[Pick]):
    """Training batches of whole passes: as many examples as there are in each epoch, at most `batch_size` in a batch.

    The batches of an epoch are as equal as they can be, so that there is no small last one (17 examples in
    batches of 8 are 6 + 6 + 5), and each step weighs about as much as any other. Each example comes once, unless
    `balance` holds the labels: see `ordered`.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        balance: Indices | None = None,
        role: str = "target",
    ) -> None:
        self.n, self.batch_size, self.seed, self.balance = n, batch_size, seed, balance
        self.stream = f"batches/{role}"
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return steps_per_epoch(self.n, self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pick]:
        order, times = ordered(self.n, self.balance, self.seed, self.stream, self.epoch)
        for batch, before in zip(np.array_split(order, len(self)), np.array_split(times, len(self)), strict=True):
            yield _part(batch, before, self.rank, self.world)


class CycledBatches(Sampler[Pick]):
    """Training batches from an endless stream: one for each of the role's whose passes are counted.

    The stream is the data over and over, reshuffled at each wrap; epoch e continues where e - 1 stopped.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        balance: Indices | None = None,
        role: str = "source",
    ) -> None:
        self.n, self.batch_size, self.steps, self.seed, self.balance = n, batch_size, steps, seed, balance
        self.stream = f"batches/{role}"
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pick]:
        start = self.epoch * self.steps * self.batch_size
        stop = start + self.steps * self.batch_size
        wraps = range(start // self.n, math.ceil(stop / self.n))
        passes = [ordered(self.n, self.balance, self.seed, self.stream, wrap) for wrap in wraps]
        order, times = (
            np.concatenate(column)[start - wraps[0] * self.n :][: stop - start].reshape(self.steps, self.batch_size)
            for column in zip(*passes, strict=True)
        )
        for batch, before in zip(order, times, strict=True):
            yield _part(batch, before, self.rank, self.world)


class OrderedBatches(Sampler[Pick]):
    """Every example exactly once over all processes, for validation and test; parts may differ by one example."""

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.mine = np.arange(n)[rank::world]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.mine) / self.batch_size)

    def __iter__(self) -> Iterator[Pick]:
        for start in range(0, len(self.mine), self.batch_size):
            indices = self.mine[start : start + self.batch_size]
            yield Pick(indices, 1.0, np.zeros_like(indices))
