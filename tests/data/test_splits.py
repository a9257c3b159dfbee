import numpy as np
import pytest

from tlexp.data.splits import split
from tlexp.errors import UsageError

LABELS = np.repeat(np.arange(4), [100, 60, 40, 31])


@pytest.mark.parametrize("budget", [{}, {"shots": 5}, {"fraction": 0.2}, {"shots": 5, "val": "large"}])
def test_parts_are_disjoint_and_hold_every_class(budget):
    components = split(LABELS, split_seed=0, test_fraction=0.4, **budget)
    indices = np.concatenate([components.train, components.val, components.test])
    assert len(indices) == len(np.unique(indices))
    for part in (components.train, components.val, components.test):
        assert set(LABELS[part]) == {0, 1, 2, 3}


def test_without_a_budget_every_example_is_used():
    components = split(LABELS, split_seed=0, test_fraction=0.4)
    assert len(components.train) + len(components.val) + len(components.test) == len(LABELS)
    assert np.bincount(LABELS[components.test]).tolist() == [40, 24, 16, 12]


def test_a_budget_counts_validation_in_and_is_nested():
    wholes = {k: split(LABELS, 0, 0.4, shots=k) for k in (2, 5, 10, 15)}
    for k, components in wholes.items():
        bought = np.concatenate([components.train, components.val])
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
    components = split(LABELS, 0, 0.4, shots=5, val="large")
    assert np.bincount(LABELS[components.train]).tolist() == [5] * 4
    assert len(components.val) == 12 + 7 + 5 + 4


def test_split_seed_decides_the_test_and_draw_only_the_budget():
    first, drawn = split(LABELS, 0, 0.4, shots=5), split(LABELS, 0, 0.4, shots=5, draw=1)
    assert set(first.test) == set(drawn.test)
    assert set(first.train) != set(drawn.train)
    assert set(split(LABELS, 1, 0.4).test) != set(first.test)


def whole(components):
    return tuple(tuple(part) for part in (components.train, components.val, components.test))


def test_equal_arguments_give_equal_splits():
    assert len({whole(split(LABELS, 0, 0.4, shots=5)) for _ in range(3)}) == 1
    assert len({whole(split(LABELS, seed, 0.4, shots=shots)) for seed in (0, 1) for shots in (5, 6)}) == 4


# Subjects with 1 to 8 examples each, of one class or of several.
SUBJECTS = np.repeat(np.arange(60), np.arange(60) % 8 + 1)
KINDS = np.random.default_rng(0).integers(0, 3, len(SUBJECTS))


@pytest.mark.parametrize("budget", [{}, {"shots": 10}, {"fraction": 0.3}, {"shots": 10, "val": "large"}, {"draw": 3}])
@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits(budget, seed):
    components = split(KINDS, seed, 0.3, groups=SUBJECTS, **budget)
    owners = [set(SUBJECTS[part]) for part in (components.train, components.val, components.test)]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    for part in (components.train, components.val, components.test):
        assert set(KINDS[part]) == {0, 1, 2}


@pytest.mark.parametrize("seed", range(5))
def test_whole_groups_meet_the_shares_of_every_class_nearly(seed):
    components = split(KINDS, seed, 0.3, groups=SUBJECTS)
    shares = np.bincount(KINDS[components.test]) / np.bincount(KINDS)
    assert np.abs(shares - 0.3).max() < 0.03
    rest = np.concatenate([components.train, components.val])
    assert len(rest) + len(components.test) == len(KINDS)
    assert np.abs(np.bincount(KINDS[components.val]) / np.bincount(KINDS[rest]) - 0.2).max() < 0.03


def test_budgets_of_grouped_data_are_nested_and_counted():
    wholes = {k: split(KINDS, 0, 0.3, shots=k, groups=SUBJECTS) for k in (5, 10, 15)}
    for k, components in wholes.items():
        assert np.bincount(KINDS[np.concatenate([components.train, components.val])]).tolist() == [k] * 3
        assert np.bincount(KINDS[components.val]).tolist() == [(k + 3) // 5] * 3
    for small, large in ((5, 10), (10, 15)):
        assert set(wholes[small].train) <= set(wholes[large].train)
        assert set(wholes[small].val) <= set(wholes[large].val)
        assert set(wholes[small].test) == set(wholes[large].test)


def test_groups_too_large_for_the_budget_are_named():
    labels, groups = np.repeat([0, 1], 20), np.repeat([0, 1, 2, 3], 10)
    with pytest.raises(
        UsageError, match=r"data.shots=5: groups stay whole, which leaves class number 0 with 4 to train on and 0"
    ):
        split(labels, 0, 0.1, shots=5, groups=groups)


def test_one_group_a_class_still_splits_where_there_are_others():
    labels, groups = np.repeat([0, 1], 30), np.repeat(np.arange(6), 10)
    components = split(labels, 0, 0.3, groups=groups)
    assert len(components.train) + len(components.val) + len(components.test) == 60
