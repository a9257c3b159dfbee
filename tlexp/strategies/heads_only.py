"""A frozen representation under trained output layers."""

from collections.abc import Set
from typing import TYPE_CHECKING

from tlexp.errors import UsageError
from tlexp.model import HEAD, TransferModel
from tlexp.strategies.base import Strategy

if TYPE_CHECKING:
    from tlexp.data.pair import TransferData


class HeadsOnly(Strategy):
    """Freezes the backbone and trains the target's head (`linear_probe`) or all heads (`shared_representation`).

    Args:
        name: the option's name.
        heads: `target` or `all`.

    Raises:
        UsageError: for another value of `heads`.
    """

    moves_backbone = False

    def __init__(self, name: str, heads: str = "target") -> None:
        super().__init__(name)
        if heads not in ("target", "all"):
            raise UsageError(f"strategy.heads={heads}: choose one of target, all")
        self.heads = heads

    def prepare(self, model: TransferModel, data: "TransferData") -> None:
        """Notes which heads there are."""
        self._moving = {HEAD} if self.heads == "target" else {stage.name for stage in model.head_stages}

    def trainable(self, epoch: int) -> Set[str]:
        """The same heads in every epoch."""
        return self._moving
