"""The linear probe in closed form: logistic regression on features, its strength selected by validation."""

from collections.abc import Set
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tlexp.backbones.base import Stage
from tlexp.data.datamodule import TransferDataModule
from tlexp.errors import UsageError
from tlexp.models.logistic_regression import LogisticRegressionSolver
from tlexp.models.transfer_model import TransferModel
from tlexp.objective.joint import Objective
from tlexp.strategies.heads_only import HeadsOnly

FOLDS = 5  # in which the strength is chosen where the labels that validate must not choose it
CS = (-6, 2, 45)  # exponents of ten of the smallest and the largest inverse strength, and the number of values


class ClosedProbe(HeadsOnly):
    """Solves the target's head on features without augmentation, by L-BFGS for each of `steps` penalties.

    The penalty with the smallest loss on the validation split is solved to convergence (Kumar et al. 2022 try 100).
    Under `data.val=cv` folds of the training examples choose it, so that the run's own folds are not used twice. With
    one head the source's examples count too, their mean weighted by alpha. One epoch at learning rate 0 then
    evaluates the head like that of every other run, without changing it.

    Args:
        name: the option's name.
        low: exponent of ten of the smallest inverse strength C.
        high: exponent of ten of the largest.
        steps: number of values of C, evenly spaced between them on a log scale.

    Raises:
        UsageError: for values outside their ranges; in `prepare` for a head that is not one linear layer; in `check`
            for label smoothing, mixed images, balanced batches and terms, which this solver does not support.
    """

    c: Tensor

    def __init__(self, name: str, low: float = CS[0], high: float = CS[1], steps: int = CS[2]) -> None:
        super().__init__(name, "target")
        if not low <= high:
            raise UsageError(f"strategy.low={low}: must be at most strategy.high={high}")
        if steps < 1:
            raise UsageError(f"strategy.steps={steps}: must be at least 1")
        self.cs = np.logspace(low, high, steps)
        self.register_buffer("c", torch.zeros(()))

    def prepare(self, model: TransferModel) -> None:
        """Checks that the head is linear."""
        super().prepare(model)
        check_linear(model, self.name, "head_hidden=0 head_dropout=0")

    def check(self, objective: Objective, terms: Set[str], balanced: bool) -> None:
        """Refuses what the solver would ignore."""
        smoothing = any(getattr(criterion, "label_smoothing", 0) for criterion in objective.criteria.values())
        for key, given in (
            ("objective.label_smoothing", smoothing),
            ("objective.mixup and objective.cutmix", objective.mixing is not None),
            ("data.sampling=balanced", balanced),
            ("terms", len(terms) > 0),
        ):
            if given:
                raise UsageError(f"{key}: strategy={self.name} cannot solve it; leave it out or use linear_probe")

    def lr_scale(self, stage: Stage) -> float:
        """Nothing is left to train."""
        return 0.0

    def on_fit_start(self, model: TransferModel, objective: Objective, data: TransferDataModule) -> None:
        """Solves the head and keeps the best on the validation split."""
        self.c.fill_(solve_head(model, "target", objective, data, self.cs))

    def selected(self) -> dict[str, float]:
        """Returns the selected inverse strength."""
        return {"c": float(self.c)}


def check_linear(model: TransferModel, strategy: str, remedy: str) -> None:
    """Checks that heads are linear layers, which can be solved.

    Raises:
        UsageError: with the remedy, where they are not.
    """
    if not all(isinstance(head, nn.Linear) for head in model.heads.values()):
        raise UsageError(f"strategy={strategy}: solves one linear layer; use {remedy}")


def solve_head(
    model: TransferModel, head: str, objective: Objective, data: TransferDataModule, cs: NDArray[np.float64]
) -> float:
    """Solves a head on the features of the roles that it serves, without augmentation, and loads the solution.

    Args:
        model: whose head is replaced.
        head: `target` or `source`.
        objective: whose weights of roles and classes count.
        data: with training and validation splits.
        cs: inverse strengths of the penalty.

    Returns:
        The inverse strength with the smallest loss on the validation split, or on folds of the training examples.
    """
    examples, classes = weighted_examples(model, head, objective, data), model.classes[head]
    solver = LogisticRegressionSolver(examples.features, examples.labels, classes, examples.weights)
    if data.domains[head].may_choose:
        losses = path_losses(solver, cs, *data.features(model, head, "val"))
    else:
        losses = cross_validated_losses(examples, classes, cs)
    c = float(cs[int(np.argmin(losses))])
    model.heads[head].load_state_dict(solver.at(c).state_dict())
    return c


class Examples(NamedTuple):
    """Features (n, num_features), labels (n,) and weights (n,) of training examples, of which the `first` are one
    domain's, each with weight 1 on average.
    """

    features: Tensor
    labels: Tensor
    weights: NDArray[np.float64]
    first: int


def weighted_examples(model: TransferModel, head: str, objective: Objective, data: TransferDataModule) -> Examples:
    """Returns the training examples of the roles that a head serves, weighted as in the objective."""
    roles = [role for role in objective.roles if (role if role in model.heads else "target") == head]
    sets = {role: data.features(model, role, "train") for role in roles}
    features, labels = (torch.cat(column) for column in zip(*sets.values(), strict=True))
    n = len(sets[roles[0]][1])  # so that the first role's examples weigh 1, as without a source
    weights = [
        example_weights(role_labels, objective.criteria[role], objective.weights.relative(role) * n)
        for role, (_, role_labels) in sets.items()
    ]
    return Examples(features, labels, np.concatenate(weights), n)


@torch.no_grad()
def path_losses(
    solver: LogisticRegressionSolver, cs: NDArray[np.float64], features: Tensor, labels: Tensor
) -> NDArray[np.float64]:
    """Returns the loss, summed over examples (n, num_features), of the solution for each c."""
    return np.array([float(F.cross_entropy(layer(features), labels, reduction="sum")) for layer in solver.path(cs)])


def cross_validated_losses(examples: Examples, classes: int, cs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the loss for each c, summed over the folds of the first domain's examples; the others always train.

    Where a class has a single example there are no folds, and all are equal but those of c = 1, which is then taken.
    """
    from sklearn.model_selection import StratifiedKFold

    features, labels, weights, n = examples
    folds = min(FOLDS, int(np.unique(labels[:n].numpy(), return_counts=True)[1].min()))
    if folds < 2:
        return np.abs(np.log(cs))
    losses = np.zeros(len(cs))
    for train, held_out in StratifiedKFold(folds).split(features[:n], labels[:n]):
        kept = np.concatenate([train, np.arange(n, len(labels))])
        solver = LogisticRegressionSolver(features[kept], labels[kept], classes, weights[kept])
        losses += path_losses(solver, cs, features[held_out], labels[held_out])
    return losses


def example_weights(labels: Tensor, criterion: Any, total: float) -> np.ndarray:
    """Returns weights (n,) of examples that add up to `total` before their class weights are applied."""
    class_weights: Tensor | None = criterion.weights
    base = torch.ones(len(labels)) if class_weights is None else class_weights.cpu()[labels]
    weights: np.ndarray = base.double().numpy() * total / len(labels)
    return weights
