"""Fixed, stratified splits and nested label budgets, drawn from `split_seed` and never from a run's seed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tlexp.errors import UsageError
from tlexp.streams import permutation

Indices = NDArray[np.int64]
VAL_EVERY = 5  # of five labelled examples of a class the second validates, so that a single one trains


@dataclass(frozen=True)
class Split:
    """Disjoint sorted indices into a domain's samples.

    Attributes:
        train: indices the weights are fitted on.
        val: indices that choose the checkpoint.
        test: indices read once, at the end.
    """

    train: Indices
    val: Indices
    test: Indices

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that are equal exactly where all three parts are."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            digest.update(len(part).to_bytes(8, "big") + part.astype("<i8").tobytes())
        return digest.hexdigest()[:12]


def split(
    labels: NDArray[np.int64],
    split_seed: int,
    test_fraction: float,
    shots: int | None = None,
    fraction: float | None = None,
    draw: int = 0,
    val: str = "in_budget",
    given: Mapping[str, Indices] | None = None,
) -> Split:
    """Splits a domain class by class.

    The test split depends on `split_seed` alone. What is left of a class is put into one order for each `draw`, of
    which a budget buys the first labels and one in five, the second, validates; so the training and the
    validation examples of 5 shots are all among those of 10, and these among those of 25. With `val="large"` the
    budget buys training examples only and one in five of all that is left validates: an optimistic choice, since
    it spends labels that the budget does not have.

    Splits that the data set brings along are kept: a given test split is the test split, and a given validation split
    validates unless a budget is to pay for validation too. What is missing is cut from the training split.

    Args:
        labels: int64 of shape (n,).
        split_seed: the chance of all splits of this run.
        test_fraction: share of each class held out for the test.
        shots: labels a class; None for no limit.
        fraction: share of the labels outside the test, at least one a class; None for no limit.
        draw: which of the nested label subsets is bought.
        val: `in_budget` or `large`.
        given: indices by part, `train` among them; None or empty where the data set has no splits of its own.

    Raises:
        UsageError: where a class has fewer labels than the budget buys.
    """
    given = given or {"train": np.arange(len(labels))}
    parts: dict[str, list[Indices]] = {"train": [], "val": [], "test": [given.get("test", labels[:0])]}
    validated = "val" in given and (val == "large" or (shots is None and fraction is None))
    if validated:
        parts["val"].append(given["val"])
    for label in np.unique(labels):
        members = given["train"][labels[given["train"]] == label]
        if "test" in given:
            pool = members
        else:
            members = members[permutation(len(members), split_seed, "test", label)]
            held_out = max(1, round(test_fraction * len(members)))
            parts["test"].append(members[:held_out])
            pool = members[held_out:]
        pool = pool[permutation(len(pool), split_seed, "budget", draw, label)]
        if shots is not None and shots > len(pool):
            rule = f"a class has only {len(pool)} labels outside the test split; use fewer, or null for all"
            raise UsageError(f"data.shots={shots}: {rule}")
        bought = _budget(len(pool), shots, fraction)
        validates = np.arange(len(pool)) % VAL_EVERY == 1
        if validated:
            parts["train"].append(pool[:bought])
        elif val == "large":
            parts["val"].append(pool[validates])
            parts["train"].append(pool[~validates][:bought])
        else:
            parts["val"].append(pool[:bought][validates[:bought]])
            parts["train"].append(pool[:bought][~validates[:bought]])
    return Split(**{name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()})


def _budget(available: int, shots: int | None, fraction: float | None) -> int:
    if shots is not None:
        return shots
    if fraction is not None:
        return max(1, round(fraction * available))
    return available
