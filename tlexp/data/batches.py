"""Which examples make a batch: pure functions of (seed, epoch), shared out over processes without a remainder.

A sampler yields a whole batch at a time, so a loader fetches it with one indexing operation.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tlexp.streams import permutation

Indices = NDArray[np.int64]


class Pick(NamedTuple):
    """A process's part of one batch.

    Attributes:
        indices: the examples, shape (local batch,).
        share: what makes the average over processes of `share * mean loss` the mean over the whole batch, also
            where the parts differ in size; 1 for a single process.
        times: how often each example came before, shape (local batch,): its augmentation depends on nothing else.
    """

    indices: Indices
    share: float
    times: Indices


class Batch(NamedTuple):
    """Inputs, a tensor (batch, ...) or several by name, labels (batch,), the share of `Pick`, perhaps a second view."""

    inputs: Tensor | dict[str, Tensor]
    labels: Tensor
    share: float
    second: Tensor | None = None


class ArrayDataset(Dataset[Batch]):
    """Examples as the backbone takes them: what gives inputs by their indices, and labels (n,)."""

    def __init__(self, inputs: Any, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, pick: Pick) -> Batch:
        return Batch(self.inputs[pick.indices], self.labels[pick.indices], pick.share)


def _part(batch: Indices, times: Indices, rank: int, world: int) -> Pick:
    local = batch[rank::world]
    return Pick(local, len(local) * world / len(batch), times[rank::world])


def ordered(n: int, balance: Indices | None, seed: int, name: str, number: int) -> tuple[Indices, Indices]:
    """Returns the order of the examples in pass `number` over the data, and how often each came before.

    Args:
        n: how many examples a pass has.
        balance: the labels of all examples, shape (n,): every class comes equally often, up to one example. Each class
            has a stream of its own without end, reshuffled at each wrap, so that a rare class is repeated and of a
            frequent one other examples come in each pass; None for every example once.
        seed: of the named stream.
        name: of the stream.
        number: which pass.
    """
    if balance is None:
        return permutation(n, seed, name, number), np.full(n, number)
    classes = np.unique(balance)
    quota = math.ceil(n / len(classes))
    chosen, times = [], []
    for label in classes:
        members = np.flatnonzero(balance == label)
        places = np.arange(number * quota, (number + 1) * quota)
        wraps = places // len(members)
        orders = {wrap: permutation(len(members), seed, name, label, wrap) for wrap in np.unique(wraps)}
        chosen.append(members[[orders[wrap][place % len(members)] for wrap, place in zip(wraps, places, strict=True)]])
        times.append(wraps)
    mixed = permutation(quota * len(classes), seed, name, "mixed", number)[:n]
    return np.concatenate(chosen)[mixed], np.concatenate(times)[mixed]


class ShuffledBatches(Sampler[Pick]):
    """The target's training batches: as many examples as there are in each epoch, in batches of at most `batch_size`.

    The batches of an epoch are as equal as they can be, so that no small last one is drawn (17 examples in
    batches of 8 are 6 + 6 + 5), and each step weighs about as much as any other. Each example comes once, unless
    `balance` holds the labels: see `ordered`.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, balance: Indices | None = None
    ) -> None:
        self.n, self.batch_size, self.seed, self.balance = n, batch_size, seed, balance
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pick]:
        order, times = ordered(self.n, self.balance, self.seed, "batches/target", self.epoch)
        for batch, before in zip(np.array_split(order, len(self)), np.array_split(times, len(self)), strict=True):
            yield _part(batch, before, self.rank, self.world)


class CycledBatches(Sampler[Pick]):
    """Another role's training batches: one for each of the target's, from a stream without end.

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
