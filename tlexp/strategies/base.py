"""The contract of a strategy."""

from collections.abc import Set
from typing import Any

from torch import nn

from tlexp.backbones.base import Stage
from tlexp.data.datamodule import TransferDataModule
from tlexp.models.transfer_model import TransferModel
from tlexp.objective.joint import Objective


class Strategy(nn.Module):
    """Decides which stages train and at what rate. A module, so that its state is in the checkpoint.

    Args:
        name: the option's name, for messages and records.

    Attributes:
        trains_backbone: whether any stage of the backbone ever trains.
    """

    trains_backbone = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def prepare(self, model: TransferModel) -> None:
        """Edits the model once, before the optimizer exists.

        Raises:
            UsageError: where model and strategy do not fit.
        """

    def plan(self, epochs: int) -> list[str]:
        """Decides when its phases begin, once the model is prepared.

        Args:
            epochs: of the run.

        Returns:
            What a reader of the result should know about them.

        Raises:
            UsageError: where the run is too short for them.
        """
        return []

    def trainable(self, epoch: int) -> Set[str]:
        """Returns the names of the stages that train in an epoch: a pure function, so that a resumed run agrees."""
        raise NotImplementedError

    @property
    def schedule_starts(self) -> tuple[int, ...]:
        """The epochs in which the schedule of the learning rate begins, 0 first."""
        return (0,)

    def lr_scale(self, stage: Stage) -> float:
        """Returns the factor of the base learning rate for a stage's parameters."""
        return 1.0

    def check(self, objective: Objective, terms: Set[str], balanced: bool) -> None:
        """Checks that the strategy can optimize the objective.

        Args:
            objective: of the run.
            terms: names of its terms.
            balanced: whether training batches have every class equally often.

        Raises:
            UsageError: where it cannot.
        """

    def on_fit_start(self, model: TransferModel, objective: Objective, data: TransferDataModule) -> None:
        """Changes the model once before the first step, with the data at hand; a resumed run has it already."""

    def selected(self) -> dict[str, float]:
        """Returns the values that the strategy chose by itself, for the record."""
        return {}

    def checkpoint_metadata(self) -> dict[str, Any]:
        """Returns plain values that a checkpoint needs for its weights to be understood."""
        return {}
