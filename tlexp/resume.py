"""Going on after an interruption: at the border of an epoch, with the result of a run that was never stopped.

What an epoch does depends on its number and on the state that a checkpoint holds: which stages move, the batches, the
chance of dropout and augmentation, the rates. So a run that goes on from the last whole epoch ends with the same
weights to the bit.
"""

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from tlexp.config import Config

log = logging.getLogger(__name__)

LAST = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Keeps the state after the last epoch, in one piece: a kill while it is written leaves the one before.

    Args:
        folder: of the run.
        minutes: that pass between two of them at least; 0 writes one after every epoch.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.file, self.minutes = folder / LAST, minutes
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes on one process; that it is time is said by one, since clocks differ."""
        due = time.monotonic() - self._written >= 60 * self.minutes
        if not trainer.strategy.broadcast(due):
            return
        unfinished = self.file.with_suffix(".tmp")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            unfinished.replace(self.file)
        self._written = time.monotonic()


def interrupted(config: Config, folder: Path) -> tuple[Path | None, int]:
    """Returns the checkpoint that a run in this folder goes on from, and the epoch, counted from 0, that comes next.

    Returns:
        None and 0 where the run starts from the beginning: there is no checkpoint of this configuration to be read.
    """
    if not (file := folder / LAST).exists():
        return None, 0
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file fails in many ways
        log.warning("%s: not a readable checkpoint (%s); the run starts from the beginning", file, error)
        return None, 0
    same = content["tlexp"].get("config_hash") == config.hash
    return (file, content["epoch"] + 1) if same else (None, 0)
