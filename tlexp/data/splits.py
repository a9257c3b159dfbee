"""Fixed, stratified splits and nested label budgets, drawn from `split_seed` and never from a run's seed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tlexp.errors import UsageError
from tlexp.rng import permutation

Indices = NDArray[np.int64]
ORDERS, NEAR = 16, 0.005  # orders of groups to try until one is this close to the wanted counts
VAL_EVERY = 5  # of five labelled examples of a class the second validates, so that a single label trains


@dataclass(frozen=True)
class Split:
    """Disjoint sorted indices into a domain's samples.

    Attributes:
        train: indices the weights are fitted on.
        val: indices that choose the checkpoint.
        test: indices used once, at the end.
        folds: disjoint parts of `train`, each of which validates once; empty without cross-validation.
    """

    train: Indices
    val: Indices
    test: Indices
    folds: tuple[Indices, ...] = ()

    def fold(self, number: int) -> "Split":
        """Returns the split in which a fold validates and the others train."""
        held_out = self.folds[number]
        return Split(np.setdiff1d(self.train, held_out), held_out, self.test)

    def merged(self) -> "Split":
        """Returns the split in which all labels train."""
        return Split(np.sort(np.concatenate([self.train, self.val])), self.val[:0], self.test)


def split(
    labels: NDArray[np.int64],
    split_seed: int,
    test_fraction: float,
    shots: int | None = None,
    fraction: float | None = None,
    draw: int = 0,
    val: str = "in_budget",
    given: Mapping[str, Indices] | None = None,
    groups: Indices | None = None,
) -> Split:
    """Splits a domain class by class.

    The test split depends on `split_seed` alone. The rest of a class is put into one order for each `draw`; a budget
    takes the first labels of it, of which every fifth, starting with the second, validates. So budgets are nested: the
    training and validation examples of 5 shots are all among those of 10, and these among those of 25. With
    `val="large"` the budget pays for training examples only and a fifth of all that is left validates: an optimistic
    choice of the checkpoint, since it uses labels that the budget does not have. With `val="cv"` all labels of the
    budget train, and as many folds as a class has labels, at most five, validate in turn: label n of a class is in fold
    n modulo their number, so that folds are stratified and nested over budgets of five and more.

    Splits that the data set comes with are kept: a given test split is the test split, and a given validation split
    validates unless a budget has to pay for validation too. Missing splits are taken from the training split.

    Where there are groups, whole groups are held out and whole groups validate, so that the class proportions are met
    as closely as the groups allow; which groups validate does not depend on the budget.

    Args:
        labels: int64 of shape (n,).
        split_seed: seed of all splits of the run.
        test_fraction: fraction of each class that is held out for the test.
        shots: labels per class; None for no limit.
        fraction: fraction of the labels outside the test, at least one per class; None for no limit.
        draw: which of the nested label subsets is taken.
        val: `in_budget`, `large` or `cv`.
        given: indices by split, `train` among them; None or empty where the data set has no splits of its own.
        groups: int64 of shape (n,), equal for examples that no two splits may share; None where there are none.

    Raises:
        UsageError: where a class has fewer labels than the budget asks for.
    """
    given = given or {"train": np.arange(len(labels))}
    cross_validates, val = val == "cv", "in_budget" if val == "cv" else val
    splits: dict[str, list[Indices]] = {"train": [], "val": [], "test": [given.get("test", labels[:0])]}
    validated = "val" in given and (val == "large" or (shots is None and fraction is None))
    if validated:
        splits["val"].append(given["val"])
    pool = given["train"]
    if "test" not in given and groups is not None:
        held_out = _whole_groups(labels, groups, pool, test_fraction, split_seed, "test")
        splits["test"].append(pool[held_out])
        pool = pool[~held_out]
    validating, rank = np.zeros(len(labels), bool), np.arange(len(labels))
    if groups is not None and not validated:
        validating[pool] = _whole_groups(labels, groups, pool, 1 / VAL_EVERY, split_seed, "val", draw)
    for label in np.unique(labels[pool]):
        members = pool[labels[pool] == label]
        if "test" not in given and groups is None:
            members = members[permutation(len(members), split_seed, "test", label)]
            held = max(1, round(test_fraction * len(members)))
            splits["test"].append(members[:held])
            members = members[held:]
        members = members[permutation(len(members), split_seed, "budget", draw, label)]
        rank[members] = np.arange(len(members))
        if validated:
            validates = np.zeros(len(members), bool)
        else:
            validates = validating[members] if groups is not None else _second_of_five(len(members))
        available = int((~validates).sum()) if val == "large" else len(members)
        if shots is not None and shots > available:
            outside = "outside the test split" + (" and validation" if val == "large" else "")
            remedy = f"a class has only {available} labels {outside}; use fewer, or null for all"
            raise UsageError(f"data.shots={shots}: {remedy}")
        budget = _budget(len(members), shots, fraction)
        # Of the budget as many labels validate as a budget of that size can spare.
        n_val = int(_second_of_five(budget).sum()) if not validated and val == "in_budget" else 0
        unlimited = budget == len(members) and val == "in_budget"
        splits["val"].append(members[validates] if val == "large" or unlimited else members[validates][:n_val])
        splits["train"].append(members[~validates] if unlimited else members[~validates][: budget - n_val])
        if shots is not None and groups is not None and not unlimited:
            _check_budget(label, shots, budget - n_val, splits["train"][-1], n_val, splits["val"][-1])
    train, val_, test = (np.sort(np.concatenate(splits[name])) for name in ("train", "val", "test"))
    made = Split(train, val_, test)
    return _with_folds(made.merged(), labels, rank, groups) if cross_validates else made


def _with_folds(split: Split, labels: Indices, rank: Indices, groups: Indices | None) -> Split:
    """Returns a split with folds of its training examples.

    Args:
        split: whose training examples are all labels.
        labels: of all samples.
        rank: the order of a class's samples in budgets.
        groups: of all samples, or None.

    Raises:
        UsageError: where a class has a single label.
    """
    train = split.train
    what = np.arange(len(labels)) if groups is None else groups
    fewest = min(len(np.unique(what[train][labels[train] == label])) for label in np.unique(labels[train]))
    count = min(VAL_EVERY, fewest)
    if count < 2:
        single = "label" if groups is None else "group"
        remedy = f"a class has a single {single}, and folds need two; raise data.shots, or use data.val=in_budget"
        raise UsageError(f"data.val=cv: {remedy}")
    if groups is not None:
        from sklearn.model_selection import StratifiedGroupKFold

        found = list(StratifiedGroupKFold(count).split(train, labels[train], groups[train]))
        if any(len(np.unique(labels[train[kept]])) < len(np.unique(labels[train])) for kept, _ in found):
            remedy = "groups stay whole, and no folds leave every class something to train on"
            raise UsageError(f"data.val=cv: {remedy}; raise data.shots, or use data.val=in_budget")
        return replace(split, folds=tuple(train[held_out] for _, held_out in found))
    number = np.zeros(len(train), dtype=np.int64)
    for label in np.unique(labels[train]):
        members = np.flatnonzero(labels[train] == label)
        number[members[np.argsort(rank[train[members]], kind="stable")]] = np.arange(len(members)) % count
    return replace(split, folds=tuple(train[number == fold] for fold in range(count)))


def _second_of_five(n: int) -> NDArray[np.bool_]:
    validates: NDArray[np.bool_] = np.arange(n) % VAL_EVERY == 1
    return validates


def _budget(available: int, shots: int | None, fraction: float | None) -> int:
    if shots is not None:
        return shots
    if fraction is not None:
        return max(1, round(fraction * available))
    return available


def _check_budget(label: int, shots: int, train: int, trains: Indices, val: int, validates: Indices) -> None:
    if len(trains) < train or (len(validates) < val):
        have = f"{len(trains)} to train on and {len(validates)} to validate with"
        reason = f"groups stay whole, which leaves class number {label} with {have} where {train} and {val} are needed"
        raise UsageError(f"data.shots={shots}: {reason}; use fewer, or another split_seed or data.draw")


def _whole_groups(
    labels: Indices, groups: Indices, pool: Indices, fraction: float, seed: int, *name: object
) -> NDArray[np.bool_]:
    """Returns which of `pool` are in groups that together hold about `fraction` of each class.

    Groups come in a random order, and each is taken where that brings the class counts closer to the wanted ones; of
    several orders the closest result counts. At least one group is taken, and at least one is left.
    """
    members, which = np.unique(groups[pool], return_inverse=True)
    counts = np.zeros((len(members), int(labels.max()) + 1))
    np.add.at(counts, (which, labels[pool]), 1)
    wanted = fraction * counts.sum(0)
    best, nearest = np.zeros(len(members), bool), np.inf
    for attempt in range(ORDERS):
        order, rest = permutation(len(members), seed, "groups", *name, attempt), wanted
        taken = np.zeros(len(members), bool)
        for group in order[:-1]:
            if not taken.any() or np.abs(rest - counts[group]).sum() < np.abs(rest).sum():
                taken[group], rest = True, rest - counts[group]
        if np.abs(rest).sum() < nearest:
            best, nearest = taken, np.abs(rest).sum()
        if nearest <= NEAR * wanted.sum():
            break
    return best[which]
