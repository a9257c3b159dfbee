"""Gradual unfreezing: the head first, then one stage after the other from the top."""

from collections.abc import Set

from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.layer_decay import LayerDecay


class GradualUnfreezing(LayerDecay):
    """Lets one more stage train every `epochs_per_stage` epochs, from the head down (Howard and Ruder 2018).

    In epoch e, counted from 0, the heads and the floor(e / epochs_per_stage) highest stages train. Frozen stages are in
    eval mode, and a stage's optimizer state begins when it does.

    Args:
        name: the option's name.
        epochs_per_stage: epochs between two stages; 0 lets everything train at once.
        decay: the rate of a stage over that of the next one, in (0, 1].

    Raises:
        UsageError: for a value outside its range.
    """

    def __init__(self, name: str, epochs_per_stage: int = 1, decay: float = 1.0) -> None:
        super().__init__(name, decay)
        if epochs_per_stage < 0:
            raise UsageError(f"strategy.epochs_per_stage={epochs_per_stage}: must be a number of epochs, or 0")
        if decay == 0:
            raise UsageError("strategy.decay=0: would leave nothing to unfreeze; use strategy=linear_probe")
        self.epochs_per_stage = epochs_per_stage

    def prepare(self, model: TransferModel) -> None:
        """Notes the order of the stages."""
        super().prepare(model)
        self._heads = {stage.name for stage in model.head_stages}

    def trainable(self, epoch: int) -> Set[str]:
        """The heads and as many of the highest stages as epochs have gone by."""
        if self.epochs_per_stage == 0:
            return self._trained
        reached = epoch // self.epochs_per_stage
        return self._heads | {name for name, depth in self._depth.items() if depth <= reached}
