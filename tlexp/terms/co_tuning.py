"""Co-tuning: the old output layer is tuned too, on the old classes that the new ones resemble."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from tlexp.data.datamodule import TransferDataModule
from tlexp.models.starting_point import StartingPoint
from tlexp.models.temperature import temperature
from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import StepContext, Term, copy_pretrained_head, mean

KINDS = ("direct", "reverse")


class CoTuning(Term):
    """Cross-entropy of the old output layer's predictions with p(old class | new class) (You et al. 2020).

    The relationship R (new classes, old classes) is measured once on training examples without augmentation, with the
    network in eval mode. `direct`: the mean of the calibrated old predictions over the examples of each new class.
    `reverse`: a multinomial logistic regression from old predictions to new classes, its strength selected on the
    validation split, evaluated at each old class and inverted by Bayes' rule. Old predictions are calibrated by a
    temperature on the source's validation split, where the run has the source and its classes are those of the old
    output layer. The old output layer trains at the backbone's rate, as the authors' does. Unlike here, their code
    measures the relationship on training and validation examples together, and chooses the strength by accuracy.

    Args:
        name: the option's name.
        weight: the authors use 2.3.
        relationship: `direct` or `reverse`.

    Raises:
        UsageError: for another relationship, or where the start has no output layer.
    """

    needs_reference = True
    pretrained = ("head",)
    relation: Tensor
    temperature: Tensor

    def __init__(self, name: str, weight: float = 2.3, relationship: str = "direct") -> None:
        super().__init__(name, weight)
        self.require(relationship in KINDS, "relationship", relationship, f"choose one of {', '.join(KINDS)}")
        self.relationship = relationship

    def prepare(self, model: TransferModel, start: StartingPoint) -> None:
        """Copies the old output layer and allocates what `on_fit_start` measures."""
        self.head = copy_pretrained_head(self, start)
        old = self.head(torch.zeros(1, model.backbone.num_features)).shape[1]
        self.register_buffer("relation", torch.full((model.classes["target"], old), 1 / old))
        self.register_buffer("temperature", torch.ones(()))

        self.calibrates = start.has_reference

    def check(self, optimizer: Optimizer) -> list[str]:
        """Notes where old predictions are not calibrated."""
        reason = "old predictions are not calibrated, since the run does not know what the weights were trained on"
        return [] if self.calibrates else [f"{self.name}: {reason}"]

    def on_fit_start(self, model: TransferModel, data: TransferDataModule) -> None:
        """Measures temperature and relationship."""
        if self.calibrates:
            logits, labels = self._old_logits(model, data, "reference", "val")
            self.temperature.fill_(temperature(logits.numpy(), labels.numpy()))
        logits, labels = self._old_logits(model, data, "target", "train")
        p, classes = (logits / self.temperature.cpu()).softmax(1).numpy(), len(self.relation)
        if self.relationship == "direct":
            relation = direct(p, labels.numpy(), classes)
        else:
            split = "val" if data.domains["target"].may_choose else "train"
            logits, of_val = self._old_logits(model, data, "target", split)
            relation = reverse(p, labels.numpy(), (logits / self.temperature.cpu()).softmax(1).numpy(), of_val.numpy())
        self.relation.copy_(torch.from_numpy(relation))

    def _old_logits(
        self, model: TransferModel, data: TransferDataModule, role: str, split: str
    ) -> tuple[Tensor, Tensor]:
        """Returns the old output layer's logits (n, old classes) in double precision, and the labels (n,)."""
        features, labels = data.features(model, role, split)
        device = next(self.head.parameters()).device
        with torch.no_grad():
            return self.head(features.to(device)).double().cpu(), labels

    def forward(self, model: TransferModel, step: StepContext) -> Tensor:
        """Returns the cross-entropy of the old predictions on the target's batch."""
        labels, relation = step.target.labels, self.relation
        targets = relation[labels] if labels.ndim == 1 else labels.to(relation.dtype) @ relation
        log_p = self.head(step.target.features).float().log_softmax(1)
        return mean(-(targets * log_p).sum(1), step.target)


def direct(p: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns the mean (classes, old classes) of predictions p (n, old classes) over the examples of each class."""
    return np.stack([p[labels == label].mean(0) for label in range(classes)])


def reverse(p: np.ndarray, labels: np.ndarray, p_val: np.ndarray, labels_val: np.ndarray) -> np.ndarray:
    """Returns p(old | new) (classes, old classes) from a classifier q(new | old), by Bayes' rule.

    The classifier has no intercept; of 17 strengths of its penalty the one with the smallest loss on the validation
    examples is taken, and its logits are calibrated there.
    """
    from sklearn.linear_model import LogisticRegression

    fits = (LogisticRegression(C=c, fit_intercept=False, max_iter=5000) for c in np.logspace(-4, 4, 17))
    scored: list[tuple[float, float, Any]] = []
    for fit in fits:
        fit.fit(p, labels)
        t = temperature(_logits(fit, p_val), labels_val)
        scored.append((_nll(_logits(fit, p_val) / t, labels_val), t, fit))
    _, t, best = min(scored, key=lambda row: row[0])
    of_old = torch.from_numpy(_logits(best, np.eye(p.shape[1])) / t).softmax(1).numpy()  # (old, new)
    joint = of_old.T * p.mean(0)
    relation: np.ndarray = joint / joint.sum(1, keepdims=True)
    return relation


def _logits(fit: Any, p: np.ndarray) -> np.ndarray:
    scores: np.ndarray = fit.decision_function(p)
    return np.stack([-scores / 2, scores / 2], 1) if scores.ndim == 1 else scores


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))
