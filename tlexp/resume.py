"""Going on after an interruption: at the border of an epoch, with the result of a run that was never stopped.

What an epoch does depends on its number and on the state that a checkpoint holds: which stages move, the batches, the
chance of dropout and augmentation, the rates. So a run that goes on from a whole epoch ends with the same weights to
the bit.
"""

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from tlexp.config import Config
from tlexp.errors import UsageError

log = logging.getLogger(__name__)

LAST = "last.ckpt"


class LastCheckpoint(Checkpoint):
    """Keeps the state after an epoch from time to time, in one piece: a kill while it is written leaves the one before.

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


class Interrupted(NamedTuple):
    """Where a run goes on.

    Attributes:
        file: the checkpoint.
        epoch: that comes next, counted from 0.
        lr: the head's rate, which may have been found.
        stopped: whether training had been stopped early already, so that the test comes next.
    """

    file: Path
    epoch: int
    lr: float
    stopped: bool


def interrupted(config: Config, folder: Path) -> Interrupted | None:
    """Returns where a run in this folder goes on; None where it starts from the beginning.

    Raises:
        UsageError: for a run whose folder has been moved, since its checkpoints name each other.
    """
    if not (file := folder / LAST).exists():
        return None
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file fails in many ways
        log.warning("%s: not a readable checkpoint (%s); the run starts from the beginning", file, error)
        return None
    if content["tlexp"].get("config_hash") != config.hash:
        log.warning("%s: is of another configuration; the run starts from the beginning", file)
        return None
    places = [Path(state["dirpath"]) for state in content["callbacks"].values() if "dirpath" in state]
    if moved := [place for place in places if place.resolve() != folder.resolve()]:
        raise UsageError(f"{folder}: this run was in {moved[0]}; move it back, or start it anew")
    card = content["tlexp"]
    return Interrupted(file, content["epoch"] + 1, card.get("lr", config.lr), card["stopped"])
