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

    by_rank = [list(build(rank, world)) for rank in range(world)]
    for whole, *local in zip(build(0, 1), *by_rank, strict=True):
        assert sorted(np.concatenate([part.indices for part in local])) == sorted(whole.indices)
        values = np.arange(17.0) ** 2
        average = np.mean([part.ddp_scale * values[part.indices].mean() for part in local])
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
    assert batch.ddp_scale == 1.0


RARE = np.repeat([0, 1], [95, 5])


def test_balanced_batches_bring_every_class_equally_often_and_all_of_it_in_turn():
    batches = ShuffledBatches(100, 10, seed=0, balance=RARE)
    seen = set()
    for epoch in range(2):
        batches.set_epoch(epoch)
        order = list(chain(*indices(batches)))
        assert np.bincount(RARE[order]).tolist() == [50, 50]
        assert epoch or len({i for i in order if RARE[i] == 0}) == 50, "of the frequent class nobody comes twice"
        assert np.bincount(order, minlength=100)[95:].tolist() == [10] * 5
        seen |= set(order)
    assert seen == set(range(100)), "the second epoch brings the other half of the frequent class"


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("kind", ["target", "source"])
def test_balanced_batches_are_shared_out_like_others(kind, world):
    def build(rank, world):
        if kind == "target":
            return ShuffledBatches(100, 12, 0, rank, world, RARE)
        return CycledBatches(100, 12, 7, 0, rank, world, RARE)

    by_rank = [list(build(rank, world)) for rank in range(world)]
    for whole, *local in zip(build(0, 1), *by_rank, strict=True):
        assert sorted(np.concatenate([part.indices for part in local])) == sorted(whole.indices)
    drawn = np.concatenate([pick.indices for pick in build(0, 1)])
    assert abs(RARE[drawn].mean() - 0.5) < 0.15


@pytest.mark.parametrize("balance", [None, np.repeat([0, 1], [12, 5])])
def test_every_pick_says_how_often_its_examples_came_before(balance):
    """(example, times) never repeats, so the augmentation of an example never does."""
    for batches in (ShuffledBatches(17, 8, 0, balance=balance), CycledBatches(17, 8, 3, 0, balance=balance)):
        pairs = []
        for epoch in range(4):
            batches.set_epoch(epoch)
            for pick in batches:
                pairs += zip(pick.indices.tolist(), pick.times.tolist(), strict=True)
        assert len(pairs) == len(set(pairs))
