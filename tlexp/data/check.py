"""What is wrong with data before anything trains on them: what cannot be read, what is there twice, what leaks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from tlexp.data.domain import Domain
from tlexp.data.samples import PARTS
from tlexp.data.scan import Facts

ALIKE_BITS = 2  # of 64 that may differ between pictures that look the same
PLAIN_BITS = 6  # fewer edges than this say nothing: every plain picture looks like every other
RATIO = 10  # between the largest and the smallest class, from which balancing is worth a thought


@dataclass(frozen=True)
class Place:
    """A split of a role, and which of its examples lie in it.

    Attributes:
        name: `target/train` and the like.
        facts: of its examples, in order.
        labels: the names of their classes.
        wheres: what people know each by.
    """

    name: str
    facts: Sequence[Facts]
    labels: Sequence[str]
    wheres: Sequence[str]


@dataclass(frozen=True)
class Twins:
    """Examples of two splits, or of one, that are the same or look the same.

    Attributes:
        first: the one split.
        second: the other split, or the same.
        same: how many examples of the second are in the first as well.
        alike: how many more look nearly the same; pictures only.
        example: the first pair, by their names.
    """

    first: str
    second: str
    same: int
    alike: int
    example: str

    @property
    def leak(self) -> bool:
        """Whether what is trained on, or chosen by, is in the target's test split."""
        return self.second == "target/test" != self.first or self.first == "target/test" != self.second


def places(domains: Mapping[str, Domain], facts: Mapping[str, Sequence[Facts]]) -> list[Place]:
    """Returns every split of every role."""
    found = []
    for role, domain in domains.items():
        samples = domain.samples
        where = samples.inputs.where
        for part in PARTS:
            indices = getattr(domain.split, part).tolist()
            names = [samples.classes[samples.labels[index]] for index in indices]
            found.append(Place(f"{role}/{part}", [facts[role][i] for i in indices], names, [where(i) for i in indices]))
    return found


def twins(splits: Sequence[Place]) -> list[Twins]:
    """Returns every pair of splits that share examples, each split with itself included."""
    found = (_twins(first, second) for first, second in combinations_with_replacement(splits, 2))
    return [pair for pair in found if pair.same or pair.alike]


def _twins(first: Place, second: Place) -> Twins:
    itself = first is second
    seen: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    if not itself:
        seen = {fact.content: index for index, fact in reversed(list(enumerate(first.facts)))}
    for index, fact in enumerate(second.facts):
        if (other := seen.get(fact.content)) is not None:
            pairs.append((other, index))
        elif itself:
            seen[fact.content] = index
    near = list(_alike(first, second, {index for _, index in pairs}))
    shown = (pairs + near)[:1]
    example = "".join(f"{first.wheres[one]} and {second.wheres[two]}" for one, two in shown)
    return Twins(first.name, second.name, len(pairs), len(near), example)


def _alike(first: Place, second: Place, same: set[int]) -> Iterator[tuple[int, int]]:
    """Yields, for each other picture of the second split, the first one whose thumbnail differs in next to nothing."""
    theirs = _looks(second)
    looks, places = np.unique(_looks(first), return_index=True)
    looks, places = looks[_edges(looks)], places[_edges(looks)]
    rows = np.array([row for row in np.flatnonzero(_edges(theirs)) if row not in same], np.int64)
    for start in range(0, len(rows) if len(looks) else 0, 256):
        some = rows[start : start + 256]
        close = np.bitwise_count(theirs[some, None] ^ looks[None]) <= ALIKE_BITS
        if first is second:
            close &= places[None] < some[:, None]
        for row in np.flatnonzero(close.any(1)):
            yield int(places[close[row].argmax()]), int(some[row])


def _looks(place: Place) -> NDArray[np.uint64]:
    return np.array([fact.look for fact in place.facts], np.uint64)


def _edges(looks: NDArray[np.uint64]) -> NDArray[np.bool_]:
    bits = np.bitwise_count(looks)
    return (bits >= PLAIN_BITS) & (bits <= 64 - PLAIN_BITS)


def disagreements(splits: Sequence[Place]) -> list[str]:
    """Returns pairs of equal examples of one role that have different labels."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    found = []
    for place in splits:
        role = place.name.split("/")[0]
        for fact, label, where in zip(place.facts, place.labels, place.wheres, strict=True):
            other, label_of_other = seen.setdefault((role, fact.content), (where, label))
            if label != label_of_other:
                found.append(f"{other} is {label_of_other}, {where} is {label}")
    return found


def warnings(domains: Mapping[str, Domain], splits: Sequence[Place], pairs: Sequence[Twins]) -> list[str]:
    """Returns what a user should look at, what matters most first."""
    found = []
    for pair in pairs:
        if pair.leak:
            both = f"{pair.same:,} the same, {pair.alike:,} nearly" if pair.alike else f"{pair.same:,} the same"
            found.append(f"leak: {pair.first} and {pair.second} share examples ({both}), such as {pair.example}")
    if differing := disagreements(splits):
        found.append(f"labels: {len(differing):,} equal examples have different ones, such as {differing[0]}")
    for pair in pairs:
        if not pair.leak and pair.same:
            where = f"within {pair.first}" if pair.first == pair.second else f"in {pair.first} and {pair.second}"
            found.append(f"twice: {pair.same:,} examples {where}, such as {pair.example}")
    for role, domain in domains.items():
        found += [f"{role}: {notice}" for notice in domain.notices()]
        names = domain.samples.classes
        counts = np.bincount(domain.labels("train"), minlength=len(names))
        most, least = int(counts.argmax()), int(counts.argmin())
        if counts[most] >= RATIO * max(1, counts[least]):
            rule = "see objective.class_weights and data.sampling"
            both = f"{names[most]} has {counts[most]:,} training examples and {names[least]} {counts[least]:,}"
            found.append(f"{role}: {both}; {rule}")
    return found
