"""The result of a run: what is collected after the test, and what of it goes to MLflow."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from tlexp import run_folder
from tlexp.config.schema import Config
from tlexp.reporting import figures
from tlexp.reporting.fonts import make_readable
from tlexp.runs.source_weights import source_folder
from tlexp.tracking.mlflow_run import MLflowRun
from tlexp.training.metrics import wilson_interval
from tlexp.training.setup import RunComponents

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def collect_result(
    config: Config,
    components: RunComponents,
    trainer: pl.Trainer,
    checkpoint: dict[str, Any],
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """Returns the content of `metrics.json`: training and validation of the kept checkpoint, and the test."""
    domains, task = components.data.domains, components.task
    row = next((row for row in history if row["epoch"] == checkpoint["epoch"]), {})
    result: dict[str, Any] = {name: value for name, value in row.items() if name.startswith("train/")}
    result |= checkpoint["tlexp"]["metrics"]
    result |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    tested = int(task.confusion.sum())  # which trainer.limit_test_batches may have cut
    result["test/target/accuracy_ci95"] = wilson_interval(result["test/target/accuracy"], tested)
    if config.init == "source" and "test/source/accuracy" in result:
        before = run_folder.read_metrics(source_folder(config))["test/target/accuracy"]
        result["forgetting"] = before - result["test/source/accuracy"]
    return result | {
        "score": result[config.monitor],
        "monitor": config.monitor,
        "best_epoch": checkpoint["epoch"],
        "epochs_run": len(history),
        "last_phase": task.last_phase,
        "lr": task.lr,
        **task.strategy.selected(),
        "test_examples": tested,
        "val_examples": domains["target"].sizes()["val"],
        "labels": domains["target"].labels_bought(config.data.val),
        "label_pool": domains["target"].label_pool,
        "confusion_matrix": task.confusion.tolist(),
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
        "weights": str(components.start.weights),
        "checkpoint": str(Path(trainer.default_root_dir) / run_folder.BEST_CHECKPOINT),
    }


def record_result(
    config: Config,
    components: RunComponents,
    mlflow_run: MLflowRun,
    result: dict[str, Any],
    history: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Adds the test, the figures and, if wanted, the checkpoint to the MLflow run; figures go to the folder too."""
    epoch = result["best_epoch"]
    mlflow_run.log_metrics(run_folder.summary_metrics(result), step=epoch)
    mlflow_run.set_tags({f"split.{role}": key for role, key in result["split_hashes"].items()})
    classes = components.data.domains["target"].samples.classes
    confusion = figures.confusion_matrix(components.task.confusion.numpy(), classes)
    save_figure(confusion, "confusion_matrix.png", folder, mlflow_run)
    save_figure(figures.learning_curves(history, epoch), "learning_curves.png", folder, mlflow_run)
    if config.tracking.log_checkpoint:
        mlflow_run.log_artifact(folder / run_folder.BEST_CHECKPOINT)


def save_figure(figure: "Figure", name: str, folder: Path, mlflow_run: MLflowRun) -> None:
    """Saves a figure in the folder and in the MLflow run."""
    make_readable(figure)
    figure.savefig(folder / name, dpi=110)
    mlflow_run.log_artifact(folder / name, "pictures")
