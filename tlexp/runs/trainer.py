"""Lightning's Trainer as the configuration asks for it, for one process or one rank of several."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from tlexp.config.instantiate import build
from tlexp.config.schema import Config
from tlexp.errors import UsageError
from tlexp.models.transfer_model import TransferModel
from tlexp.processes import count_ranks
from tlexp.runs.trainer_options import MODEL_OPTIONS, as_list


def make_trainer(
    config: Config,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    has_phases: bool = False,
    validates: bool = True,
) -> pl.Trainer:
    """Returns Lightning's Trainer; its ranks check that they train the same configuration.

    Args:
        config: the run's configuration.
        folder: where checkpoints go.
        callbacks: of the run, beside those of `trainer.callbacks`.
        loggers: of the run, beside those of `trainer.logger`.
        has_phases: whether different stages train in different epochs, so that ranks must look which ones take part.
        validates: whether there is something to validate on.

    Raises:
        UsageError: for options that Lightning refuses.
    """
    trainer = {key: value for key, value in config.trainer.items() if key not in MODEL_OPTIONS}
    user_loggers = _user_loggers(trainer.pop("logger", None), folder)
    user_callbacks = _build(as_list(trainer.pop("callbacks", None)))
    options = {key: _build(value) for key, value in trainer.items()}
    ranks = count_ranks(options)
    if ranks > 1 and options.get("strategy", "auto") in ("auto", "ddp"):
        options["strategy"] = _ddp(has_phases)
    if ranks == 1:
        # A cluster's shell may say that there are more tasks: Lightning would wait for them, or refuse.
        options.setdefault("plugins", []).append(LightningEnvironment())
    options["logger"] = [*loggers, *user_loggers] or False
    options["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in callbacks)
    fixed: dict[str, Any] = {"num_sanity_val_steps": 0, "use_distributed_sampler": False, "enable_model_summary": False}
    fixed |= {} if validates else {"limit_val_batches": 0}
    # The user's first, so that the state to resume from, which is saved last, has theirs.
    all_callbacks = [SameConfig(config.hash), *user_callbacks, *callbacks]
    _check_states(all_callbacks, user_callbacks)
    try:
        return pl.Trainer(**{**options, **fixed}, callbacks=all_callbacks, default_root_dir=folder)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UsageError(f"trainer: Lightning refuses its options: {str(error).splitlines()[0]}") from error


def _build(value: Any) -> Any:
    """Instantiates the objects among the Trainer's options."""
    if isinstance(value, dict):
        return build("trainer", value)
    return [_build(item) for item in value] if isinstance(value, list) else value


def _check_states(callbacks: Sequence[pl.Callback], own: Sequence[pl.Callback]) -> None:
    """Checks that each callback has a state of its own, without which a run could not be resumed.

    Raises:
        UsageError: for one of the user's that repeats another one.
    """
    for callback in own:
        if not isinstance(callback, pl.Callback):
            raise UsageError(f"trainer.callbacks: {type(callback).__name__} is no callback of Lightning; leave it out")
        has_state = type(callback).state_dict is not pl.Callback.state_dict
        if has_state and sum(other.state_key == callback.state_key for other in callbacks) > 1:
            name = type(callback).__name__
            remedy = "the run has one with the same options (see patience= and monitor=); leave it out or change them"
            raise UsageError(f"trainer.callbacks: {name}: {remedy}")


def _user_loggers(option: Any, folder: Path) -> list[Logger]:
    """Returns the loggers of `trainer.logger`: one, a list of them, or true for a CSV file.

    They write to the run's folder unless `save_dir` is given.
    """
    if option is True:
        return [CSVLogger(folder, name="")]
    loggers = []
    for node in as_list(option):
        if not isinstance(node, dict) or "_target_" not in node:
            remedy = "give true, or a _target_ such as {_target_: pytorch_lightning.loggers.TensorBoardLogger}"
            raise UsageError(f"trainer.logger={node}: {remedy}")
        logger = build("trainer.logger", {**node, "_partial_": True})
        accepts_folder = "save_dir" in inspect.signature(logger.func).parameters and "save_dir" not in node
        loggers.append(logger(**({"save_dir": folder} if accepts_folder else {})))
    return loggers


def _ddp(find_unused_parameters: bool) -> DDPStrategy:
    """Returns DDP without the broadcast of buffers in each forward pass.

    It would hang where ranks evaluate different numbers of batches. Older versions of torch have one switch for forward
    passes and for the start; the start needs no broadcast, since all ranks load the same weights.
    """
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    option: Any = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DDPStrategy(find_unused_parameters=find_unused_parameters, **option)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's remarks about things that are intended."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers",  # the data are in memory: a worker would only copy them
            ".*Checkpoint directory .* exists and is not empty",  # the run's own folder
            "Found .* module.s. in eval mode at the start of training",  # frozen stages, as the report shows
            ".*GPU available but not used",  # trainer.accelerator says so
            ".*`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning's own use of torch
            "Grad strides do not match bucket view strides",  # 1x1 images of small networks, without effect
            ".*is smaller than the logging interval",  # metrics are logged by epoch
            ".*`srun` command is available",  # a machine with Slurm; processes are started by this program
        ):
            warnings.filterwarnings("ignore", message)
        yield


def apply_model_options(model: TransferModel, trainer: dict[str, Any]) -> None:
    """Compiles the backbone and lays images out channels last, where `trainer` asks for it.

    Both change how the same tensors are computed: their names, and so the checkpoints, stay what they are.
    """
    if trainer.get("channels_last"):
        model.use_channels_last()
    if trainer.get("compile"):
        model.backbone.compile()


class SameConfig(pl.Callback):
    """Refuses to train where the processes of a group have different configurations."""

    def __init__(self, key: str) -> None:
        self.key = key

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compares the configuration's hash over all ranks.

        Raises:
            RuntimeError: on every rank, naming the hashes.
        """
        if trainer.world_size > 1:
            keys: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(keys, self.key)
            if len(set(keys)) > 1:
                raise RuntimeError(f"the processes of this job train different configurations: {', '.join(keys)}")
