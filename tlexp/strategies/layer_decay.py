"""Discriminative learning rates: lower stages train more slowly."""

from collections.abc import Set

from tlexp.backbones.base import Stage
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.base import Strategy


class LayerDecay(Strategy):
    """Trains everything, the n-th stage below the head at `decay ** n` times the head's learning rate.

    Howard and Ruder (2018) divide the rate by 2.6 from stage to stage; for transformers 0.65 to 0.9 are common. With 1
    it is full training, with 0 a linear probe: only the heads train.

    Args:
        name: the option's name.
        decay: the rate of a stage over that of the next one, in [0, 1].

    Raises:
        UsageError: for a value outside its range.
    """

    def __init__(self, name: str, decay: float = 0.5) -> None:
        super().__init__(name)
        if not 0 <= decay <= 1:
            raise UsageError(f"strategy.decay={decay}: must lie in [0, 1]")
        self.decay = decay

    def prepare(self, model: TransferModel) -> None:
        """Notes the order of the stages."""
        stages = model.stages if self.decay else model.head_stages
        self._trained = {stage.name for stage in stages}
        self._depth = {stage.name: depth for depth, stage in enumerate(reversed(model.backbone_stages), 1)}

    def trainable(self, epoch: int) -> Set[str]:
        """The same stages in every epoch."""
        return self._trained

    def lr_scale(self, stage: Stage) -> float:
        """`decay` to the power of a stage's distance from the head."""
        return float(self.decay ** self._depth.get(stage.name, 0))
