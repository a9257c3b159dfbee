"""What a reader returns, before anything knows about splits or backbones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tlexp.errors import UsageError


@dataclass(frozen=True)
class Samples:
    """Labelled images of one domain.

    Attributes:
        name: the data set's option name, for messages and reports.
        images: uint8 of shape (n, height, width, channels).
        labels: int64 of shape (n,), each an index into `classes`.
        classes: the names of the classes, in the order of their labels.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

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
        return replace(self, images=self.images[keep], labels=new[self.labels[keep]], classes=tuple(wanted))
