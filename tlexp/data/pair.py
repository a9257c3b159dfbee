"""The pair of domains as Lightning's loaders, each named by its role."""

import multiprocessing
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from rich.progress import track
from torch.utils.data import DataLoader

from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.cache import Cache, cores, digest
from tlexp.data.augment import Augment, AugmentedDataset
from tlexp.data.batches import ArrayDataset, Batch, CycledBatches, OrderedBatches, Pick, ShuffledBatches
from tlexp.data.domain import Domain
from tlexp.data.samples import Indices
from tlexp.data.scan import check_readable
from tlexp.errors import UsageError
from tlexp.model import Features, TransferModel

PROBE = 4  # examples whose kept features are computed again before they are trusted
EVAL_BATCH = 128  # evaluation keeps no gradients: a larger batch costs no accuracy and saves calls


@dataclass(frozen=True)
class Reading:
    """How examples come from the disk to a step.

    Attributes:
        cache: where what is read once is kept; None for memory alone.
        augment: what is done to training pictures; None for nothing.
        balanced: whether every class comes equally often in training.
        workers: processes that fetch ahead where it pays; None for as many as the machine can spare.
    """

    cache: Cache | None = None
    augment: Augment | None = None
    balanced: bool = False
    workers: int | None = None


class FeatureTable:
    """What a frozen backbone makes of the examples of a split: (n, num_features)."""

    slow = False

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
        train_on: the roles whose training batches a step needs, `unlabelled` (of the target) perhaps among them.
        reading: how examples come from the disk to a step.
        evaluate: the roles that are validated and tested; None for all.
        shifted: the target's classes under other conditions, of which the test split is tested, or None.

    Attributes:
        reference: the source, for what looks at its validation split before training, or None.
        views: 2 where each of the target's training pictures is wanted in two versions.
        encoder: the model, where its backbone is frozen and every example always the same: the backbone's output is
            then computed once for every example, and kept for other runs, rather than once in every epoch.
        first_epoch: another one than 0 in a run that goes on after an interruption.

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
        reading: Reading = Reading(),
        evaluate: tuple[str, ...] | None = None,
        shifted: Domain | None = None,
    ) -> None:
        super().__init__()
        self.reading = reading
        self.domains = {"target": target} | ({"source": source} if source else {})
        self.evaluate = evaluate or tuple(self.domains)
        self.shifted = shifted
        self.pool = target.pool() if "unlabelled" in train_on else None
        self.reference: Domain | None = None
        self.views = 1
        self.spec, self.batch_size, self.seed, self.train_on = spec, batch_size, seed, train_on
        self.encoder: TransferModel | None = None
        self.first_epoch = 0
        self._fingerprints: dict[str, str] = {}
        if reading.augment and isinstance(spec, InputSpec):
            reading.augment.transform(spec)  # what it refuses should be said now
        self._raw: dict[tuple[str, str], ArrayDataset] = {}
        self._datasets: dict[tuple[str, str], ArrayDataset] = {}
        for role, domain in {**self.domains, **({"shifted": shifted} if shifted else {})}.items():
            kind = domain.samples.inputs.kind
            if kind != spec.kind:
                raise UsageError(f"the {role} {domain.samples.name} holds {kind}, but the backbone takes {spec.kind}")
            if reading.augment and kind != "images":
                rule = f"changes pictures, but the {role} {domain.samples.name} holds {kind}; use augment=none"
                raise UsageError(f"augment={reading.augment.name}: {rule}")
            if role == "shifted":
                continue
            domain.check(role)
            size = domain.sizes()["train"]
            if role in train_on and batch_size > size:
                rule = f"the {role} {domain.samples.name} has only {size} training examples; use batch_size={size}"
                raise UsageError(f"batch_size={batch_size}: {rule} or fewer")

    def dataset(self, role: str, part: str) -> ArrayDataset:
        """Returns a split of a role, read and converted once; where the backbone is frozen, through it as well."""
        if (role, part) not in self._datasets:
            dataset = self.raw(role, part)
            self._datasets[role, part] = dataset if self.encoder is None else self._encoded(dataset, role)
            if self.encoder is not None and self.spec.kind == "images":
                del self._raw[role, part]  # the pixels have been seen for the last time
        return self._datasets[role, part]

    def raw(self, role: str, part: str) -> ArrayDataset:
        """Returns a split of a role as the backbone's inputs, read and converted once."""
        if (role, part) not in self._raw:
            domain, augment = self._domain(role), self.reading.augment
            if part == "train" and augment and isinstance(self.spec, InputSpec):
                table = domain.inputs(part, self.spec, self.reading.cache, augment.crops)
                varied = AugmentedDataset(table, domain.labels(part), augment, self.spec, self.seed, role)
                varied.views = self.views if role == "target" else 1
                self._raw[role, part] = varied
            else:
                table = domain.inputs(part, self.spec, self.reading.cache)
                self._raw[role, part] = ArrayDataset(table, domain.labels(part))
        return self._raw[role, part]

    def _domain(self, role: str) -> Domain:
        others = {"unlabelled": self.pool, "reference": self.reference, "shifted": self.shifted}
        domain = {**others, **self.domains}[role]
        assert domain is not None
        return domain

    def plain(self, role: str, part: str) -> DataLoader[Batch]:
        """Returns a split's batches in order, without augmentation, whole on every process."""
        domain = self._domain(role)
        varied = isinstance(self.raw(role, part), AugmentedDataset)
        inputs = domain.inputs(part, self.spec, self.reading.cache) if varied else self.raw(role, part).inputs
        return self._loader(ArrayDataset(inputs, domain.labels(part)), OrderedBatches(domain.sizes()[part], EVAL_BATCH))

    def features(self, model: TransferModel, role: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what the model in eval mode makes of a split, (n, num_features), and the labels (n,)."""
        if self.encoder is not None:
            dataset = self.dataset(role, part)
            return dataset.inputs.values, dataset.labels
        training = model.training
        model.eval()
        domain = "source" if role in ("source", "reference") else "target"
        features = torch.cat([model.encode(batch.inputs, domain) for batch in self.plain(role, part)])
        model.train(training)
        return features, self._domain(role).labels(part)

    def read(self) -> None:
        """Reads every split of every role, so that a file that cannot be read is said before training.

        Raises:
            UsageError: for a file that cannot be read, by its name.
        """
        wanted = [(role, domain, part) for role, domain in self.domains.items() for part in domain.sizes()]
        wanted += [("unlabelled", self.pool, "train")] if self.pool else []
        wanted += [("shifted", self.shifted, "test")] if self.shifted else []
        for role, domain, part in wanted:
            if self.raw(role, part).inputs.slow:  # it will be decoded when its turn comes, which is too late
                check_readable(domain.samples.inputs.take(getattr(domain.split, part)), self.reading.cache)

    def notices(self) -> list[str]:
        """Returns what a reader of a result should know about the data, by role."""
        notices = [f"{role}: {notice}" for role, domain in self.domains.items() for notice in domain.notices()]
        if slow := sorted({role for (role, _), dataset in self._raw.items() if dataset.inputs.slow}):
            rule = "decoded again in every epoch, since the cache has no room for it; see cache_gb"
            notices += [f"{role}: {rule}" for role in slow]
        return notices

    def _encoded(self, dataset: ArrayDataset, role: str) -> ArrayDataset:
        assert self.encoder is not None
        encode, cache = self.encoder.encode, self.reading.cache

        def features() -> dict[str, torch.Tensor]:
            batches = self._loader(dataset, OrderedBatches(len(dataset), EVAL_BATCH))
            what = f"features of the {role}"
            shown = track(batches, what, transient=True, disable=len(batches) < 3 or not sys.stdout.isatty())
            return {"features": torch.cat([encode(batch.inputs, role) for batch in shown])}

        def holds(kept: dict[str, torch.Tensor]) -> bool:
            # The key covers weights and inputs; code that changed meanwhile shows in the first examples.
            first = encode(dataset.inputs[np.arange(min(PROBE, len(dataset)))], role)
            return torch.allclose(kept["features"][:PROBE], first, rtol=1e-3, atol=1e-5)

        if role not in self._fingerprints:  # of weights that stay as they are
            self._fingerprints[role] = self.encoder.fingerprint(role)
        key = digest(self._fingerprints[role], dataset.inputs.key)
        kept = features() if cache is None else cache.tensors("features", key, features, holds)
        return ArrayDataset(FeatureTable(kept["features"]), dataset.labels)

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

    def workers(self, dataset: ArrayDataset) -> int:
        """Returns how many processes fetch ahead: none where an example is in memory and only has to be picked."""
        if not (dataset.inputs.slow or isinstance(dataset, AugmentedDataset)):
            return 0
        if self.reading.workers is not None:
            return self.reading.workers
        # Training on the CPU needs cores of its own; beside a GPU there is nothing else for them to do.
        return min(16, cores()) if torch.cuda.is_available() else max(1, cores() // 2)

    def _loader(self, dataset: ArrayDataset, batches: torch.utils.data.Sampler[Pick]) -> DataLoader[Batch]:
        # A loader without a generator of its own draws its base seed from the global stream.
        generator = torch.Generator().manual_seed(self.seed)
        options: dict[str, Any] = {"batch_size": None, "collate_fn": _as_is, "generator": generator}
        if workers := self.workers(dataset):
            options |= {"num_workers": workers, "persistent_workers": True, "prefetch_factor": 4}
            # In a process of joblib its own way of starting others is the default, and fails on a combined loader.
            options |= {"multiprocessing_context": "fork"} if multiprocessing.get_start_method() == "loky" else {}
        return DataLoader(dataset, sampler=batches, pin_memory=torch.cuda.is_available(), **options)

    def train_dataloader(self) -> CombinedLoader:
        """One batch of each trained role a step."""
        rank, world = self._place()
        loaders = {}
        for role in self.train_on:
            labels = self._domain(role).labels("train").numpy()
            n, balance = len(labels), labels if self.reading.balanced and role != "unlabelled" else None
            if role == "target":
                batches: Any = ShuffledBatches(n, self.batch_size, self.seed, rank, world, balance)
            else:
                batches = CycledBatches(n, self.batch_size, self.steps, self.seed, rank, world, balance, role)
            batches.set_epoch(self.first_epoch)  # workers draw from it before Lightning says which epoch it is
            loaders[role] = self._loader(self.dataset(role, "train"), batches)
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> CombinedLoader:
        """The validation splits, one role after the other."""
        return self._evaluation("val")

    def test_dataloader(self) -> CombinedLoader:
        """The test splits, one role after the other."""
        return self._evaluation("test", *(["shifted"] if self.shifted else []))

    def _evaluation(self, part: str, *more: str) -> CombinedLoader:
        place = self._place()
        loaders = {
            role: self._loader(
                self.dataset(role, part), OrderedBatches(self._domain(role).sizes()[part], EVAL_BATCH, *place)
            )
            for role in (*self.evaluate, *more)
        }
        return CombinedLoader(loaders, "sequential")
