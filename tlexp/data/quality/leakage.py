"""Duplicates within and between splits, leaks into the test split, and labels that disagree."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from tlexp.data.class_names import nearly_the_same
from tlexp.data.domains import Domain
from tlexp.data.quality.looks import darkness, several_frames, single_colour
from tlexp.data.quality.scan import Facts
from tlexp.data.samples import SPLITS

NEAR_BITS = 2  # of 64 that may differ between near duplicates
PLAIN_BITS = 6  # with fewer edges than this an image looks like every other plain image
IMBALANCE = 10  # ratio of the largest to the smallest class from which balancing is worth considering


@dataclass(frozen=True)
class SplitExamples:
    """The examples of one split of a role.

    Attributes:
        name: such as `target/train`.
        facts: about its examples, in order.
        labels: their class names.
        locations: where a person finds each.
    """

    name: str
    facts: Sequence[Facts]
    labels: Sequence[str]
    locations: Sequence[str]


@dataclass(frozen=True)
class DuplicatePair:
    """Two splits, or one with itself, that share examples.

    Attributes:
        first: name of the one split.
        second: name of the other split, or the same.
        same: how many examples of the second are in the first as well.
        near: how many more are near duplicates; images only.
        example: the locations of the first pair.
    """

    first: str
    second: str
    same: int
    near: int
    example: str

    @property
    def leak(self) -> bool:
        """Whether examples of the target's test split are used for training or selection."""
        return self.second == "target/test" != self.first or self.first == "target/test" != self.second


def split_examples(domains: Mapping[str, Domain], facts: Mapping[str, Sequence[Facts]]) -> list[SplitExamples]:
    """Returns every split of every role."""
    splits = []
    for role, domain in domains.items():
        samples = domain.samples
        for split in SPLITS:
            indices = domain.indices(split).tolist()
            names = [samples.classes[samples.labels[index]] for index in indices]
            locations = [samples.inputs.location(index) for index in indices]
            splits.append(SplitExamples(f"{role}/{split}", [facts[role][i] for i in indices], names, locations))
    return splits


def find_duplicates(splits: Sequence[SplitExamples]) -> list[DuplicatePair]:
    """Returns every pair of splits that share examples, each split with itself included."""
    pairs = (_compare(first, second) for first, second in combinations_with_replacement(splits, 2))
    return [pair for pair in pairs if pair.same or pair.near]


def _compare(first: SplitExamples, second: SplitExamples) -> DuplicatePair:
    itself = first is second
    seen: dict[str, int] = {}
    same: list[tuple[int, int]] = []
    if not itself:
        seen = {fact.content: index for index, fact in reversed(list(enumerate(first.facts)))}
    for index, fact in enumerate(second.facts):
        if fact.blank:  # nothing is learned from an image of one colour; it has a warning of its own
            continue
        if (other := seen.get(fact.content)) is not None:
            same.append((other, index))
        elif itself:
            seen[fact.content] = index
    near = list(_near_duplicates(first, second, {index for _, index in same}))
    example = "".join(f"{first.locations[one]} and {second.locations[two]}" for one, two in (same + near)[:1])
    return DuplicatePair(first.name, second.name, len(same), len(near), example)


def _near_duplicates(first: SplitExamples, second: SplitExamples, same: set[int]) -> Iterator[tuple[int, int]]:
    """Yields, for each other image of the second split, the first image whose thumbnail is nearly the same."""
    hashes_of_second = _hashes(second)
    hashes, indices = np.unique(_hashes(first), return_index=True)
    hashes, indices = hashes[_has_edges(hashes)], indices[_has_edges(hashes)]
    rows = np.array([row for row in np.flatnonzero(_has_edges(hashes_of_second)) if row not in same], np.int64)
    for start in range(0, len(rows) if len(hashes) else 0, 256):
        chunk = rows[start : start + 256]
        close = np.bitwise_count(hashes_of_second[chunk, None] ^ hashes[None]) <= NEAR_BITS
        if first is second:
            close &= indices[None] < chunk[:, None]
        for row in np.flatnonzero(close.any(1)):
            yield int(indices[close[row].argmax()]), int(chunk[row])


def _hashes(split: SplitExamples) -> NDArray[np.uint64]:
    return np.array([fact.perceptual_hash for fact in split.facts], np.uint64)


def _has_edges(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    bits = np.bitwise_count(hashes)
    return (bits >= PLAIN_BITS) & (bits <= 64 - PLAIN_BITS)


def find_label_conflicts(splits: Sequence[SplitExamples]) -> list[str]:
    """Returns pairs of equal examples of one role that have different labels."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    conflicts = []
    for split in splits:
        role = split.name.split("/")[0]
        for fact, label, location in zip(split.facts, split.labels, split.locations, strict=True):
            if fact.blank:
                continue
            other, other_label = seen.setdefault((role, fact.content), (location, label))
            if label != other_label:
                conflicts.append(f"{other} is {other_label}, {location} is {label}")
    return conflicts


def _looks(role: str, splits: Sequence[SplitExamples]) -> list[str]:
    """Returns what is wrong with a role's images although they can be read."""
    own = [split for split in splits if split.name.startswith(f"{role}/")]
    images = [(f, place) for split in own for f, place in zip(split.facts, split.locations, strict=True) if f.mode]
    if not images:  # texts
        return []
    facts, locations = zip(*images, strict=True)
    notices = darkness(role, max(fact.brightest for fact in facts))
    notices += [] if notices else single_colour([fact.blank for fact in facts], locations)
    return notices + several_frames([fact.frames for fact in facts], locations)


def find_warnings(
    domains: Mapping[str, Domain], splits: Sequence[SplitExamples], pairs: Sequence[DuplicatePair]
) -> list[str]:
    """Returns what a user should look at, the most important first."""
    warnings = []
    for pair in pairs:
        if pair.leak:
            count = f"{pair.same:,} identical, {pair.near:,} nearly" if pair.near else f"{pair.same:,} identical"
            warnings.append(f"leak: {pair.first} and {pair.second} share examples ({count}), such as {pair.example}")
    if conflicts := find_label_conflicts(splits):
        warnings.append(f"labels: {len(conflicts):,} identical examples have different ones, such as {conflicts[0]}")
    for pair in pairs:
        if not pair.leak and pair.same:
            where = f"within {pair.first}" if pair.first == pair.second else f"in {pair.first} and {pair.second}"
            warnings.append(f"duplicates: {pair.same:,} examples {where}, such as {pair.example}")
    for role, domain in domains.items():
        warnings += [f"{role}: {notice}" for notice in (*_looks(role, splits), *domain.notices())]
        names = domain.samples.classes
        counts = np.bincount(domain.labels("train"), minlength=len(names))
        most, fewest = int(counts.argmax()), int(counts.argmin())
        if counts[most] >= IMBALANCE * max(1, counts[fewest]):
            remedy = "see objective.class_weights and data.sampling"
            sizes = f"{names[most]} has {counts[most]:,} training examples and {names[fewest]} {counts[fewest]:,}"
            warnings.append(f"{role}: {sizes}; {remedy}")
    if len(domains) > 1 and (hint := nearly_the_same(*(domain.samples.classes for domain in domains.values()))):
        warnings.append(f"source and target have different classes: {hint}")
    return warnings
