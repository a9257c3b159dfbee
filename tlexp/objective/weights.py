"""What alpha means: which domains train, with what weight, and whether the source can act on the target.

f* = argmin_f  L(f; target) + alpha * L(f; source), where both losses are means over examples, so that alpha weighs
tasks and does not depend on the sizes of the data. No other module interprets alpha.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

from tlexp.errors import UsageError

Loss = TypeVar("Loss")
FORMS = ("sum", "convex")


@dataclass(frozen=True)
class DomainWeights:
    """The weights of the two losses.

    Attributes:
        alpha: finite and >= 0, or infinity, which means the source alone.
        form: `sum` gives (1, alpha), the formula itself; `convex` gives (1, alpha) / (1 + alpha), the same argmin
            without alpha scaling the learning rate of plain SGD.

    Raises:
        UsageError: for a negative alpha or NaN.
    """

    alpha: float
    form: str = "sum"

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise UsageError(f"alpha={self.alpha}: must be finite and >= 0, or inf for the source alone")

    @property
    def trains_target(self) -> bool:
        """Whether the target's loss is in the objective; alpha = inf is the source alone."""
        return not math.isinf(self.alpha)

    @property
    def trains_source(self) -> bool:
        """Whether the source's loss is in the objective; with alpha = 0 nothing of the source is even built."""
        return self.alpha > 0

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles whose loss is in the objective."""
        return ("target",) * self.trains_target + ("source",) * self.trains_source

    @property
    def evaluated_roles(self) -> tuple[str, ...]:
        """The roles that are validated and tested: the target always, the source where its loss is in the objective."""
        return ("target", "source") if self.trains_source else ("target",)

    @property
    def target(self) -> float:
        """The weight of the target's loss."""
        if not self.trains_target:
            return 0.0
        return 1.0 / self._total

    @property
    def source(self) -> float:
        """The weight of the source's loss."""
        return self.alpha / self._total if self.trains_target else 1.0

    @property
    def _total(self) -> float:
        return 1.0 + self.alpha if self.form == "convex" else 1.0

    def relative(self, role: str) -> float:
        """Returns the weight of a role's loss where the first of `roles` has weight 1, whatever the form."""
        return self.alpha if role == "source" and self.trains_target else 1.0

    def combine(self, losses: dict[str, Loss]) -> Loss:
        """Combines the mean losses, each of shape (); a domain without weight must not be there at all.

        A product with zero would still update BatchNorm statistics, consume random numbers and leave zero gradients for
        weight decay to act on: alpha = 0 is a branch, never a product.
        """
        if not self.trains_source:
            return losses["target"]
        if not self.trains_target:
            return losses["source"]
        return self.target * losses["target"] + self.source * losses["source"]  # type: ignore[operator, return-value]

    @property
    def scales_learning_rate(self) -> bool:
        """Whether alpha also scales the step of an optimizer that does not normalise gradients."""
        return self.form == "sum" and self.trains_source and self.trains_target

    def acts_on_target(self, backbone_trains: bool, separate_heads: bool) -> bool:
        """Returns whether the source's loss can change the target's predictions.

        It cannot where the backbone is frozen and each domain has a head of its own: they share nothing that trains.
        """
        return self.trains_source and (backbone_trains or not separate_heads)

    def __str__(self) -> str:
        return f"L(target) + alpha * L(source), alpha = {self.alpha:g}, form {self.form}"
