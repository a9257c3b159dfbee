"""The linear probe in closed form: logistic regression on features, its strength chosen by validation."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlexp.backbones.base import Stage
from tlexp.errors import UsageError
from tlexp.model import TransferModel
from tlexp.probe import Logistic
from tlexp.strategies.heads_only import HeadsOnly

if TYPE_CHECKING:
    from tlexp.data.pair import TransferData
    from tlexp.task import TransferTask


class ClosedProbe(HeadsOnly):
    """Solves the target's head on features without augmentation, by L-BFGS for each of `steps` penalties.

    The one with the smallest loss on the validation split is solved to the end (Kumar et al. 2022 do so with 100). With
    one head the source's examples count too, alpha times their mean. The head then goes through an epoch at rate 0,
    which leaves it as it is and measures it as every other run.

    Args:
        name: the option's name.
        low: exponent of ten of the smallest inverse strength C.
        high: exponent of ten of the largest.
        steps: how many values of C, evenly spaced between them on a log scale.

    Raises:
        UsageError: for values outside their ranges; in `prepare` for a head that is not one linear layer; in `start`
        for
            label smoothing, which this solver does not know.
    """

    c: Tensor

    def __init__(self, name: str, low: float = -6, high: float = 2, steps: int = 45) -> None:
        super().__init__(name, "target")
        if not low <= high:
            raise UsageError(f"strategy.low={low}: must be at most strategy.high={high}")
        if steps < 1:
            raise UsageError(f"strategy.steps={steps}: must be at least 1")
        self.cs = np.logspace(low, high, steps)
        self.register_buffer("c", torch.zeros(()))

    def prepare(self, model: TransferModel, data: "TransferData") -> None:
        """Sees that the head can be solved."""
        super().prepare(model, data)
        if not isinstance(model.heads["target"], nn.Linear):
            raise UsageError(f"strategy={self.name}: solves one linear layer; use head_hidden=0 head_dropout=0")

    def lr_scale(self, stage: Stage) -> float:
        """Nothing is left to train."""
        return 0.0

    def start(self, task: "TransferTask", data: "TransferData") -> None:
        """Solves the head and keeps the best on the validation split."""
        rows = [(role, 1.0 if role == "target" else task.alpha) for role in task.loss_roles]
        criteria: list[Any] = [task.criteria[role] for role, _ in rows]
        for key, there in (
            ("objective.label_smoothing", any(criterion.label_smoothing for criterion in criteria)),
            ("objective.mixup and objective.cutmix", task.mix is not None),
            ("data.sampling=balanced", data.reading.balanced),
            ("terms", len(task.terms) > 0),
        ):
            if there:
                raise UsageError(f"{key}: strategy={self.name} cannot solve it; leave it out or use linear_probe")
        parts = [data.features(task.model, role, "train") for role, _ in rows]
        features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        n = len(parts[0][1])  # in units of which the first role's examples weigh 1, as without a source
        weights = [
            _weights(own, criterion.weights, weight * n)
            for (_, own), criterion, (_, weight) in zip(parts, criteria, rows, strict=True)
        ]
        problem = Logistic(features, labels, task.model.classes["target"], np.concatenate(weights))
        at, of_val = data.features(task.model, "target", "val")
        with torch.no_grad():
            losses = [float(F.cross_entropy(layer(at), of_val)) for layer in problem.path(self.cs)]
        self.c.fill_(float(self.cs[int(np.argmin(losses))]))
        task.model.heads["target"].load_state_dict(problem.at(float(self.c)).state_dict())

    def found(self) -> dict[str, float]:
        """Returns the inverse strength that was chosen."""
        return {"c": float(self.c)}


def _weights(labels: Tensor, of_classes: Tensor | None, total: float) -> np.ndarray:
    """Returns what each example counts: its class's weight, or 1, times `total` over the number of examples."""
    if math.isinf(total):  # the source alone
        total = float(len(labels))
    each = torch.ones(len(labels)) if of_classes is None else of_classes.cpu()[labels]
    found: np.ndarray = each.double().numpy() * total / len(labels)
    return found
