"""Fine-tuning: the whole network or all above a frozen prefix, the backbone at its own rate."""

from collections.abc import Set

from tlexp.backbones.base import Stage
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.base import Strategy


class Finetune(Strategy):
    """Trains everything after `freeze_until`, the backbone at `backbone_lr_mult` times the head's rate.

    With a multiplier of 1 and no frozen prefix this is full training: `full_transfer` from the source's weights,
    `scratch` from random ones. The three differ in numbers only.

    Args:
        name: the option's name.
        backbone_lr_mult: the backbone's rate over the head's, above 0.
        freeze_until: name of the last frozen stage; None freezes nothing.

    Raises:
        UsageError: for a multiplier that is not above 0, and in `prepare` for a stage the backbone does not have.
    """

    def __init__(self, name: str, backbone_lr_mult: float = 1.0, freeze_until: str | None = None) -> None:
        super().__init__(name)
        if not 0 < backbone_lr_mult < float("inf"):
            remedy = "must be a finite number above 0; to freeze the backbone use strategy=linear_probe"
            raise UsageError(f"strategy.backbone_lr_mult={backbone_lr_mult}: {remedy}")
        self.backbone_lr_mult = backbone_lr_mult
        self.freeze_until = freeze_until

    def prepare(self, model: TransferModel) -> None:
        """Resolves the frozen prefix into stage names."""
        self._backbone = [stage.name for stage in model.backbone_stages]
        if self.freeze_until is not None and self.freeze_until not in self._backbone:
            remedy = f"the stages of this backbone are {', '.join(self._backbone)}"
            raise UsageError(f"strategy.freeze_until={self.freeze_until}: {remedy}")
        frozen = 0 if self.freeze_until is None else self._backbone.index(self.freeze_until) + 1
        self._trained = {stage.name for stage in model.stages[frozen:]}

    def trainable(self, epoch: int) -> Set[str]:
        """The same stages in every epoch."""
        return self._trained

    def lr_scale(self, stage: Stage) -> float:
        """`backbone_lr_mult` inside the backbone, 1 for heads."""
        return self.backbone_lr_mult if stage.name in self._backbone else 1.0
