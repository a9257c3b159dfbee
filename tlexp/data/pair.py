"""The pair of domains as Lightning's loaders, each named by its role."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from rich.progress import track
from torch.utils.data import DataLoader

from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.data.batches import ArrayDataset, Batch, CycledBatches, OrderedBatches, Pick, ShuffledBatches
from tlexp.data.samples import Indices, Samples
from tlexp.data.splits import Split
from tlexp.errors import UsageError
from tlexp.model import Features

EVAL_BATCH = 128  # evaluation keeps no gradients: a larger batch costs no accuracy and saves calls


@dataclass(frozen=True)
class Domain:
    """One role's samples and their split."""

    samples: Samples
    split: Split

    def sizes(self) -> dict[str, int]:
        """Returns the number of examples by split."""
        return {part: len(getattr(self.split, part)) for part in ("train", "val", "test")}

    def labels(self, part: str) -> torch.Tensor:
        """Returns the labels of a split, shape (n,)."""
        return torch.from_numpy(self.samples.labels[getattr(self.split, part)])

    def dataset(self, part: str, spec: InputSpec | TextSpec) -> ArrayDataset:
        """Returns a split as the backbone's inputs."""
        return ArrayDataset(self.samples.inputs.take(getattr(self.split, part)).prepared(spec), self.labels(part))


class FeatureTable:
    """What a frozen backbone makes of the examples of a split: (n, num_features)."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __getitem__(self, indices: Indices) -> Features:
        return Features(self.values[indices])


def _as_is(batch: Batch) -> Batch:
    return batch


class TransferData(pl.LightningDataModule):
    """Loaders by role. `source` is absent where alpha is 0: nothing of it is then read, built or drawn from.

    Args:
        target: the domain that counts.
        source: the domain to learn from as well, or None.
        spec: the backbone's input.
        batch_size: target examples in a step over all processes, and as many of the source.
        seed: of the named streams the batches are drawn from.
        train_on: the roles whose training loss is in the objective.

    Attributes:
        encode: maps inputs and a role to features; set where the backbone is frozen, whose output is then computed
            once for every example rather than once in every epoch.

    Raises:
        UsageError: where a split is empty or smaller than a batch.
    """

    def __init__(
        self,
        target: Domain,
        source: Domain | None,
        spec: InputSpec | TextSpec,
        batch_size: int,
        seed: int,
        train_on: tuple[str, ...] = ("target",),
    ) -> None:
        super().__init__()
        self.domains = {"target": target} | ({"source": source} if source else {})
        self.spec, self.batch_size, self.seed, self.train_on = spec, batch_size, seed, train_on
        self.encode: Callable[[Any, str], torch.Tensor] | None = None
        self._raw: dict[tuple[str, str], ArrayDataset] = {}
        self._datasets: dict[tuple[str, str], ArrayDataset] = {}
        for role, domain in self.domains.items():
            kind = domain.samples.inputs.kind
            if kind != spec.kind:
                raise UsageError(f"the {role} {domain.samples.name} holds {kind}, but the backbone takes {spec.kind}")
            self._check_sizes(role, domain)

    def _check_sizes(self, role: str, domain: Domain) -> None:
        name, sizes = domain.samples.name, domain.sizes()
        for part, size in sizes.items():
            if size == 0:
                rule = "raise data.shots, data.fraction or the classes it keeps"
                raise UsageError(f"the {role} {name} has no {part} example: {rule}")
        missing = set(range(len(domain.samples.classes))) - set(domain.labels("train").tolist())
        if missing:
            names = ", ".join(domain.samples.classes[label] for label in sorted(missing))
            raise UsageError(f"the {role} {name} has no training example of {names}: raise the label budget")
        if role in self.train_on and self.batch_size > sizes["train"]:
            rule = f"the {role} {name} has only {sizes['train']} training examples; use batch_size={sizes['train']}"
            raise UsageError(f"batch_size={self.batch_size}: {rule} or fewer")

    def dataset(self, role: str, part: str) -> ArrayDataset:
        """Returns a split of a role, read and converted once; where the backbone is frozen, through it as well."""
        if (role, part) not in self._datasets:
            dataset = self.raw(role, part)
            self._datasets[role, part] = dataset if self.encode is None else self._encoded(dataset, role)
            if self.encode is not None and self.spec.kind == "images":
                del self._raw[role, part]  # the pixels have been seen for the last time
        return self._datasets[role, part]

    def raw(self, role: str, part: str) -> ArrayDataset:
        """Returns a split of a role as the backbone's inputs, read and converted once."""
        if (role, part) not in self._raw:
            self._raw[role, part] = self.domains[role].dataset(part, self.spec)
        return self._raw[role, part]

    def read(self) -> None:
        """Reads every split of every role, so that a file that cannot be read is said before training."""
        for role, domain in self.domains.items():
            for part in domain.sizes():
                self.raw(role, part)

    def _encoded(self, dataset: ArrayDataset, role: str) -> ArrayDataset:
        assert self.encode is not None
        chunks = [range(start, min(start + EVAL_BATCH, len(dataset))) for start in range(0, len(dataset), EVAL_BATCH)]
        what = f"features of the {role}"
        shown = track(chunks, what, transient=True, disable=len(chunks) < 3 or not sys.stdout.isatty())
        features = torch.cat([self.encode(dataset.inputs[chunk], role) for chunk in shown])
        return ArrayDataset(FeatureTable(features), dataset.labels)

    def truncated(self, role: str) -> int:
        """Returns how many of a role's examples in all splits are cut to what the backbone takes."""
        if self.spec.kind != "texts":
            return 0
        return sum(self.raw(role, part).inputs.truncated for part in self.domains[role].sizes())

    @property
    def steps(self) -> int:
        """Batches in an epoch: one pass over the target, whatever alpha is."""
        return len(ShuffledBatches(self.domains["target"].sizes()["train"], self.batch_size, self.seed))

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, role: str, part: str, batches: torch.utils.data.Sampler[Pick]) -> DataLoader[Batch]:
        # A loader without a generator of its own draws its base seed from the global stream.
        generator = torch.Generator().manual_seed(self.seed)
        options: dict[str, Any] = {"batch_size": None, "collate_fn": _as_is, "generator": generator}
        return DataLoader(self.dataset(role, part), sampler=batches, **options)

    def train_dataloader(self) -> CombinedLoader:
        """One batch of each trained role a step."""
        rank, world = self._place()
        loaders = {}
        for role in self.train_on:
            n = self.domains[role].sizes()["train"]
            if role == "target":
                batches: Any = ShuffledBatches(n, self.batch_size, self.seed, rank, world)
            else:
                batches = CycledBatches(n, self.batch_size, self.steps, self.seed, rank, world)
            loaders[role] = self._loader(role, "train", batches)
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> CombinedLoader:
        """The validation splits, one role after the other."""
        return self._evaluation("val")

    def test_dataloader(self) -> CombinedLoader:
        """The test splits, one role after the other."""
        return self._evaluation("test")

    def _evaluation(self, part: str) -> CombinedLoader:
        place = self._place()
        loaders = {
            role: self._loader(role, part, OrderedBatches(domain.sizes()[part], EVAL_BATCH, *place))
            for role, domain in self.domains.items()
        }
        return CombinedLoader(loaders, "sequential")
