"""A domain: one side of a transfer, its data set with its splits."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.data.augment import Augment
from tlexp.data.cache import Cache
from tlexp.data.samples import SPLITS, Samples
from tlexp.data.splits import Split
from tlexp.errors import UsageError
from tlexp.fingerprint import digest

Part = int | Literal["held_out", "all"]  # the number of a fold, the validation split, or nothing held out


@dataclass(frozen=True)
class Domain:
    """One role's samples and their split.

    Attributes:
        samples: the data set.
        split: of it.
        part: what of the labels is held out.
    """

    samples: Samples
    split: Split
    part: Part = "held_out"

    def take(self, part: Part) -> "Domain":
        """Returns the domain with a part of its labels held out."""
        if part == "held_out":
            return self
        return replace(self, part=part, split=self.split.merged() if part == "all" else self.split.fold(part))

    @property
    def may_choose(self) -> bool:
        """Whether options may be chosen on the validation split, because it is no fold and not empty."""
        return self.part == "held_out"

    def sizes(self) -> dict[str, int]:
        """Returns the number of examples by split."""
        return {split: len(self.indices(split)) for split in SPLITS}

    @property
    def label_pool(self) -> int:
        """Number of examples outside the test split, which a label budget draws from."""
        return len(self.samples.labels) - len(self.split.test)

    def labels_bought(self, val: str) -> int:
        """Returns how many labels the budget has: validation is part of it unless `val` is `large`."""
        return len(self.split.train) + (0 if val == "large" else len(self.split.val))

    def indices(self, split: str) -> np.ndarray:
        """Returns the indices of a split's samples, shape (n,)."""
        indices: np.ndarray = getattr(self.split, split)
        return indices

    @cached_property
    def split_hash(self) -> str:
        """12 hexadecimal digits that are equal exactly where the same examples are in the same splits."""
        ids, classes = self.samples.inputs.stable_ids(), self.samples.classes
        lines = {
            split: sorted(f"{classes[self.samples.labels[i]]}: {ids[i]}" for i in self.indices(split).tolist())
            for split in SPLITS
        }
        return digest(*(line for split in SPLITS for line in (split, *lines[split])))[:12]

    def unlabelled(self) -> "Domain":
        """Returns all examples that are in neither validation nor test as a training split, without labels (-1)."""
        n = len(self.samples.labels)
        held_out = np.concatenate([self.split.val, self.split.test])
        unknown = replace(self.samples, labels=np.full(n, -1))
        empty = np.array([], dtype=np.int64)
        return Domain(unknown, Split(np.setdiff1d(np.arange(n), held_out), empty, empty))

    def labels(self, split: str) -> torch.Tensor:
        """Returns the labels of a split, shape (n,)."""
        return torch.from_numpy(self.samples.labels[self.indices(split)])

    def inputs(self, split: str, spec: InputSpec | TextSpec, cache: Cache | None, keep_margins: bool = False) -> Any:
        """Returns what maps indices into a split to inputs as the backbone takes them."""
        return self.samples.inputs.take(self.indices(split)).materialize(spec, cache, keep_margins)

    def check(self, role: str) -> None:
        """Checks that every split has examples and that training knows every class.

        Raises:
            UsageError: where it does not, with how much there is.
        """
        samples = self.samples
        groups = "" if samples.groups is None else f" in {len(np.unique(samples.groups))} groups, which stay whole"
        for split, size in self.sizes().items():
            if size == 0 and not (split == "val" and self.part == "all"):
                have = f"the data set has {len(samples.labels)} examples{groups}"
                remedy = "add some, or raise data.shots or data.fraction where they are set"
                raise UsageError(f"the {role} {samples.name} has no {split} example: {have}; {remedy}")
        present = set(self.labels("train").tolist())
        if absent := [label for label in range(len(samples.classes)) if label not in present]:
            names = ", ".join(samples.classes[label] for label in absent)
            mask = samples.labels == absent[0]
            groups = "" if samples.groups is None else f" in {len(np.unique(samples.groups[mask]))} groups"
            have = f"{samples.classes[absent[0]]} has {mask.sum()} examples{groups}"
            remedy = (
                "add some, leave the class out by classes=, or raise data.shots or data.fraction where they are set"
            )
            raise UsageError(f"the {role} {samples.name} has no training example of {names}: {have}; {remedy}")

    def notices(self) -> list[str]:
        """Returns what a reader of a result should know about these data."""
        samples, notices = self.samples, list(self.samples.notes)
        if samples.skipped:
            first = samples.skipped[0]
            notices.append(f"skipped {len(samples.skipped):,} examples, first {first.location}: {first.reason}")
        if "val" in samples.given and not set(self.split.val) <= set(samples.given["val"]):
            remedy = "the label budget pays for validation too; data.val=large validates on it"
            notices.append(f"has a validation split that is not used: {remedy}")
        for split, name in (("val", "validation"), ("test", "test")):
            if samples.given and split not in samples.given:
                notices.append(f"has no {name} split: it is taken from the training split")
            present = set(self.labels(split).tolist())
            if split == "val" and not present:
                continue
            if absent := [name for label, name in enumerate(samples.classes) if label not in present]:
                names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
                notices.append(f"its {name} split has no example of {len(absent)} classes: {names}")
        return notices


def check_domains(
    domains: Mapping[str, Domain],
    spec: InputSpec | TextSpec,
    batch_size: int,
    train_roles: Collection[str],
    augment: Augment | None = None,
) -> None:
    """Checks that domains fit the backbone's input, the batch size and the augmentation.

    Args:
        domains: by role; of `shifted` only the test split is used.
        spec: the backbone's input.
        batch_size: examples of a step over all processes.
        train_roles: the roles that a training step needs.
        augment: of training images; None for none.

    Raises:
        UsageError: for a split that is empty or smaller than a batch, or inputs of the wrong kind.
    """
    if augment and isinstance(spec, InputSpec):
        augment.transform(spec)  # raises what it refuses
    for role, domain in domains.items():
        kind, name = domain.samples.inputs.kind, domain.samples.name
        if kind != spec.kind:
            raise UsageError(f"the {role} {name} holds {kind}, but the backbone takes {spec.kind}")
        if augment and kind != "images":
            remedy = f"changes images, but the {role} {name} holds {kind}; use augment=none"
            raise UsageError(f"augment={augment.name}: {remedy}")
        if role == "shifted":
            continue
        domain.check(role)
        size = domain.sizes()["train"]
        if role in train_roles and batch_size > size:
            remedy = f"the {role} {name} has only {size} training examples; use batch_size={size} or fewer"
            raise UsageError(f"batch_size={batch_size}: {remedy}")
