"""Surgical fine-tuning: one stage and the heads."""

from collections.abc import Set

from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.strategies.base import Strategy


class Surgical(Strategy):
    """Trains one stage of the backbone beside the heads (Lee et al. 2023).

    The first stage suits a change of the input, such as noise, the last one a change of what is asked.

    Args:
        name: the option's name.
        stage: the stage's name, or `first` or `last`.

    Raises:
        UsageError: in `prepare`, for a stage the backbone does not have.
    """

    def __init__(self, name: str, stage: str = "first") -> None:
        super().__init__(name)
        self.stage = stage

    def prepare(self, model: TransferModel) -> None:
        """Resolves the stage's name."""
        names = [stage.name for stage in model.backbone_stages]
        chosen = {"first": names[0], "last": names[-1]}.get(self.stage, self.stage)
        if chosen not in names:
            raise UsageError(f"strategy.stage={self.stage}: choose first, last or one of {', '.join(names)}")
        self._trained = {chosen} | {stage.name for stage in model.head_stages}

    def trainable(self, epoch: int) -> Set[str]:
        """The same stages in every epoch."""
        return self._trained
