"""The contract of a strategy."""

from collections.abc import Set
from typing import TYPE_CHECKING, Any

from torch import nn

from tlexp.backbones.base import Stage
from tlexp.model import TransferModel

if TYPE_CHECKING:
    from tlexp.data.pair import TransferData
    from tlexp.task import TransferTask


class Strategy(nn.Module):
    """Says which stages move and at what rate. A module, so that what it remembers is in the checkpoint.

    Args:
        name: the option's name, for messages and records.

    Attributes:
        moves_backbone: whether any of its stages ever moves.
    """

    moves_backbone = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def prepare(self, model: TransferModel, data: "TransferData") -> None:
        """Edits the model once, before the optimizer exists.

        Raises:
            UsageError: where model and strategy do not fit.
        """

    def trainable(self, epoch: int) -> Set[str]:
        """Returns the names of the stages that move in an epoch: a pure function, so a resumed run agrees."""
        raise NotImplementedError

    def lr_scale(self, stage: Stage) -> float:
        """Returns what the base rate is multiplied by for a stage's parameters."""
        return 1.0

    def start(self, task: "TransferTask", data: "TransferData") -> None:
        """Changes the model once before the first step, all data being there; a run that goes on has it already."""

    def found(self) -> dict[str, float]:
        """Returns what the strategy chose by itself, for the record."""
        return {}

    def carried(self) -> dict[str, Any]:
        """Returns plain values that a checkpoint must bring along for its weights to be understood."""
        return {}
