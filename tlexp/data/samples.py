"""What a reader returns, before anything knows about splits or backbones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tlexp.cache import Cache
from tlexp.errors import UsageError

Indices = NDArray[np.int64]
ON_BAD = ("error", "skip")
PARTS = ("train", "val", "test")


class Inputs(Protocol):
    """The inputs of a data set: pixels in memory, image files, texts."""

    kind: ClassVar[str]

    def __len__(self) -> int:
        """Returns the number of examples."""

    def take(self, indices: Indices) -> "Inputs":
        """Returns some of them."""

    def identities(self) -> list[str]:
        """Returns what each example is called wherever the data lie."""

    def where(self, index: int) -> str:
        """Returns what people know an example by: its path, or its file and row."""

    def prepared(self, spec: Any, cache: Cache | None = None, whole: bool = False) -> Any:
        """Returns what maps indices (batch,) to the batch a backbone with this input expects.

        Args:
            spec: the backbone's input.
            cache: where what is computed is kept for other jobs; None for nowhere.
            whole: pictures keep their margins, for crops at random.

        Raises:
            UsageError: for an example that cannot be read or does not fit.
        """


class Skipped(NamedTuple):
    """An example that was left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Samples:
    """Labelled examples of one domain.

    Attributes:
        name: the data set's name, for messages and reports.
        inputs: the examples.
        labels: int64 of shape (n,), each an index into `classes`.
        classes: the names of the classes, in the order of their labels.
        given: indices of the splits that the data set brings along, by part; `train` among them, or empty.
        groups: int64 of shape (n,), equal for examples that must stay in one split; None where there are none.
        on_bad: `error` or `skip`: what becomes of an example that cannot be read.
        skipped: what was left out so far.
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

    def kept(self, keep: NDArray[np.bool_]) -> "Samples":
        """Returns the examples that a mask of shape (n,) marks."""
        place = np.cumsum(keep) - 1
        return replace(
            self,
            inputs=self.inputs.take(np.flatnonzero(keep)),
            labels=self.labels[keep],
            given={part: place[indices[keep[indices]]] for part, indices in self.given.items()},
            groups=None if self.groups is None else self.groups[keep],
        )

    def only(self, names: Sequence[object] | None) -> "Samples":
        """Keeps the named classes, relabelled in the order given; None keeps all.

        Raises:
            UsageError: for a class that the data set does not have, or fewer than two.
        """
        if names is None:
            return self
        wanted = [str(name) for name in names]
        _check_only(self.name, wanted, self.classes)
        old = np.array([self.classes.index(name) for name in wanted])
        new = np.full(len(self.classes), -1)
        new[old] = np.arange(len(old))
        some = self.kept(np.isin(self.labels, old))
        return replace(some, labels=new[some.labels], classes=tuple(wanted))


def labelled(
    name: str,
    inputs: Inputs,
    labels: Sequence[str],
    parts: Sequence[str] | None = None,
    only: Sequence[object] | None = None,
    groups: Sequence[str] | None = None,
    on_bad: str = "error",
    skipped: Sequence[Skipped] = (),
    notes: Sequence[str] = (),
) -> Samples:
    """Numbers labels by their sorted names; those of the training part alone decide which classes there are.

    Args:
        name: the data set's name.
        inputs: the examples, n of them.
        labels: the name of each example's class.
        parts: the split each example belongs to, `train`, `val` or `test`; None where there are no given splits.
        only: the classes to keep, in this order; None for all.
        groups: what each example belongs to and must not be parted from, such as a patient; None for nothing.
        on_bad: what becomes of examples that cannot be read.
        skipped: examples left out by the reader.
        notes: what the reader has to say.

    Raises:
        UsageError: for no example, a single class, a class that occurs outside the training part only, or a group
            that the given splits part.
    """
    if on_bad not in ON_BAD:
        raise UsageError(f"on_bad={on_bad}: choose one of {', '.join(ON_BAD)}")
    if not len(inputs):
        rest = f"; {len(skipped)} skipped, the first: {skipped[0].where}: {skipped[0].reason}" if skipped else ""
        raise UsageError(f"data set {name}: holds no examples{rest}{''.join(f'; {note}' for note in notes)}")
    part_of = np.array(parts if parts is not None else ["train"] * len(labels))
    names = np.array(labels, dtype=object)
    group_of = None if groups is None else np.unique(np.array(groups, dtype=str), return_inverse=True)[1]
    if only is not None:
        _check_only(name, [str(label) for label in only], sorted(set(names[part_of == "train"]), key=_order))
        kept = np.flatnonzero(np.isin(names.astype(str), [str(label) for label in only]))
        inputs, part_of, names = inputs.take(kept), part_of[kept], names[kept]
        group_of = None if group_of is None else group_of[kept]
    classes = tuple(sorted(set(names[part_of == "train"]), key=_order))
    if unknown := sorted(set(names) - set(classes)):
        rule = f"the training part has {', '.join(classes) or 'no class'}; classes= keeps some"
        raise UsageError(f"data set {name}: class {unknown[0]} occurs outside the training part only; {rule}")
    if len(classes) < 2 and only is None:
        raise UsageError(f"data set {name}: has the one class {classes[0]}; there is nothing to tell apart")
    number = {label: place for place, label in enumerate(classes)}
    given = {} if parts is None else {part: np.flatnonzero(part_of == part) for part in sorted(set(part_of))}
    if group_of is not None:
        _check_groups(name, group_of, given, groups or ())
    return Samples(
        name,
        inputs,
        np.array([number[label] for label in names], np.int64),
        classes,
        given,
        group_of,
        on_bad,
        tuple(skipped),
        (*notes, *_alike(classes)),
    ).only(only)


def _check_only(name: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    if set(wanted) - set(there) or len(set(wanted)) < 2 or len(set(wanted)) < len(wanted):
        names = ", ".join(there[:30]) + (", ..." if len(there) > 30 else "")
        raise UsageError(f"classes={list(wanted)} of data set {name}: choose at least two different ones of {names}")


def _order(label: str) -> tuple[bool, int, str]:
    """Sorts whole numbers by value and before everything else: 2 comes before 10."""
    number = label.removeprefix("-").isdecimal()
    return not number, int(label) if number else 0, label


def _alike(classes: Sequence[str]) -> list[str]:
    """Says which classes differ in capitals or spaces only, which is often one class written in two ways."""
    seen: dict[str, list[str]] = {}
    for label in classes:
        seen.setdefault("".join(label.casefold().split()), []).append(label)
    written = (", ".join(map(repr, labels)) for labels in seen.values() if len(labels) > 1)
    return [f"the classes {labels} differ in capitals or spaces only" for labels in written]


def _check_groups(name: str, groups: Indices, given: Mapping[str, Indices], written: Sequence[str]) -> None:
    parts = {part: set(groups[indices].tolist()) for part, indices in given.items()}
    for first in parts:
        for second in parts:
            if first < second and (both := parts[first] & parts[second]):
                one = sorted(set(written))[min(both)]
                rule = f"and {len(both) - 1} more" if len(both) > 1 else "but no group may be in two splits"
                raise UsageError(f"data set {name}: group {one} is in the given splits {first} and {second}, {rule}")
