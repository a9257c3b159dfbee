"""The domains of a run as Lightning's loaders, each named by its role."""

import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.data.augment import Augment, AugmentedDataset
from tlexp.data.batches import (
    ArrayDataset,
    Batch,
    CycledBatches,
    OrderedBatches,
    Pick,
    ShuffledBatches,
    steps_per_epoch,
)
from tlexp.data.cache import Cache
from tlexp.data.domains import Domain
from tlexp.data.features import FrozenFeatures
from tlexp.data.quality.looks import darkness, several_frames
from tlexp.data.quality.scan import check_readable
from tlexp.models.transfer_model import TransferModel
from tlexp.processes import available_cores

EVAL_BATCH = 128  # evaluation keeps no gradients: a larger batch costs no accuracy and saves calls


@dataclass(frozen=True)
class LoaderOptions:
    """How examples come from the disk to a step.

    Attributes:
        cache: stores what is computed once; None for memory alone.
        augment: of training images; None for none.
        balanced: whether every class comes equally often in training.
        workers: DataLoader workers where they help; None for as many as the machine can spare.
        views: 2 where each of the target's training images is wanted in two versions.
    """

    cache: Cache | None = None
    augment: Augment | None = None
    balanced: bool = False
    workers: int | None = None
    views: int = 1


def _identity(batch: Batch) -> Batch:
    return batch


class TransferDataModule(pl.LightningDataModule):
    """Loaders by role. Where alpha is 0 there is no `source`: nothing of it is read, built or drawn from.

    Args:
        domains: `target`, and where they take part `source`, `shifted` (tested only) and `reference` (the source, for
            terms that look at its validation split before training).
        spec: the backbone's input.
        batch_size: examples of each role in a step over all processes.
        seed: of the named streams that batches are drawn from.
        train_roles: the roles whose training batches a step needs, perhaps `unlabelled` (of the target) among them.
        evaluated_roles: the roles that are validated and tested; None for `target` and `source`.
        options: how examples come from the disk to a step.
        frozen_features: where the backbone is frozen and every example always the same, its output is computed once.
        first_epoch: the epoch that comes next in a run that is resumed.
        counted: the role of which an epoch is one pass; batches of the others are cut from endless streams.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        spec: InputSpec | TextSpec,
        batch_size: int,
        seed: int,
        train_roles: tuple[str, ...] = ("target",),
        evaluated_roles: tuple[str, ...] | None = None,
        options: LoaderOptions = LoaderOptions(),
        frozen_features: FrozenFeatures | None = None,
        first_epoch: int = 0,
        counted: str = "target",
    ) -> None:
        super().__init__()
        self.spec, self.batch_size, self.seed = spec, batch_size, seed
        self.train_roles, self.options, self.first_epoch = train_roles, options, first_epoch
        self.counted = counted
        self.domains = {role: domains[role] for role in ("target", "source") if role in domains}
        self.evaluated_roles = evaluated_roles or tuple(self.domains)
        self.shifted = domains.get("shifted")
        self.unlabelled = domains["target"].unlabelled() if "unlabelled" in train_roles else None
        self._all = {**domains, **({"unlabelled": self.unlabelled} if self.unlabelled else {})}
        self.frozen_features = frozen_features
        self._looks: dict[str, list[str]] = {}
        self._raw: dict[tuple[str, str], ArrayDataset] = {}
        self._datasets: dict[tuple[str, str], ArrayDataset] = {}

    # Datasets ---------------------------------------------------------------------------------------------------

    def dataset(self, role: str, split: str) -> ArrayDataset:
        """Returns a split of a role, decoded once; where the backbone is frozen, its features."""
        if (role, split) not in self._datasets:
            self._datasets[role, split] = self._encoded(role, split) if self.frozen_features else self.raw(role, split)
        return self._datasets[role, split]

    def _encoded(self, role: str, split: str) -> ArrayDataset:
        assert self.frozen_features is not None
        dataset = self.raw(role, split)
        batches = OrderedBatches(len(dataset), EVAL_BATCH)
        encoded = self.frozen_features.encode(dataset, role, lambda: self._loader(dataset, batches))
        if self.spec.kind == "images":
            del self._raw[role, split]  # the pixels are not needed any more
        return encoded

    def raw(self, role: str, split: str) -> ArrayDataset:
        """Returns a split of a role as the backbone's inputs, decoded once."""
        if (role, split) not in self._raw:
            self._raw[role, split] = self._decoded(role, split)
        return self._raw[role, split]

    def _decoded(self, role: str, split: str) -> ArrayDataset:
        domain, augment, cache = self._all[role], self.options.augment, self.options.cache
        if split == "train" and augment and isinstance(self.spec, InputSpec):
            images = domain.inputs(split, self.spec, cache, augment.crops)
            views = self.options.views if role == "target" else 1
            return AugmentedDataset(images, domain.labels(split), augment, self.spec, self.seed, role, views)
        return ArrayDataset(domain.inputs(split, self.spec, cache), domain.labels(split))

    def plain(self, role: str, split: str) -> DataLoader[Batch]:
        """Returns a loader over all of a split in order, without augmentation, the same on every process."""
        domain, dataset = self._all[role], self.raw(role, split)
        if isinstance(dataset, AugmentedDataset):
            dataset = ArrayDataset(domain.inputs(split, self.spec, self.options.cache), domain.labels(split))
        return self._loader(
            ArrayDataset(dataset.inputs, dataset.labels), OrderedBatches(domain.sizes()[split], EVAL_BATCH)
        )

    def features(self, model: TransferModel, role: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the features of a split, (n, num_features), of the model in eval mode, and the labels (n,)."""
        if self.frozen_features is not None:
            dataset = self.dataset(role, split)
            return dataset.inputs.values, dataset.labels
        training = model.training
        model.eval()
        statistics = "source" if role in ("source", "reference") else "target"
        features = torch.cat([model.encode(batch.inputs, statistics) for batch in self.plain(role, split)])
        model.train(training)
        return features, self._all[role].labels(split)

    def materialize(self) -> None:
        """Decodes every split of every role, so that a file that cannot be read is reported before training.

        Raises:
            UsageError: for a file that cannot be read, by its name.
        """
        wanted = [(role, domain, split) for role, domain in self.domains.items() for split in domain.sizes()]
        wanted += [("unlabelled", self.unlabelled, "train")] if self.unlabelled else []
        wanted += [("shifted", self.shifted, "test")] if self.shifted else []
        seen: dict[str, list[tuple[int, str]]] = {}
        brightest: dict[str, int] = {}
        for role, domain, split in wanted:
            self.raw(role, split)
            if self.spec.kind == "images":
                frames, light = self._look_at(role, domain, split)
                seen.setdefault(role, []).extend(frames)
                brightest[role] = max(light, brightest.get(role, 0))
        for role, files in seen.items():
            self._looks[role] = several_frames(*zip(*files, strict=True)) if files else []
            if role != "unlabelled":  # whose images are the target's
                self._looks[role] += darkness(role, brightest[role])

    def _look_at(self, role: str, domain: Domain, split: str) -> tuple[list[tuple[int, str]], int]:
        """Checks that a split's images can be read.

        Returns:
            The files of several frames, each with their number and its location, and the brightest value of all.
        """
        images, indices = domain.samples.inputs, domain.indices(split)
        store = self.raw(role, split).inputs
        if store.slow:  # they would be decoded when their turn comes, which is too late for an error
            known = check_readable(images.take(indices), self.options.cache)
            frames, brightest = [fact.frames for fact in known], max((fact.brightest for fact in known), default=0)
        else:
            frames, brightest = store.frames, store.brightest
        several = [(count, images.location(indices[n])) for n, count in enumerate(frames) if count > 1]
        return several, brightest

    def notices(self) -> list[str]:
        """Returns what a reader of a result should know about the data, by role."""
        notices = [f"{role}: {notice}" for role, domain in self.domains.items() for notice in domain.notices()]
        notices += [f"{role}: {notice}" for role, said in self._looks.items() for notice in said]
        uncached = sorted({role for (role, _), dataset in self._raw.items() if dataset.inputs.slow})
        reason = "decoded again in every epoch, since the cache has no room for it; see cache_gb"
        return notices + [f"{role}: {reason}" for role in uncached]

    def truncated(self, role: str) -> int:
        """Returns how many of a role's texts in all splits are truncated to the encoder's maximum length."""
        if self.spec.kind != "texts":
            return 0
        return sum(self.raw(role, split).inputs.truncated for split in self.domains[role].sizes())

    # Loaders ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Batches of an epoch: one pass over the target, whatever alpha is, unless the target does not train."""
        return steps_per_epoch(self.domains[self.counted].sizes()["train"], self.batch_size)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def workers(self, dataset: ArrayDataset) -> int:
        """Returns the number of DataLoader workers: none where examples are in memory and only have to be indexed."""
        if not (dataset.inputs.slow or isinstance(dataset, AugmentedDataset)):
            return 0
        if self.options.workers is not None:
            return self.options.workers
        # Training on the CPU needs cores of its own; beside a GPU there is nothing else for them to do.
        return min(16, available_cores()) if torch.cuda.is_available() else max(1, available_cores() // 2)

    def _loader(self, dataset: ArrayDataset, batches: torch.utils.data.Sampler[Pick]) -> DataLoader[Batch]:
        # A loader without a generator of its own draws its base seed from the global generator.
        generator = torch.Generator().manual_seed(self.seed)
        options: dict[str, Any] = {"batch_size": None, "collate_fn": _identity, "generator": generator}
        if workers := self.workers(dataset):
            options |= {"num_workers": workers, "persistent_workers": True, "prefetch_factor": 4}
            # In a process of joblib its own start method is the default, and fails on a combined loader.
            options |= {"multiprocessing_context": "fork"} if multiprocessing.get_start_method() == "loky" else {}
        return DataLoader(dataset, sampler=batches, pin_memory=torch.cuda.is_available(), **options)

    def train_dataloader(self) -> CombinedLoader:
        """One batch of each trained role per step."""
        rank, world = self._rank_and_world()
        loaders = {}
        for role in self.train_roles:
            labels = self._all[role].labels("train").numpy()
            n, balance = len(labels), labels if self.options.balanced and role != "unlabelled" else None
            if role == self.counted:
                batches: Any = ShuffledBatches(n, self.batch_size, self.seed, rank, world, balance, role)
            else:
                batches = CycledBatches(n, self.batch_size, self.steps, self.seed, rank, world, balance, role)
            batches.set_epoch(self.first_epoch)  # workers draw from it before Lightning says which epoch it is
            loaders[role] = self._loader(self.dataset(role, "train"), batches)
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> CombinedLoader:
        """The validation splits, one role after the other."""
        return self._evaluation("val", self.evaluated_roles)

    def predict_dataloader(self) -> CombinedLoader:
        """The validation splits again, for the predictions of the kept checkpoint."""
        return self.val_dataloader()

    def test_dataloader(self) -> CombinedLoader:
        """The test splits, one role after the other."""
        return self._evaluation("test", (*self.evaluated_roles, *(("shifted",) if self.shifted else ())))

    def _evaluation(self, split: str, roles: tuple[str, ...]) -> CombinedLoader:
        rank_and_world = self._rank_and_world()
        loaders = {
            role: self._loader(
                self.dataset(role, split), OrderedBatches(self._all[role].sizes()[split], EVAL_BATCH, *rank_and_world)
            )
            for role in roles
        }
        return CombinedLoader(loaders, "sequential")
