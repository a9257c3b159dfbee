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
        epochs_per_stage: epochs between two stages; 0 lets everything train at once; None reaches the lowest stage
            halfway through the run.
        decay: the rate of a stage over that of the next one, in (0, 1]; None spreads the authors' decay over four
            groups, 2.6^-3, over all stages.

    Raises:
        UsageError: for a value outside its range.
    """

    def __init__(self, name: str, epochs_per_stage: int | None = None, decay: float | None = None) -> None:
        super().__init__(name, 1.0 if decay is None else decay, "stage")
        if epochs_per_stage is not None and epochs_per_stage < 0:
            raise UsageError(f"strategy.epochs_per_stage={epochs_per_stage}: must be a number of epochs, or 0")
        if decay == 0:
            raise UsageError("strategy.decay=0: would leave nothing to unfreeze; use strategy=linear_probe")
        self.epochs_per_stage, self.spreads_decay = epochs_per_stage, decay is None

    def prepare(self, model: TransferModel) -> None:
        """Notes the order of the stages."""
        super().prepare(model)
        self._heads = {stage.name for stage in model.head_stages}
        if self.spreads_decay:
            self.decay = 2.6 ** (-3 / max(1, len(self._depth) - 1))

    def plan(self, epochs: int) -> list[str]:
        """Spreads the stages over the first half of the run; notes the stages that it does not reach."""
        stages = len(self._depth)
        if self.epochs_per_stage is None:
            self.epochs_per_stage = max(1, epochs // (2 * stages))
        reached = set().union(*(self.trainable(epoch) for epoch in range(epochs)))
        if not (never := [name for name in self._depth if name not in reached]):
            return []
        needed = f"epochs={epochs} at {self.epochs_per_stage} a stage; {stages * self.epochs_per_stage + 1} would"
        return [f"{self.name}: never unfreezes {', '.join(reversed(never))} in {needed}"]

    def trainable(self, epoch: int) -> Set[str]:
        """The heads and as many of the highest stages as epochs have gone by."""
        if not self.epochs_per_stage:
            return self._trained
        reached = epoch // self.epochs_per_stage
        return self._heads | {name for name, depth in self._depth.items() if depth <= reached}
