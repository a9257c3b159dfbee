import numpy as np
import pytest

from tlexp.data.splits import split

LABELS = np.repeat(np.arange(4), [100, 60, 40, 31])


@pytest.mark.parametrize("budget", [{}, {"shots": 5}, {"fraction": 0.2}, {"shots": 5, "val": "large"}])
def test_parts_are_disjoint_and_hold_every_class(budget):
    parts = split(LABELS, split_seed=0, test_fraction=0.4, **budget)
    indices = np.concatenate([parts.train, parts.val, parts.test])
    assert len(indices) == len(np.unique(indices))
    for part in (parts.train, parts.val, parts.test):
        assert set(LABELS[part]) == {0, 1, 2, 3}


def test_without_a_budget_every_example_is_used():
    parts = split(LABELS, split_seed=0, test_fraction=0.4)
    assert len(parts.train) + len(parts.val) + len(parts.test) == len(LABELS)
    assert np.bincount(LABELS[parts.test]).tolist() == [40, 24, 16, 12]


def test_a_budget_counts_validation_in_and_is_nested():
    wholes = {k: split(LABELS, 0, 0.4, shots=k) for k in (2, 5, 10, 15)}
    for k, parts in wholes.items():
        bought = np.concatenate([parts.train, parts.val])
        assert np.bincount(LABELS[bought]).tolist() == [k] * 4
    for small, large in ((2, 5), (5, 10), (10, 15)):
        assert set(wholes[small].train) <= set(wholes[large].train)
        assert set(wholes[small].val) <= set(wholes[large].val)
        assert set(wholes[small].test) == set(wholes[large].test)


def test_fractions_are_nested_too():
    small, large = (split(LABELS, 0, 0.4, fraction=f) for f in (0.1, 0.5))
    assert set(small.train) <= set(large.train)
    assert len(small.train) + len(small.val) == 6 + 4 + 2 + 2


def test_large_validation_buys_training_labels_only():
    parts = split(LABELS, 0, 0.4, shots=5, val="large")
    assert np.bincount(LABELS[parts.train]).tolist() == [5] * 4
    assert len(parts.val) == 12 + 7 + 5 + 4


def test_split_seed_decides_the_test_and_draw_only_the_budget():
    first, drawn = split(LABELS, 0, 0.4, shots=5), split(LABELS, 0, 0.4, shots=5, draw=1)
    assert set(first.test) == set(drawn.test)
    assert set(first.train) != set(drawn.train)
    assert set(split(LABELS, 1, 0.4).test) != set(first.test)


def test_the_hash_tells_splits_apart():
    same = {split(LABELS, 0, 0.4, shots=5).hash for _ in range(3)}
    assert len(same) == 1
    others = {split(LABELS, 0, 0.4, shots=6).hash, split(LABELS, 1, 0.4, shots=5).hash}
    assert len(same | others) == 3
