"""What a reader returns, before anything knows about splits or backbones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from tlexp.errors import UsageError

Indices = NDArray[np.int64]


class Inputs(Protocol):
    """The inputs of a data set: pixels in memory, image files, texts."""

    kind: ClassVar[str]

    def __len__(self) -> int:
        """Returns the number of examples."""

    def take(self, indices: Indices) -> "Inputs":
        """Returns some of them."""

    def prepared(self, spec: Any) -> Any:
        """Returns what maps indices (batch,) to the batch a backbone with this input expects.

        Raises:
            UsageError: for an example that cannot be read or does not fit.
        """


@dataclass(frozen=True)
class Samples:
    """Labelled examples of one domain.

    Attributes:
        name: the data set's name, for messages and reports.
        inputs: the examples.
        labels: int64 of shape (n,), each an index into `classes`.
        classes: the names of the classes, in the order of their labels.
        given: indices of the splits that the data set brings along, by part; `train` among them, or empty.
    """

    name: str
    inputs: Inputs
    labels: Indices
    classes: tuple[str, ...]
    given: Mapping[str, Indices] = field(default_factory=dict)

    def only(self, names: Sequence[object] | None) -> "Samples":
        """Keeps the named classes, relabelled in the order given; None keeps all.

        Raises:
            UsageError: for a class that the data set does not have, or fewer than two.
        """
        if names is None:
            return self
        wanted = [str(name) for name in names]
        unknown = sorted(set(wanted) - set(self.classes))
        if unknown or len(set(wanted)) < 2 or len(set(wanted)) < len(wanted):
            rule = f"choose at least two different ones of {', '.join(self.classes)}"
            raise UsageError(f"classes={wanted} of data set {self.name}: {rule}")
        old = np.array([self.classes.index(name) for name in wanted])
        keep = np.isin(self.labels, old)
        new = np.full(len(self.classes), -1)
        new[old] = np.arange(len(old))
        place = np.cumsum(keep) - 1
        return replace(
            self,
            inputs=self.inputs.take(np.flatnonzero(keep)),
            labels=new[self.labels[keep]],
            classes=tuple(wanted),
            given={part: place[indices[keep[indices]]] for part, indices in self.given.items()},
        )


def labelled(
    name: str,
    inputs: Inputs,
    labels: Sequence[str],
    parts: Sequence[str] | None = None,
    only: Sequence[object] | None = None,
) -> Samples:
    """Numbers labels by their sorted names; those of the training part alone decide which classes there are.

    Args:
        name: the data set's name.
        inputs: the examples, n of them.
        labels: the name of each example's class.
        parts: the split each example belongs to, `train`, `val` or `test`; None where there are no given splits.
        only: the classes to keep, in this order; None for all.

    Raises:
        UsageError: for no example, a single class, or a class that occurs outside the training part only.
    """
    if not len(inputs):
        raise UsageError(f"data set {name}: holds no examples")
    part_of = np.array(parts if parts is not None else ["train"] * len(labels))
    names = np.array(labels, dtype=object)
    if only is not None:
        kept = np.flatnonzero(np.isin(names.astype(str), [str(label) for label in only]))
        inputs, part_of, names = inputs.take(kept), part_of[kept], names[kept]
    classes = tuple(sorted(set(names[part_of == "train"])))
    if unknown := sorted(set(names) - set(classes)):
        rule = f"the training part has {', '.join(classes) or 'no class'}; classes= keeps some"
        raise UsageError(f"data set {name}: class {unknown[0]} occurs outside the training part only; {rule}")
    if len(classes) < 2 and only is None:
        raise UsageError(f"data set {name}: has the one class {classes[0]}; there is nothing to tell apart")
    number = {label: place for place, label in enumerate(classes)}
    given = {} if parts is None else {part: np.flatnonzero(part_of == part) for part in sorted(set(part_of))}
    return Samples(name, inputs, np.array([number[label] for label in names], np.int64), classes, given).only(only)
