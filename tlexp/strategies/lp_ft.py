"""Linear probing, then fine-tuning."""

from collections.abc import Set

from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.finetune import Finetune


class ProbeThenFinetune(Finetune):
    """Trains the heads alone for `probe_epochs`, then everything (Kumar et al. 2022).

    A randomly initialised head distorts pretrained features in its first steps; a trained one does not. With 0 epochs
    of probing it is fine-tuning, with all of them a linear probe of all heads.

    Args:
        name: the option's name.
        probe_epochs: epochs of the first phase.
        backbone_lr_mult: the backbone's rate over the head's in the second phase, above 0.
        freeze_until: name of the last stage that stays frozen; None for none.

    Raises:
        UsageError: for a value outside its range.
    """

    def __init__(
        self, name: str, probe_epochs: int = 20, backbone_lr_mult: float = 1.0, freeze_until: str | None = None
    ) -> None:
        super().__init__(name, backbone_lr_mult, freeze_until)
        if probe_epochs < 0:
            raise UsageError(f"strategy.probe_epochs={probe_epochs}: must be a number of epochs, or 0")
        self.probe_epochs = probe_epochs

    def prepare(self, model: TransferModel) -> None:
        """Resolves the frozen prefix and the heads into stage names."""
        super().prepare(model)
        self._heads = {stage.name for stage in model.head_stages}

    def trainable(self, epoch: int) -> Set[str]:
        """The heads, and from `probe_epochs` on the rest."""
        return self._heads if epoch < self.probe_epochs else self._trained
