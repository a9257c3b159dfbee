"""What a reader returns, before anything knows about splits or backbones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tlexp.data.cache import Cache
from tlexp.data.class_names import look_alike, similar_names
from tlexp.errors import UsageError

Indices = NDArray[np.int64]
ON_BAD = ("error", "skip")
SPLITS = ("train", "val", "test")
# Other usual names of the splits, in lower case.
SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


class Inputs(Protocol):
    """The inputs of a data set: pixels in memory, image files, texts."""

    kind: ClassVar[str]

    def __len__(self) -> int:
        """Returns the number of examples."""

    def take(self, indices: Indices) -> "Inputs":
        """Returns some of them."""

    def stable_ids(self) -> list[str]:
        """Returns an identifier of each example that does not depend on where the data are stored."""

    def location(self, index: int) -> str:
        """Returns where a person finds an example: its path, or its file and row."""

    def materialize(self, spec: Any, cache: Cache | None = None, keep_margins: bool = False) -> Any:
        """Returns what maps indices (batch,) to the batch that a backbone with this input expects.

        Args:
            spec: the backbone's input.
            cache: stores what is computed for other jobs; None for nowhere.
            keep_margins: whether images are resized but not cropped, for random crops.

        Raises:
            UsageError: for an example that cannot be read or does not fit.
        """


class Skipped(NamedTuple):
    """An example that was left out, and why."""

    location: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """Labelled examples of one domain.

    Attributes:
        name: the data set's name, for messages and reports.
        inputs: the examples.
        labels: int64 of shape (n,), each an index into `classes`.
        classes: the names of the classes, in the order of their labels.
        given: indices of the splits that the data set comes with, by name; `train` among them, or empty.
        groups: int64 of shape (n,), equal for examples that must stay in one split; None where there are none.
        on_bad: `error` or `skip`: what to do with an example that cannot be read.
        skipped: the examples that were left out so far.
        notes: what a reader of the result should know about the data.
    """

    name: str
    inputs: Inputs
    labels: Indices
    classes: tuple[str, ...]
    given: Mapping[str, Indices] = field(default_factory=dict)
    groups: Indices | None = None
    on_bad: str = "error"
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def from_labels(
        cls,
        name: str,
        inputs: Inputs,
        labels: Sequence[str],
        splits: Sequence[str] | None = None,
        classes: Sequence[object] | None = None,
        groups: Sequence[str] | None = None,
        on_bad: str = "error",
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> "Samples":
        """Numbers labels by their sorted names; the training split alone decides which classes there are.

        Args:
            name: the data set's name.
            inputs: the examples, n of them.
            labels: the class name of each example.
            splits: the split of each example, `train`, `val` or `test`; None where there are no given splits.
            classes: the classes to keep, in this order; None for all.
            groups: what each example belongs to and must not be separated from, such as a patient; None for nothing.
            on_bad: what to do with examples that cannot be read.
            skipped: examples left out by the reader.
            notes: remarks of the reader.

        Raises:
            UsageError: for no example, a single class, a class that occurs outside the training split only, or a group
                that the given splits separate.
        """
        if on_bad not in ON_BAD:
            raise UsageError(f"on_bad={on_bad}: choose one of {', '.join(ON_BAD)}")
        if not len(inputs):
            rest = f"; {len(skipped)} skipped, first {skipped[0].location}: {skipped[0].reason}" if skipped else ""
            raise UsageError(f"data set {name}: holds no examples{rest}{''.join(f'; {note}' for note in notes)}")
        split_of = np.array(splits if splits is not None else ["train"] * len(labels))
        names = np.array(labels, dtype=object)
        group_of = None if groups is None else np.unique(np.array(groups, dtype=str), return_inverse=True)[1]
        if classes is not None:
            wanted = [str(label) for label in classes]
            _check_classes(name, wanted, sorted(set(names[split_of == "train"]), key=_order))
            selected = np.flatnonzero(np.isin(names.astype(str), wanted))
            inputs, split_of, names = inputs.take(selected), split_of[selected], names[selected]
            group_of = None if group_of is None else group_of[selected]
        known = tuple(sorted(set(names[split_of == "train"]), key=_order))
        if unknown := sorted(set(names) - set(known)):
            hint = look_alike(unknown[0], known) or f"the training split has {', '.join(known) or 'no class'}"
            remedy = f"{hint}; classes= keeps some"
            raise UsageError(f"data set {name}: class {unknown[0]} occurs outside the training split only; {remedy}")
        if len(known) < 2 and classes is None:
            raise UsageError(f"data set {name}: only one class ({known[0]}); need at least two")
        label_of = {label: index for index, label in enumerate(known)}
        given = {} if splits is None else {split: np.flatnonzero(split_of == split) for split in sorted(set(split_of))}
        if group_of is not None:
            _check_groups(name, group_of, given, groups or ())
        return cls(
            name,
            inputs,
            np.array([label_of[label] for label in names], np.int64),
            known,
            given,
            group_of,
            on_bad,
            tuple(skipped),
            (*notes, *similar_names(known)),
        ).select_classes(classes)

    def filter(self, mask: NDArray[np.bool_]) -> "Samples":
        """Returns the examples that a mask of shape (n,) marks."""
        new_index = np.cumsum(mask) - 1
        return replace(
            self,
            inputs=self.inputs.take(np.flatnonzero(mask)),
            labels=self.labels[mask],
            given={split: new_index[indices[mask[indices]]] for split, indices in self.given.items()},
            groups=None if self.groups is None else self.groups[mask],
        )

    def select_classes(self, names: Sequence[object] | None) -> "Samples":
        """Keeps the named classes, relabelled in the order given; None keeps all.

        Raises:
            UsageError: for a class that the data set does not have, or fewer than two.
        """
        if names is None:
            return self
        wanted = [str(name) for name in names]
        _check_classes(self.name, wanted, self.classes)
        old = np.array([self.classes.index(name) for name in wanted])
        new = np.full(len(self.classes), -1)
        new[old] = np.arange(len(old))
        selected = self.filter(np.isin(self.labels, old))
        return replace(selected, labels=new[selected.labels], classes=tuple(wanted))


def standard_split(name: str) -> str:
    """Returns `train`, `val` or `test` for the usual names of a split in any case, other names in lower case."""
    return SPLIT_NAMES.get(name.lower(), name.lower())


def _check_classes(name: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    if set(wanted) - set(known) or len(set(wanted)) < 2 or len(set(wanted)) < len(wanted):
        names = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
        hints = "".join(f"; {hint}" for label in wanted if label not in known and (hint := look_alike(label, known)))
        remedy = f"choose at least two different ones of {names}{hints}"
        raise UsageError(f"classes={list(wanted)} of data set {name}: {remedy}")


def _order(label: str) -> tuple[bool, int, str]:
    """Sorts whole numbers by value and before everything else: 2 comes before 10."""
    number = label.removeprefix("-").isdecimal()
    return not number, int(label) if number else 0, label


def _check_groups(name: str, groups: Indices, given: Mapping[str, Indices], labels: Sequence[str]) -> None:
    members = {split: set(groups[indices].tolist()) for split, indices in given.items()}
    for first in members:
        for second in members:
            if first < second and (shared := members[first] & members[second]):
                example = sorted(set(labels))[min(shared)]
                rest = f"and {len(shared) - 1} more" if len(shared) > 1 else "but no group may be in two splits"
                raise UsageError(
                    f"data set {name}: group {example} is in the given splits {first} and {second}, {rest}"
                )
