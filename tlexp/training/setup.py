"""What a run trains with, once it is built and checked."""

from dataclasses import dataclass

from tlexp.data.datamodule import TransferDataModule
from tlexp.models.starting_point import StartingPoint
from tlexp.training.task import TransferTask


@dataclass(frozen=True)
class RunComponents:
    """The objects of a run.

    Attributes:
        data: loaders by role.
        task: model, strategy, objective and optimizer.
        start: where the weights come from.
        monitor_mode: `max` or `min`.
        notices: what a reader of the result should know.
        folds: trainings that choose the number of epochs; 1 without cross-validation.
    """

    data: TransferDataModule
    task: TransferTask
    start: StartingPoint
    monitor_mode: str
    notices: tuple[str, ...]
    folds: int = 1
