from itertools import chain

import numpy as np
import pytest
import torch

from tlexp.data.batches import ArrayDataset, CycledBatches, OrderedBatches, ShuffledBatches


def indices(batches):
    return [pick.indices.tolist() for pick in batches]


@pytest.mark.parametrize(("n", "size", "sizes"), [(17, 8, [6, 6, 5]), (16, 8, [8, 8]), (5, 5, [5]), (33, 32, [17, 16])])
def test_an_epoch_is_one_pass_in_even_batches(n, size, sizes):
    batches = ShuffledBatches(n, size, seed=0)
    assert [len(batch) for batch in indices(batches)] == sizes
    assert sorted(chain(*indices(batches))) == list(range(n))


def test_order_depends_on_seed_and_epoch_alone():
    batches = ShuffledBatches(20, 8, seed=0)
    first = indices(batches)
    batches.set_epoch(1)
    assert indices(batches) != first
    batches.set_epoch(0)
    assert indices(batches) == first
    assert indices(ShuffledBatches(20, 8, seed=1)) != first


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", ["target", "source"])
def test_processes_share_each_batch_out(kind, world):
    def build(rank, world):
        return ShuffledBatches(17, 8, 0, rank, world) if kind == "target" else CycledBatches(17, 8, 3, 0, rank, world)

    parts = [list(build(rank, world)) for rank in range(world)]
    for whole, *local in zip(build(0, 1), *parts, strict=True):
        assert sorted(np.concatenate([part.indices for part in local])) == sorted(whole.indices)
        values = np.arange(17.0) ** 2
        average = np.mean([part.share * values[part.indices].mean() for part in local])
        assert average == pytest.approx(values[whole.indices].mean())


def test_the_source_cycles_reshuffled_and_keeps_its_place():
    batches = CycledBatches(n=10, batch_size=4, steps=3, seed=0)
    stream = []
    for epoch in range(5):
        batches.set_epoch(epoch)
        assert len(batches) == len(indices(batches)) == 3
        stream += chain(*indices(batches))
    passes = [stream[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert len({tuple(each) for each in passes}) == 6


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_reads_every_example_once(world):
    seen = [i for rank in range(world) for batch in indices(OrderedBatches(21, 4, rank, world)) for i in batch]
    assert sorted(seen) == list(range(21))


def test_a_batch_is_one_indexing_operation():
    data = ArrayDataset(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    batch = data[next(iter(OrderedBatches(6, 4)))]
    assert batch.inputs.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert batch.labels.tolist() == [0, 1, 2, 3]
    assert batch.share == 1.0
