"""Which checkpoint a run keeps, and when it stops early: of a strategy with phases the last phase decides."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.training.task import TransferTask


def first_competing_epoch(config: Config, task: TransferTask) -> int:
    """Returns the epoch from which on checkpoints compete: the last phase's first, unless all are wanted."""
    return 0 if config.choose_from == "all" else task.last_phase


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint with the best value of a metric from an epoch on.

    A checkpoint from before is kept where training ends before that epoch is validated.

    Args:
        folder: of the run.
        monitor: the metric.
        mode: `max` or `min`.
        first_epoch: from which on checkpoints compete.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, first_epoch: int) -> None:
        super().__init__(
            folder,
            Path(run_folder.BEST_CHECKPOINT).stem,
            monitor,
            mode=mode,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_weights_only=True,  # the optimizer's state is twice as large, and what resumes needs is in last.ckpt
        )
        self.first_epoch, self.has_begun = first_epoch, False

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Returns whether a value is the best so far; from the first epoch on those before are forgotten."""
        if not self.has_begun and trainer.current_epoch >= self.first_epoch:
            self.has_begun, self.best_k_models, self.kth_best_model_path = True, {}, ""
        return super().check_monitor_top_k(trainer, current)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run has to know."""
        return {**super().state_dict(), "has_begun": self.has_begun}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where the interrupted run was."""
        self.has_begun = state_dict["has_begun"]
        super().load_state_dict(state_dict)


class StopInLastPhase(EarlyStopping):
    """Stops after `patience` validations without improvement, counted from an epoch on.

    Args:
        monitor: the metric.
        mode: `max` or `min`.
        patience: validations without improvement.
        first_epoch: from which on they count.
    """

    def __init__(self, monitor: str, mode: str, patience: int, first_epoch: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience)
        self.first_epoch = first_epoch

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the metric, where that is wanted after a validation."""
        if trainer.current_epoch >= self.first_epoch:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the metric, where that is wanted after an epoch."""
        if trainer.current_epoch >= self.first_epoch:
            super().on_train_epoch_end(trainer, pl_module)
