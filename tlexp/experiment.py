"""One job from configuration to result: build, fit, test, record, score."""

import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
import yaml
from filelock import FileLock, Timeout
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy

from tlexp import launch, pictures, report, tracking
from tlexp.assemble import Parts, assemble, build, build_terms
from tlexp.checks import OWN, check_terms
from tlexp.config import Config
from tlexp.cost import Cost
from tlexp.errors import Diverged, UsageError
from tlexp.lr_find import find_lr
from tlexp.model import TransferModel
from tlexp.resume import LAST, LastCheckpoint, interrupted
from tlexp.start import source_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(config: Config, folder: Path) -> float:
    """Answers one configuration: the source's own run if it is needed, then training, test and record.

    Args:
        config: a checked configuration with absolute paths.
        folder: where this run's files go; `metrics.json`, written last, marks it as complete.

    Returns:
        The best validation value of `config.monitor`, that of the checkpoint kept.

    Raises:
        UsageError: for what the user can mend, before training starts.
    """
    if (folder / "metrics.json").exists():
        if read_metrics(folder)["config_hash"] != config.hash:
            raise UsageError(f"{folder}: holds the result of another configuration; give another hydra.run.dir=")
        report.console.print(f"{folder}: is complete already", soft_wrap=True, markup=False)
        tracking.finish(config, folder)
        (folder / LAST).unlink(missing_ok=True)
        return float(read_metrics(folder)["score"])
    if config.init == "source":
        ensure_source(config)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / tracking.LOCK, timeout=1):  # who looks whether a run is alive holds it for a moment
            answer(config, folder)
            (folder / tracking.LOCK).unlink(missing_ok=True)  # who comes now finds a complete run
    except Timeout:
        raise UsageError(f"{folder}: another process trains in it; wait for it or stop it") from None
    return float(read_metrics(folder)["score"])


def answer(config: Config, folder: Path) -> None:
    """Trains, tests and records one run, in this process or in several."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config.shown(), sort_keys=False))
    with tracking.tracked(config, folder) as record:
        count = launch.processes(config.trainer)
        if count > 1:
            assemble(config)  # a mistake is one line here, but a page from each rank
            launch.run_ranks(folder, count, record.run_id, config.tracking.uri)
        else:
            train(config, folder, record)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Returns a complete run's `metrics.json`."""
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


# The source's own run -----------------------------------------------------------------------------------------


def ensure_source(config: Config) -> None:
    """Trains the backbone on the source unless that is done; of several processes one trains and others wait."""
    folder = source_folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / "metrics.json").exists():
        return
    # A mistake in the run that asks should be said before minutes are spent on what it starts from.
    check_terms(config, build_terms(config))
    # Terms are left out, since they may need what only that run brings: its output layer.
    plain = replace(config, init=config.pretrain.init, terms={}, data=replace(config.data, unlabelled=False))
    assemble(plain).data.read()
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / "metrics.json").exists():
            report.screen.print(f"init=source: training the backbone on {config.source_task().data.target['name']}")
            # It belongs to no sweep, since all of them share it.
            alone = replace(config.tracking, parent=None, run_name=None)
            run(replace(config.source_task(), tracking=alone), folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what Lightning says of things that are meant to be so."""
    for chatty in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers",  # the arrays are in memory: a worker would only copy them
            ".*Checkpoint directory .* exists and is not empty",  # the run's own folder
            "Found .* module.s. in eval mode at the start of training",  # frozen stages, as the report says
            ".*GPU available but not used",  # trainer.accelerator says so
            ".*`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning's own use of torch
            "Grad strides do not match bucket view strides",  # 1x1 images of small networks, without effect
            ".*is smaller than the logging interval",  # metrics go out by epoch
        ):
            warnings.filterwarnings("ignore", message)
        yield


# Training -----------------------------------------------------------------------------------------------------


def train(config: Config, folder: Path, record: tracking.Record) -> None:
    """Builds, fits, tests and records one run in this process, which may be one rank of several."""
    started = time.perf_counter()
    parts = assemble(config)
    last = interrupted(config, folder)
    parts.data.first_epoch = last.epoch if last else 0
    recorder = tracking.EpochRecorder(record, folder, parts.data.first_epoch)
    keeper = ModelCheckpoint(
        folder,
        "best",
        config.monitor,
        mode=parts.monitor_mode,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    callbacks = [recorder, *report.callbacks(config, parts), keeper, LastCheckpoint(folder, config.checkpoint_minutes)]
    if config.patience is not None:
        callbacks.append(EarlyStopping(config.monitor, mode=parts.monitor_mode, patience=config.patience))
    parts.data.read()
    tune(parts.task.model, config.trainer)
    with quiet():
        trainer = make_trainer(config, folder, callbacks, parts.task.phased)
        cost = Cost(parts, last.epoch if last else 0)
        if last:
            parts.task.lr = last.lr
        elif config.lr_find:
            trial = find_lr(parts.task, parts.data, trainer)
            parts.task.lr = trial.lr
            for term in parts.task.all_terms():
                term.check(parts.task.build_optimizer())
            save(pictures.lr_trial(trial.rates, trial.losses, trial.lr), "lr_find.png", folder, record)
        if last and last.stopped:
            trainer.fit_loop.max_epochs = last.epoch
        trainer.fit(parts.task, datamodule=parts.data, ckpt_path=last and last.file)
        spent = cost.of(trainer)
        best = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)
        if not math.isfinite(value := best["tlexp"]["metrics"][config.monitor]):
            raise Diverged(f"monitor={config.monitor}: is {value} at its best, so training diverged; lower lr=")
        parts.task.load_state_dict(best["state_dict"])
        trainer.test(parts.task, datamodule=parts.data, verbose=False)
    if trainer.is_global_zero:
        result = collect(config, parts, trainer, best, recorder.history)
        result |= {**spent, "mlflow_run_id": record.run_id or None}
        publish(config, parts, record, result, recorder.history, folder)
        result["seconds"] = time.perf_counter() - started
        write_last(folder / "metrics.json", result)
        (folder / LAST).unlink(missing_ok=True)
        report.show_end(config, parts, result, folder)


def tune(model: TransferModel, trainer: dict[str, Any]) -> None:
    """Compiles the backbone and lays images out channel by channel, where `trainer` asks for it.

    Both change how the same tensors are computed: their names, and so the checkpoints, stay what they are.
    """
    if trainer.get("channels_last"):
        model.memory_format = torch.channels_last
        model.to(memory_format=torch.channels_last)
    if trainer.get("compile"):
        model.backbone.compile()


def make_trainer(config: Config, folder: Path, callbacks: list[pl.Callback], phased: bool = False) -> pl.Trainer:
    """Returns Lightning's Trainer as the configuration says, with ranks that check that they agree.

    Args:
        config: the run's configuration.
        folder: where checkpoints go.
        callbacks: added to its own.
        phased: whether other stages move in other epochs, so that ranks must look which ones take part in a step.

    Raises:
        UsageError: for options that Lightning refuses.
    """
    given = {key: value for key, value in config.trainer.items() if key not in OWN}
    options = {k: build("trainer", v) if isinstance(v, dict) else v for k, v in given.items()}
    if launch.processes(options) > 1 and options.get("strategy", "auto") in ("auto", "ddp"):
        # Buffers sent round in each forward pass would hang where ranks evaluate uneven numbers of batches.
        options["strategy"] = DDPStrategy(forward_sync_buffers=False, find_unused_parameters=phased)
    if launch.processes(options) == 1:
        # A cluster's shell may say that there are more tasks: Lightning would wait for them, or refuse.
        options.setdefault("plugins", []).append(LightningEnvironment())
    fixed: dict[str, Any] = {"logger": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
    shown = {"enable_progress_bar": False, "enable_model_summary": False}  # the report shows more
    callbacks = [launch.SameConfig(config.hash), *callbacks]
    try:
        return pl.Trainer(**{**options, **fixed, **shown}, callbacks=callbacks, default_root_dir=folder)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UsageError(f"trainer: Lightning refuses its options: {str(error).splitlines()[0]}") from error


# The result ---------------------------------------------------------------------------------------------------


def collect(
    config: Config, parts: Parts, trainer: pl.Trainer, best: dict[str, Any], history: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the content of `metrics.json`: training and validation of the checkpoint kept, and the one test."""
    domains = parts.data.domains
    row = next((row for row in history if row["epoch"] == best["epoch"]), {})
    result: dict[str, Any] = {name: value for name, value in row.items() if name.startswith("train/")}
    result |= best["tlexp"]["metrics"]
    result |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    tested = domains["target"].sizes()["test"]
    result["test/target/accuracy_ci95"] = report.wilson_interval(result["test/target/accuracy"], tested)
    if config.init == "source" and "test/source/accuracy" in result:
        before = read_metrics(source_folder(config))["test/target/accuracy"]
        result["forgetting"] = before - result["test/source/accuracy"]
    return result | {
        "score": result[config.monitor],
        "monitor": config.monitor,
        "best_epoch": best["epoch"],
        "epochs_run": len(history),
        "lr": parts.task.lr,
        **parts.task.strategy.found(),
        "test_examples": tested,
        "confusion_matrix": parts.task.confusion.tolist(),
        "config_hash": config.hash,
        "split_hashes": {role: domain.split_hash for role, domain in domains.items()},
        "data": {
            role: {
                "name": domain.samples.name,
                "classes": list(domain.samples.classes),
                **domain.sizes(),
                "skipped": [list(skipped) for skipped in domain.samples.skipped],
                "notices": domain.notices(),
            }
            for role, domain in domains.items()
        },
        "weights": str(parts.loaded),
        "checkpoint": str(Path(trainer.default_root_dir) / "best.ckpt"),
    }


def publish(
    config: Config,
    parts: Parts,
    record: tracking.Record,
    result: dict[str, Any],
    history: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Adds the test, the pictures and, where asked for, the checkpoint to the record; keeps the pictures locally."""
    epoch = result["best_epoch"]
    record.metrics(tracking.final_metrics(result), step=epoch)
    record.tags({f"split.{role}": found for role, found in result["split_hashes"].items()})
    confusion = pictures.confusion_matrix(parts.task.confusion.numpy(), parts.data.domains["target"].samples.classes)
    for name, figure in (
        ("confusion_matrix.png", confusion),
        ("learning_curves.png", pictures.learning_curves(history, epoch)),
    ):
        save(figure, name, folder, record)
    if config.tracking.log_checkpoint:
        record.artifact(folder / "best.ckpt")


def save(figure: "Figure", name: str, folder: Path, record: tracking.Record) -> None:
    """Keeps a picture in the folder and in the record."""
    figure.savefig(folder / name, dpi=110)
    record.artifact(folder / name, "pictures")


def write_last(path: Path, content: dict[str, Any]) -> None:
    """Writes the file that marks a run as complete, in one piece."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
