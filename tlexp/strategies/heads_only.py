"""A frozen representation under trained output layers."""

from collections.abc import Set

from tlexp.errors import UsageError
from tlexp.models.transfer_model import HEAD, TransferModel
from tlexp.strategies.base import Strategy


class HeadsOnly(Strategy):
    """Freezes the backbone and trains the target's head (`linear_probe`) or all heads (`shared_representation`).

    Args:
        name: the option's name.
        heads: `target` or `all`.

    Raises:
        UsageError: for another value of `heads`.
    """

    trains_backbone = False

    def __init__(self, name: str, heads: str = "target") -> None:
        super().__init__(name)
        if heads not in ("target", "all"):
            raise UsageError(f"strategy.heads={heads}: choose one of target, all")
        self.heads = heads

    def prepare(self, model: TransferModel) -> None:
        """Notes which heads there are."""
        self._trained = {HEAD} if self.heads == "target" else {stage.name for stage in model.head_stages}

    def trainable(self, epoch: int) -> Set[str]:
        """The same heads in every epoch."""
        return self._trained
