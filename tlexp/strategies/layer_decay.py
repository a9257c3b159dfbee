"""Discriminative learning rates: lower stages train more slowly."""

from collections.abc import Set

from tlexp.backbones.base import Stage
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.base import Strategy


class LayerDecay(Strategy):
    """Trains everything, the n-th layer below the head at `decay ** n` times the head's learning rate.

    For transformers 0.65 to 0.9 from block to block are common (Bao et al. 2022; He et al. 2022); Howard and Ruder
    (2018) divide the rate by 2.6 from one of four groups to the next. With 1 it is full training, with 0 a linear
    probe: only the heads train.

    Args:
        name: the option's name.
        decay: the rate of a layer over that of the next one, in [0, 1].
        unit: what a layer is: `block`, as in timm's own layer decay, or `stage`. Backbones that are not timm's have
            stages alone, which in text encoders are the blocks.

    Raises:
        UsageError: for a value outside its range.
    """

    def __init__(self, name: str, decay: float = 0.75, unit: str = "block") -> None:
        super().__init__(name)
        if not 0 <= decay <= 1:
            raise UsageError(f"strategy.decay={decay}: must lie in [0, 1]")
        if unit not in ("block", "stage"):
            raise UsageError(f"strategy.unit={unit}: choose one of block, stage")
        self.decay, self.unit = decay, unit

    def prepare(self, model: TransferModel) -> None:
        """Notes the order of the layers."""
        if self.unit == "block" and hasattr(model.backbone, "blocks"):
            model.regroup([block.inside("backbone.") for block in model.backbone.blocks()])
        stages = model.stages if self.decay else model.head_stages
        self._trained = {stage.name for stage in stages}
        below = [stage for stage in model.backbone_stages if not stage.beside_head]
        self._depth = {stage.name: depth for depth, stage in enumerate(reversed(below), 1)}

    def trainable(self, epoch: int) -> Set[str]:
        """The same stages in every epoch."""
        return self._trained

    def lr_scale(self, stage: Stage) -> float:
        """`decay` to the power of a layer's distance from the head."""
        return float(self.decay ** self._depth.get(stage.name, 0))
