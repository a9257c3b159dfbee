"""Resuming an interrupted run at the end of an epoch, with the result of a run that was never interrupted.

What an epoch does depends on its number and on the state in the checkpoint alone: which stages train, the batches, the
randomness of dropout and augmentation, the learning rates. So a resumed run ends with the same weights to the bit.
"""

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.tracking.run_logger import RunLogger

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Saves the state at the end of an epoch from time to time, in one piece: a kill meanwhile leaves the previous one.

    Args:
        run_logger: of the run; Lightning passes the epoch's metrics to loggers after its callbacks, and a checkpoint
            must not be ahead of the history.
        minutes: between two saves at least; 0 saves after every epoch.
    """

    def __init__(self, run_logger: RunLogger, minutes: float) -> None:
        self.run_logger, self.minutes = run_logger, minutes
        self.file = run_logger.folder / run_folder.LAST_CHECKPOINT
        self._written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Returns where the run is: checkpoints name each other."""
        return {"folder": str(self.file.parent)}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves if it is time, which one process decides, since clocks differ."""
        due = time.monotonic() - self._written >= 60 * self.minutes
        if not trainer.strategy.broadcast(due):
            return
        known = trainer.callback_metrics.items()  # those of validation have been logged, those of training not yet
        metrics = {name: float(value) for name, value in known if not name.startswith(("val/", "test/"))}
        self.run_logger.log_metrics({"epoch": trainer.current_epoch, **metrics})
        temporary = self.file.with_suffix(".tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(self.file)
        self._written = time.monotonic()


class Interrupted(NamedTuple):
    """Where a run resumes.

    Attributes:
        file: the checkpoint.
        epoch: the one that comes next, counted from 0.
        lr: the head's learning rate, which lr_find may have chosen.
        stopped: whether training had been stopped early already, so that the test comes next.
    """

    file: Path
    epoch: int
    lr: float
    stopped: bool


def find_interrupted(config: Config, folder: Path) -> Interrupted | None:
    """Returns where the run of a folder resumes; None where it starts from the beginning.

    Raises:
        UsageError: for a run whose folder has been moved, since its checkpoints name each other.
    """
    if not (file := folder / run_folder.LAST_CHECKPOINT).exists():
        return None
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file fails in many ways
        log.warning("%s: not a readable checkpoint (%s); the run starts from the beginning", file, error)
        return None
    metadata = content["tlexp"]
    if metadata.get("config_hash") != config.hash:
        log.warning("%s: is of another configuration; the run starts from the beginning", file)
        return None
    before = Path(content["callbacks"].get(LastCheckpoint.__qualname__, {}).get("folder", folder))
    if before.resolve() != folder.resolve():
        raise UsageError(f"{folder}: this run was in {before}; move it back, or start a new one")
    return Interrupted(file, content["epoch"] + 1, metadata.get("lr", config.lr), metadata["stopped"])
