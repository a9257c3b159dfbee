"""Training one run in this process, which may be one rank of several: build, fit, test, record."""

import time
from pathlib import Path

import pytorch_lightning as pl
import torch

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.reporting import figures
from tlexp.reporting.console import Output
from tlexp.reporting.progress import TrainingProgress
from tlexp.reporting.run_report import StartReport, print_result
from tlexp.runs.build import build
from tlexp.runs.checkpoint import BestCheckpoint, StopInLastPhase
from tlexp.runs.lr_finder import find_lr
from tlexp.runs.predictions import save_predictions
from tlexp.runs.resources import ResourceMeter
from tlexp.runs.result import collect_result, record_result, save_figure
from tlexp.runs.resume import LastCheckpoint, find_interrupted
from tlexp.runs.trainer import apply_model_options, make_trainer, quiet
from tlexp.tracking.mlflow_run import MLflowRun
from tlexp.tracking.run_logger import RunLogger
from tlexp.training.setup import RunComponents
from tlexp.training.task import TransferTask


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
    components = build(config, first_epoch)
    data, task = components.data, components.task
    run_logger = RunLogger(mlflow_run, folder, first_epoch)
    best = BestCheckpoint(folder, config.monitor, components.monitor_mode, first_competing_epoch(config, task))
    data.materialize()
    apply_model_options(task.model, config.trainer)
    with quiet():
        # The state to resume from is saved last, since it includes that of the others.
        callbacks = [*make_callbacks(config, components, output), best]
        callbacks.append(LastCheckpoint(run_logger, config.checkpoint_minutes))
        trainer = make_trainer(config, folder, callbacks, [run_logger], task.has_phases)
        meter = ResourceMeter(components)
        if interrupted:
            task.use_lr(interrupted.lr)
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
        if not best.best_model_path:
            remedy = "give it more trainer.max_time=, or validate earlier by trainer.val_check_interval=0.1"
            given = config.trainer.get("max_time")
            cause = f"trainer.max_time={given}: ended" if given else "trainer: training ended"
            raise UsageError(f"{cause} before a validation; {remedy}")
        checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        task.load_state_dict(checkpoint["state_dict"])
        if config.predictions:  # of validation; the test keeps its own
            trainer.predict(task, datamodule=data, return_predictions=False)
        trainer.test(task, datamodule=data, verbose=False)
    files = save_predictions(components, trainer, folder) if config.predictions else []
    if trainer.is_global_zero:
        result = collect_result(config, components, trainer, checkpoint, run_logger.history)
        for file in files:
            mlflow_run.log_artifact(file, "predictions")
        result |= {**usage, "mlflow_run_id": mlflow_run.run_id or None}
        record_result(config, components, mlflow_run, result, run_logger.history, folder)
        result["seconds"] = time.perf_counter() - started
        run_folder.write_metrics(folder, result)
        (folder / run_folder.LAST_CHECKPOINT).unlink(missing_ok=True)
        print_result(config, components, result, folder, output)


def make_callbacks(config: Config, components: RunComponents, output: Output) -> list[pl.Callback]:
    """Returns the callbacks that report and stop early."""
    callbacks: list[pl.Callback] = [StartReport(config, components, output)]
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(TrainingProgress(config.monitor, output))
    if config.patience is not None:
        first = first_competing_epoch(config, components.task)
        callbacks.append(StopInLastPhase(config.monitor, components.monitor_mode, config.patience, first))
    return callbacks


def first_competing_epoch(config: Config, task: TransferTask) -> int:
    """Returns the epoch from which on checkpoints compete: the last phase's first, unless all are wanted."""
    return 0 if config.choose_from == "all" else task.last_phase
