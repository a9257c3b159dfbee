"""Features of a frozen backbone: computed once for each example, shared by all jobs with the same weights and data."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from tlexp.data.batches import ArrayDataset, Batch
from tlexp.data.cache import Cache
from tlexp.data.samples import Indices
from tlexp.fingerprint import digest
from tlexp.models.transfer_model import Features, TransferModel

CHECKED = 4  # examples whose cached features are recomputed before they are trusted


class FeatureStore:
    """The features of a split's examples, (n, num_features), in the place of its inputs."""

    slow = False

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __getitem__(self, indices: Indices) -> Features:
        return Features(self.values[indices])


@dataclass(frozen=True)
class FrozenFeatures:
    """Replaces inputs by the output of a backbone that never changes.

    Attributes:
        model: its backbone is frozen, and every example is always the same (no random augmentation).
        cache: keeps features for other jobs; None for nowhere.
    """

    model: TransferModel
    cache: Cache | None
    _fingerprints: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def encode(self, dataset: ArrayDataset, role: str, batches: Callable[[], Iterable[Batch]]) -> ArrayDataset:
        """Returns the dataset with features in the place of its inputs.

        Args:
            dataset: a split of a role.
            role: whose BatchNorm statistics apply.
            batches: a loader over all of the dataset, in order.
        """

        def compute() -> dict[str, Tensor]:
            loader: Any = batches()
            hidden = len(loader) < 3 or not sys.stdout.isatty()
            shown = track(loader, f"features of the {role}", transient=True, disable=hidden)
            return {"features": torch.cat([self.model.encode(batch.inputs, role) for batch in shown])}

        def is_valid(stored: dict[str, Tensor]) -> bool:
            # The key covers weights and inputs; code that changed meanwhile shows in the first examples.
            first = self.model.encode(dataset.inputs[np.arange(min(CHECKED, len(dataset)))], role)
            return torch.allclose(stored["features"][:CHECKED], first, rtol=1e-3, atol=1e-5)

        if role not in self._fingerprints:  # the weights never change
            self._fingerprints[role] = self.model.fingerprint(role)
        key = digest(self._fingerprints[role], dataset.inputs.key)
        values = compute() if self.cache is None else self.cache.tensors("features", key, compute, is_valid)
        return ArrayDataset(FeatureStore(values["features"]), dataset.labels)
