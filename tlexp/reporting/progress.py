"""The progress bar of a training."""

from importlib.util import find_spec
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tlexp.reporting.console import Output


class TrainingProgress(ProgressBar):
    """One bar over all optimizer steps; where none can be drawn, a line for each tenth of the way.

    A notebook draws it with ipywidgets, and for a single run only: each bar stays in the output of its cell.

    Args:
        monitor: the metric to show.
        output: where to show it.
    """

    def __init__(self, monitor: str, output: Output) -> None:
        super().__init__()
        self.monitor, self.output = monitor, output
        self._enabled = True
        self._bar: Progress | None = None

    def enable(self) -> None:
        """Shows the bar; called by Lightning on the first process."""
        self._enabled = True

    def disable(self) -> None:
        """Hides the bar; called by Lightning on all other processes."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar."""
        if self._enabled and self._can_draw():
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[value]}"), console=self.output.screen)
            self._bar.start()
            total = int(trainer.estimated_stepping_batches)
            self._task = self._bar.add_task("train", total=total, epoch=0, value="")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Moves the bar, which a thread of its own draws."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the monitored value."""
        if not self._enabled:
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        value = trainer.callback_metrics.get(self.monitor)
        text = f"{self.monitor} {float(value):.4f}" if value is not None else ""
        if self._bar is not None:
            self._bar.update(self._task, epoch=f"{epoch}/{epochs}", value=text)
        elif epoch * 10 // max(1, epochs) > (epoch - 1) * 10 // max(1, epochs):
            self.output.report.print(f"epoch {epoch}/{epochs}  {text}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the bar before the error is shown."""
        self._close()

    def _can_draw(self) -> bool:
        if self.output.screen.is_jupyter:
            return self.output.report_is_shown and find_spec("ipywidgets") is not None
        return self.output.screen.is_terminal

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
