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
    """

    indices: Indices
    share: float


class Batch(NamedTuple):
    """Inputs, a tensor (batch, ...) or several by name, labels (batch,) and the share of `Pick`."""

    inputs: Tensor | dict[str, Tensor]
    labels: Tensor
    share: float


class ArrayDataset(Dataset[Batch]):
    """Examples that are in memory already: what gives inputs by their indices, and labels (n,)."""

    def __init__(self, inputs: Any, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, pick: Pick) -> Batch:
        return Batch(self.inputs[pick.indices], self.labels[pick.indices], pick.share)


def _part(batch: Indices, rank: int, world: int) -> Pick:
    local = batch[rank::world]
    return Pick(local, len(local) * world / len(batch))


class ShuffledBatches(Sampler[Pick]):
    """The target's training batches: each example once an epoch, in batches of at most `batch_size`.

    The batches of an epoch are as equal as they can be, so that no small last one is drawn (17 examples in
    batches of 8 are 6 + 6 + 5), and each step weighs about as much as any other.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return math.ceil(self.n / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Pick]:
        order = permutation(self.n, self.seed, "batches/target", self.epoch)
        for batch in np.array_split(order, len(self)):
            yield _part(batch, self.rank, self.world)


class CycledBatches(Sampler[Pick]):
    """The source's training batches: one for each of the target's, from a stream without end.

    The stream is the data over and over, reshuffled at each wrap; epoch e continues where e - 1 stopped.
    """

    def __init__(self, n: int, batch_size: int, steps: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.n, self.batch_size, self.steps, self.seed = n, batch_size, steps, seed
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
        stream = np.concatenate([permutation(self.n, self.seed, "batches/source", wrap) for wrap in wraps])
        stream = stream[start - wraps[0] * self.n :][: stop - start]
        for batch in stream.reshape(self.steps, self.batch_size):
            yield _part(batch, self.rank, self.world)


class OrderedBatches(Sampler[Pick]):
    """Every example exactly once over all processes, for validation and test; parts may differ by one example."""

    def __init__(self, n: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.mine = np.arange(n)[rank::world]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.mine) / self.batch_size)

    def __iter__(self) -> Iterator[Pick]:
        for start in range(0, len(self.mine), self.batch_size):
            yield Pick(self.mine[start : start + self.batch_size], 1.0)
