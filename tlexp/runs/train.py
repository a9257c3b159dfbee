"""Training one run in this process, which may be one rank of several: build, fit, test, record."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.reporting import figures
from tlexp.reporting.console import Output
from tlexp.reporting.progress import TrainingProgress
from tlexp.reporting.run_report import Announcement, StartReport, print_result
from tlexp.runs.build import build
from tlexp.runs.checkpoint import BestCheckpoint, StopInLastPhase, first_competing_epoch
from tlexp.runs.lr_finder import find_lr
from tlexp.runs.predictions import save_predictions
from tlexp.runs.resources import ResourceMeter
from tlexp.runs.result import collect_result, record_result, save_figure
from tlexp.runs.resume import LastCheckpoint, find_interrupted
from tlexp.runs.selection import Selection, StopAfterEpoch, select_epoch
from tlexp.runs.trainer import apply_model_options, make_trainer, quiet
from tlexp.tracking.mlflow_run import MLflowRun
from tlexp.tracking.run_logger import RunLogger
from tlexp.training.setup import RunComponents


def train(config: Config, folder: Path, mlflow_run: MLflowRun, output: Output) -> None:
    """Trains, tests and records one run.

    Args:
        config: a checked configuration with absolute paths.
        folder: of the run.
        mlflow_run: the run in MLflow, opened by the process that owns the job.
        output: where reports go.

    Raises:
        UsageError: for a mistake of the user, before the first step.
        TrainingDivergedError: in the first epoch of which a loss or a validation metric is not finite.
    """
    started = time.perf_counter()
    interrupted = find_interrupted(config, folder)
    first_epoch = interrupted.epoch if interrupted else 0
    selection = select_epoch(config, folder, output) if config.refits else None
    components = build(config, first_epoch, "all" if selection else None)
    data, task = components.data, components.task
    run_logger = RunLogger(mlflow_run, folder, first_epoch)
    best = BestCheckpoint(folder, config.monitor, components.monitor_mode, first_competing_epoch(config, task))
    data.materialize()
    apply_model_options(task.model, config.trainer)
    with quiet():
        # The state to resume from is saved last, since it includes that of the others.
        callbacks = make_callbacks(config, components, output, selection)
        stop = StopAfterEpoch(selection.epoch) if selection else None
        callbacks.append(stop or best)
        callbacks.append(LastCheckpoint(run_logger, config.checkpoint_minutes))
        trainer = make_trainer(config, folder, callbacks, [run_logger], task.has_phases, validates=selection is None)
        meter = ResourceMeter(components)
        if interrupted:
            task.use_lr(interrupted.lr)
        elif selection:
            task.use_lr(selection.lr)
        elif config.lr_find:
            test = find_lr(task, data, trainer, output.report)
            task.use_lr(test.lr)
            for term in task.all_terms():
                term.check(task.build_optimizer())
            save_figure(figures.lr_curve(test.rates, test.losses, test.lr), "lr_find.png", folder, mlflow_run)
        if interrupted and interrupted.stopped:
            trainer.fit_loop.max_epochs = interrupted.epoch
        trainer.fit(task, datamodule=data, ckpt_path=interrupted and interrupted.file)
        usage = meter.measure(trainer)
        if selection and stop:
            if not stop.reached and first_epoch <= selection.epoch:
                remedy = f"before epoch {selection.epoch + 1}, which validation has chosen; give it more"
                raise UsageError(f"trainer.max_time={config.trainer.get('max_time')}: ended {remedy}")
            task.validated = dict(selection.curve[selection.epoch])
            best.best_model_path = str(folder / run_folder.BEST_CHECKPOINT)
            trainer.save_checkpoint(best.best_model_path, weights_only=True)
        if not best.best_model_path:
            remedy = "give it more trainer.max_time=, or validate earlier by trainer.val_check_interval=0.1"
            given = config.trainer.get("max_time")
            cause = f"trainer.max_time={given}: ended" if given else "trainer: training ended"
            raise UsageError(f"{cause} before a validation; {remedy}")
        checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        task.load_state_dict(checkpoint["state_dict"])
        if config.predictions and not selection:  # of validation; the test keeps its own
            trainer.predict(task, datamodule=data, return_predictions=False)
        trainer.test(task, datamodule=data, verbose=False)
    held_out = (selection.indices, selection.logits) if selection else None
    files = save_predictions(components, trainer, folder, held_out) if config.predictions else []
    if trainer.is_global_zero:
        history = with_curve(run_logger.history, selection, mlflow_run, folder)
        result = collect_result(config, components, trainer, checkpoint, history)
        for file in files:
            mlflow_run.log_artifact(file, "predictions")
        result |= {**usage, "mlflow_run_id": mlflow_run.run_id or None}
        if selection:
            result |= {name: result[name] + value for name, value in selection.work.items()}
            result |= {"folds": selection.folds, "best_epoch": selection.epoch, "val_examples": len(selection.indices)}
        record_result(config, components, mlflow_run, result, history, folder)
        result["seconds"] = time.perf_counter() - started
        run_folder.write_metrics(folder, result)
        (folder / run_folder.LAST_CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(folder / run_folder.PARTS, ignore_errors=True)
        print_result(config, components, result, folder, output)


def with_curve(
    history: list[dict[str, Any]], selection: Selection | None, mlflow_run: MLflowRun, folder: Path
) -> list[dict[str, Any]]:
    """Adds the validation of held-out labels to the history of the final training, which has none of its own."""
    if selection is None:
        return history
    for epoch, metrics in selection.curve.items():
        mlflow_run.log_metrics(metrics, step=epoch)
    rows = {row["epoch"]: row for row in history}
    joined = [{"epoch": e, **rows.get(e, {}), **selection.curve.get(e, {})} for e in sorted({*rows, *selection.curve})]
    run_folder.write_history(folder, joined)
    return joined


def make_callbacks(
    config: Config, components: RunComponents, output: Output, selection: Selection | None
) -> list[pl.Callback]:
    """Returns the callbacks that report and stop early; of a final training only its progress is new."""
    callbacks: list[pl.Callback] = [] if selection else [StartReport(config, components, output)]
    if selection:
        chosen = f"epoch {selection.epoch + 1} of {config.trainer['max_epochs']}"
        value = selection.curve[selection.epoch][config.monitor]
        on = f"{len(selection.indices)} held-out examples"
        text = f"{on}: {chosen} has the best {config.monitor}, {value:.4f}; training on all labels"
        callbacks.append(Announcement(text, output))
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(TrainingProgress(config.monitor, output))
    if config.patience is not None and not selection:
        first = first_competing_epoch(config, components.task)
        callbacks.append(StopInLastPhase(config.monitor, components.monitor_mode, config.patience, first))
    return callbacks
