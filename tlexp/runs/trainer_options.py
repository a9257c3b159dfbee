"""Options of Lightning's Trainer: which are taken, and why others are not, before anything is read."""

import inspect
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import pytorch_lightning as pl
import torch

from tlexp.config.instantiate import find
from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.processes import count_ranks

# Arguments of Lightning's Trainer that have no place here, each with why and what to use instead.
REFUSED = {
    "barebones": "leaves out checkpoints and logging, which are a run's result; leave it out",
    "default_root_dir": "is the run's folder; use hydra.run.dir=",
    "enable_checkpointing": "a run is tested by its best checkpoint; sweep.keep=none removes it afterwards",
    "enable_model_summary": "the start-up report has the stages; leave it out",
    "fast_dev_run": "leaves out validation's checkpoint, by which a run is tested; use epochs=1 "
    "trainer.limit_train_batches=1 trainer.limit_val_batches=1 trainer.limit_test_batches=1",
    "num_sanity_val_steps": "every split is read before training anyway; leave it out",
    "overfit_batches": "would validate on what is trained; use data.shots=2 trainer.limit_train_batches=1 and compare "
    "train/target/loss",
    "reload_dataloaders_every_n_epochs": "batches depend on the epoch already; leave it out",
    "use_distributed_sampler": "batches are divided over processes already; leave it out",
}
# Callbacks of Lightning that would work against what a run does, by the option that does it here.
REPLACED_CALLBACKS = {
    "BackboneFinetuning": "strategy=gradual_unfreezing",
    "BaseFinetuning": "strategy=",
    "BatchSizeFinder": "batch_size=",
    "EMAWeightAveraging": "ema=0.999",
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches=",
    "LearningRateFinder": "lr_find=true",
    "ProgressBar": "trainer.enable_progress_bar=",
    "StochasticWeightAveraging": "ema=0.999",
    "WeightAveraging": "ema=0.999",
}
# Options beside Lightning's own, which act on the model.
MODEL_OPTIONS = ("compile", "channels_last")


def validate_trainer(config: Config) -> None:
    """Checks that the Trainer knows its options and that they leave something to train on and to select by.

    Raises:
        UsageError: for an argument that Lightning does not have, that tlexp sets itself, or that leaves nothing to do.
    """
    if refused := sorted(set(config.trainer) & REFUSED.keys()):
        raise UsageError(f"trainer.{refused[0]}={config.trainer[refused[0]]}: {REFUSED[refused[0]]}")
    known = {*inspect.signature(pl.Trainer.__init__).parameters, *MODEL_OPTIONS} - {"self", *REFUSED}
    if unknown := sorted(set(config.trainer) - known):
        close = get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean trainer.{close[0]}?" if close else ""
        raise UsageError(f"trainer.{unknown[0]}: Lightning's Trainer has no such argument{hint}")
    _validate_callbacks(config.trainer.get("callbacks"))
    _validate_devices(config.trainer)
    epochs = config.trainer.get("max_epochs")
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise UsageError(f"trainer.max_epochs={epochs}: schedule and strategy need a number above 0; use epochs=")
    if config.trainer.get("precision") == "16-true":
        reason = "the optimizer's steps underflow, AdamW's epsilon among them"
        raise UsageError(f"trainer.precision=16-true: {reason}; use 16-mixed, bf16-mixed or bf16-true")
    for limit in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if config.trainer.get(limit) in (0, 0.0):
            raise UsageError(
                f"trainer.{limit}=0: leaves nothing to train on, validate on or test on; use a number above 0"
            )
    limit_val = config.trainer.get("limit_val_batches")
    if config.refits and limit_val is not None and (limit_val != 1 or isinstance(limit_val, int)):  # 1 is one batch
        reason = "held-out labels choose the number of epochs, and all of them are needed for it"
        raise UsageError(f"trainer.limit_val_batches={limit_val}: {reason}; leave it out")
    if config.lr_find and count_ranks(config.trainer) > 1:
        remedy = "tries rates in one process; find one with trainer.devices=1, then give it as lr="
        raise UsageError(f"lr_find=true: {remedy}")
    if config.epochs < (interval := config.trainer.get("check_val_every_n_epoch") or 1):
        raise UsageError(f"trainer.check_val_every_n_epoch={interval}: {config.epochs} epochs end before it; use fewer")


def as_list(option: Any) -> list[Any]:
    """Returns what an option holds that may be one node or a list of them."""
    return option if isinstance(option, list) else [option] if option else []


def _validate_callbacks(nodes: Any) -> None:
    """Checks that the user's callbacks are such, and leave to a run what is its own.

    Raises:
        UsageError: where they do not.
    """
    for node in as_list(nodes):
        if not isinstance(node, dict) or "_target_" not in node:
            remedy = "give a list of nodes such as {_target_: pytorch_lightning.callbacks.LearningRateMonitor}"
            raise UsageError(f"trainer.callbacks={node}: {remedy}")
        kind = find("trainer.callbacks", node["_target_"])
        if not isinstance(kind, type):  # a function that makes one
            continue
        replaced = [REPLACED_CALLBACKS[base.__name__] for base in kind.__mro__ if base.__name__ in REPLACED_CALLBACKS]
        if replaced:
            raise UsageError(f"trainer.callbacks: {kind.__name__} would work against the run; use {replaced[0]}")


def _validate_devices(trainer: Mapping[str, Any]) -> None:
    """Checks that devices are numbered only where they have numbers.

    Raises:
        UsageError: for a list of devices on the CPU.
    """
    devices, accelerator = trainer.get("devices"), trainer.get("accelerator", "auto")
    if not isinstance(devices, list) or accelerator not in ("cpu", "auto"):
        return
    if accelerator == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        remedy = f"a CPU has none; use trainer.devices={len(devices)} for as many processes"
        raise UsageError(f"trainer.devices={devices}: numbers of GPUs, but {remedy}")


def validate_schedule(config: Config, steps: int) -> None:
    """Checks that training reaches a validation, without which no checkpoint is selected.

    Args:
        config: the run's configuration.
        steps: batches of an epoch.

    Raises:
        UsageError: where it ends before.
    """
    trainer = config.trainer
    limit = trainer.get("limit_train_batches") or 1.0
    batches = max(1, min(steps, limit if isinstance(limit, int) else int(steps * limit)))
    interval, epochs = trainer.get("val_check_interval") or 1.0, trainer.get("check_val_every_n_epoch", 1)
    if isinstance(interval, int) and interval > batches and epochs is not None:
        remedy = f"an epoch has {batches} batches; use fewer, or trainer.check_val_every_n_epoch=null to count them all"
        raise UsageError(f"trainer.val_check_interval={interval}: {remedy}")
    accumulated = trainer.get("accumulate_grad_batches") or 1
    in_epoch = interval if isinstance(interval, int) else max(1, int(batches * interval))
    first = math.ceil(in_epoch / accumulated) + math.ceil(batches / accumulated) * ((epochs or 1) - 1)
    if (most := trainer.get("max_steps") or -1) > 0 and most < first:
        remedy = f"ends before the first validation, after {first} steps; use that many, or trainer.val_check_interval="
        raise UsageError(f"trainer.max_steps={most}: {remedy}")
