"""Choosing the number of epochs on held-out labels, for a final training on all of them.

With few labels one held-out set is a handful of examples. `data.val=cv` trains once for each fold of the labels and
pools what the folds predict: every label validates, and one epoch is chosen for all folds, never the best of each. The
final training takes all labels for as many epochs, on the same schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.data.domains import Part
from tlexp.errors import UsageError
from tlexp.metric_names import higher_is_better
from tlexp.reporting.console import Output
from tlexp.reporting.progress import TrainingProgress
from tlexp.reporting.run_report import Announcement, StartReport
from tlexp.runs.build import build
from tlexp.runs.checkpoint import StopInLastPhase, first_competing_epoch
from tlexp.runs.lr_finder import find_lr
from tlexp.runs.predictions import gather
from tlexp.runs.resources import ResourceMeter
from tlexp.runs.resume import LastCheckpoint, find_interrupted
from tlexp.runs.trainer import apply_model_options, make_trainer, quiet
from tlexp.tracking.mlflow_run import MLflowRun
from tlexp.tracking.run_logger import RunLogger
from tlexp.training.metrics import DomainMetrics

WORK = ("steps", "training_examples", "forward_passes", "fit_seconds")  # which add up over trainings


@dataclass(frozen=True)
class Selection:
    """What held-out labels chose.

    Attributes:
        epoch: the one whose pooled predictions have the best value of the monitored metric, counted from 0.
        lr: the head's learning rate.
        curve: validation metrics by epoch, over all held-out examples.
        indices: of these examples in the target's data set, (n,).
        logits: of the epoch, (n, classes).
        folds: how many trainings they come from.
        work: what these trainings have cost, of each of `WORK`.
    """

    epoch: int
    lr: float
    curve: Mapping[int, Mapping[str, float]]
    indices: np.ndarray
    logits: np.ndarray
    folds: int
    work: Mapping[str, float]


def select_epoch(config: Config, folder: Path, output: Output) -> Selection:
    """Trains on each part of the labels, unless that is done, and chooses the epoch of the final training.

    Args:
        config: of the run.
        folder: of the run; each part has a folder of its own in it, from which it resumes.
        output: where reports go.

    Raises:
        UsageError: where the parts have no validated epoch in common, as with a short `trainer.max_time`.
        TrainingDivergedError: where one of them diverges.
    """
    parts: list[dict[str, Any]] = []
    while not parts or len(parts) < parts[0]["folds"]:
        number = len(parts)
        file = folder / run_folder.PARTS / f"{number}.pt"
        content = torch.load(file, weights_only=True) if file.exists() else {}
        if content.get("config_hash") != config.hash:  # a killed command may have asked for something else
            part: Part = number if config.data.val == "cv" else "held_out"
            _train_part(config, file, part, parts[0]["lr"] if parts else None, output)
            content = torch.load(file, weights_only=True)
        parts.append(content)
    epochs = set.intersection(*(set(part["epochs"]) for part in parts))
    curve = {epoch: _pooled(parts, epoch) for epoch in sorted(epochs)}
    competing = [epoch for epoch in curve if epoch >= parts[0]["first_epoch"]] or list(curve)
    if not competing:
        raise UsageError("data.val=cv: the folds have no validated epoch in common; give them more trainer.max_time=")
    sign = 1 if higher_is_better(config.monitor) else -1
    best = max(competing, key=lambda epoch: sign * curve[epoch][config.monitor])
    return Selection(
        best,
        parts[0]["lr"],
        curve,
        np.concatenate([part["indices"].numpy() for part in parts]),
        torch.cat([_logits(part, best) for part in parts]).numpy(),
        len(parts),
        {name: sum(part["work"][name] for part in parts) for name in parts[0]["work"]},
    )


def _logits(part: Mapping[str, Any], epoch: int) -> Tensor:
    logits: Tensor = part["logits"][part["epochs"].index(epoch)]
    return logits


def _pooled(parts: Sequence[Mapping[str, Any]], epoch: int) -> dict[str, float]:
    """Returns the target's metrics over the examples of all parts, and the mean over parts of the source's."""
    logits = torch.cat([_logits(part, epoch) for part in parts])
    metrics = DomainMetrics(logits.shape[1])
    metrics.update(logits, torch.cat([part["labels"] for part in parts]))
    pooled = {f"val/target/{name}": float(value) for name, value in metrics.compute().items()}
    others = [part["others"][part["epochs"].index(epoch)] for part in parts]
    return pooled | {name: float(np.mean([values[name] for values in others])) for name in others[0]}


def _train_part(config: Config, file: Path, part: Part, lr: float | None, output: Output) -> None:
    """Trains on a part of the labels and writes what it predicted for the rest after each epoch."""
    folder = file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    interrupted = find_interrupted(config, folder)
    first_epoch = interrupted.epoch if interrupted else 0
    components = build(config, first_epoch, part)
    data, task = components.data, components.task
    recorder, run_logger = ValidationRecorder(), RunLogger(MLflowRun(), folder, first_epoch)
    first = first_competing_epoch(config, task)
    callbacks: list[pl.Callback] = [StartReport(config, components, output)] if part in (0, "held_out") else []
    if isinstance(part, int):
        callbacks.append(Announcement(f"fold {part + 1} of {components.folds}", output))
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(TrainingProgress(config.monitor, output))
    if config.patience is not None:
        callbacks.append(StopInLastPhase(config.monitor, components.monitor_mode, config.patience, first))
    callbacks += [recorder, LastCheckpoint(run_logger, config.checkpoint_minutes)]
    data.materialize()
    apply_model_options(task.model, config.trainer)
    with quiet():
        trainer = make_trainer(config, folder, callbacks, [run_logger], task.has_phases)
        if interrupted:
            task.use_lr(interrupted.lr)
        elif lr is not None:
            task.use_lr(lr)
        elif config.lr_find:
            task.use_lr(find_lr(task, data, trainer, output.report).lr)
            for term in task.all_terms():
                term.check(task.build_optimizer())
        if interrupted and interrupted.stopped:
            trainer.fit_loop.max_epochs = interrupted.epoch
        meter = ResourceMeter(components)
        trainer.fit(task, datamodule=data, ckpt_path=interrupted and interrupted.file)
        usage = meter.measure(trainer)
    if trainer.is_global_zero:
        target = data.domains["target"]
        content = {
            **recorder.state_dict(),
            "indices": torch.from_numpy(target.indices("val")),
            "labels": target.labels("val"),
            "folds": components.folds,
            "config_hash": config.hash,
            "first_epoch": first,
            "lr": task.lr,
            "work": {name: usage[name] for name in WORK},
        }
        temporary = file.with_suffix(".tmp")
        torch.save(content, temporary)
        temporary.replace(file)
        (folder / run_folder.LAST_CHECKPOINT).unlink(missing_ok=True)
    trainer.strategy.barrier()  # the others read the file next


class ValidationRecorder(pl.Callback):
    """Keeps the target's logits of each validation, the last one of an epoch, in half precision."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.logits: list[Tensor] = []
        self.others: list[dict[str, float]] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Asks the task to keep its logits."""
        pl_module.keeps_validation = True
        pl_module.logits.clear()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Takes them from all processes, and the metrics of other roles."""
        _, logits = gather(pl_module.logits.pop("val/target", []), trainer)
        known = trainer.callback_metrics.items()
        others = {name: float(v) for name, v in known if name.startswith("val/") and "/target/" not in name}
        if self.epochs and self.epochs[-1] == trainer.current_epoch:
            for values in (self.epochs, self.logits, self.others):
                values.pop()
        self.epochs.append(trainer.current_epoch)
        self.logits.append(torch.from_numpy(logits.copy()))
        self.others.append(others)

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values and tensors, for a checkpoint to resume from and for the file of the part."""
        return {"epochs": list(self.epochs), "logits": list(self.logits), "others": list(self.others)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with those of the interrupted run."""
        self.epochs, self.logits, self.others = (list(state_dict[name]) for name in ("epochs", "logits", "others"))


class StopAfterEpoch(pl.Callback):
    """Ends training after an epoch, on the schedule of a longer one.

    Args:
        epoch: counted from 0.

    Attributes:
        reached: whether that epoch has ended.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch, self.reached = epoch, False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends training if it is time."""
        self.reached = trainer.current_epoch >= self.epoch
        trainer.should_stop = trainer.should_stop or self.reached

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lets all processes agree on the statistics that are kept, as a validation would."""
        pl_module.share_statistics()
