"""One side of a transfer: a data set and its splits, and what is worth saying about them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.cache import Cache, digest
from tlexp.data.samples import PARTS, Samples
from tlexp.data.splits import Split
from tlexp.errors import UsageError


@dataclass(frozen=True)
class Domain:
    """One role's samples and their split."""

    samples: Samples
    split: Split

    def sizes(self) -> dict[str, int]:
        """Returns the number of examples by split."""
        return {part: len(getattr(self.split, part)) for part in PARTS}

    @cached_property
    def split_hash(self) -> str:
        """12 hexadecimal digits that are equal exactly where the same examples lie in the same splits."""
        names, classes = self.samples.inputs.identities(), self.samples.classes
        of = {part: getattr(self.split, part).tolist() for part in PARTS}
        lines = {part: sorted(f"{classes[self.samples.labels[i]]}: {names[i]}" for i in of[part]) for part in PARTS}
        return digest(*(line for part in PARTS for line in (part, *lines[part])))[:12]

    def pool(self) -> "Domain":
        """Returns the same examples without a budget: all that neither validates nor tests, their labels unknown."""
        n = len(self.samples.labels)
        held = np.concatenate([self.split.val, self.split.test])
        unknown = replace(self.samples, labels=np.full(n, -1))
        none = np.array([], dtype=np.int64)
        return Domain(unknown, Split(np.setdiff1d(np.arange(n), held), none, none))

    def labels(self, part: str) -> torch.Tensor:
        """Returns the labels of a split, shape (n,)."""
        return torch.from_numpy(self.samples.labels[getattr(self.split, part)])

    def inputs(self, part: str, spec: InputSpec | TextSpec, cache: Cache | None, whole: bool = False) -> Any:
        """Returns what gives a split's inputs, as the backbone takes them, by their numbers."""
        return self.samples.inputs.take(getattr(self.split, part)).prepared(spec, cache, whole)

    def check(self, role: str) -> None:
        """Makes sure that every split has something and that training knows every class.

        Raises:
            UsageError: where it does not, with how much there is.
        """
        samples = self.samples
        whole = "" if samples.groups is None else f" in {len(np.unique(samples.groups))} groups, which stay whole"
        for part, size in self.sizes().items():
            if size == 0:
                have = f"the data set has {len(samples.labels)} examples{whole}"
                rule = "add some, or raise data.shots or data.fraction where they are set"
                raise UsageError(f"the {role} {samples.name} has no {part} example: {have}; {rule}")
        there = set(self.labels("train").tolist())
        if absent := [label for label in range(len(samples.classes)) if label not in there]:
            names = ", ".join(samples.classes[label] for label in absent)
            mine = samples.labels == absent[0]
            whole = "" if samples.groups is None else f" in {len(np.unique(samples.groups[mine]))} groups"
            have = f"{samples.classes[absent[0]]} has {mine.sum()} examples{whole}"
            rule = "add some, leave the class out by classes=, or raise data.shots or data.fraction where they are set"
            raise UsageError(f"the {role} {samples.name} has no training example of {names}: {have}; {rule}")

    def notices(self) -> list[str]:
        """Returns what a reader of a result should know about these data."""
        samples, notices = self.samples, list(self.samples.notes)
        if samples.skipped:
            first = samples.skipped[0]
            notices.append(f"skipped {len(samples.skipped):,} examples, the first: {first.where} {first.reason}")
        if "val" in samples.given and not set(self.split.val) <= set(samples.given["val"]):
            rule = "the label budget pays for validation too; data.val=large validates on it"
            notices.append(f"has a validation split that is not used: {rule}")
        for part, what in (("val", "validation"), ("test", "test")):
            if samples.given and part not in samples.given:
                notices.append(f"has no {what} split: it is cut from the training split")
            there = set(self.labels(part).tolist())
            if absent := [name for label, name in enumerate(samples.classes) if label not in there]:
                names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
                notices.append(f"its {what} split has no example of {len(absent)} classes: {names}")
        return notices
