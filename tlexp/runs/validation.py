"""What cannot work together, reported in one line before anything is trained."""

import inspect
import math
from collections.abc import Collection, Mapping

import pytorch_lightning as pl

from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.backbones.batchnorm import has_statistics
from tlexp.config.schema import Config
from tlexp.data.batches import steps_per_epoch
from tlexp.data.class_names import difference
from tlexp.data.domains import Domain
from tlexp.errors import UsageError
from tlexp.metric_names import higher_is_better, validation_metrics
from tlexp.models.transfer_model import TransferModel
from tlexp.processes import count_ranks
from tlexp.terms.base import Term

# Arguments that the Trainer gets from tlexp, or that would take the batches out of its hands.
RESERVED = ("callbacks", "default_root_dir", "num_sanity_val_steps", "use_distributed_sampler")
UNSUPPORTED = ("overfit_batches", "fast_dev_run", "enable_checkpointing", "barebones")
# Options beside Lightning's own, which act on the model.
MODEL_OPTIONS = ("compile", "channels_last")


def validate_trainer(config: Config) -> None:
    """Checks that the Trainer knows its options and that they leave something to train on and to select by.

    Raises:
        UsageError: for an argument that Lightning does not have, that tlexp sets itself, or that leaves nothing to do.
    """
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", *RESERVED, *UNSUPPORTED}
    known |= set(MODEL_OPTIONS)
    if unknown := sorted(set(config.trainer) - known):
        raise UsageError(f"trainer.{unknown[0]}: Lightning's Trainer has no such argument, or tlexp sets it itself")
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
    if config.lr_find and count_ranks(config.trainer) > 1:
        remedy = "tries rates in one process; find one with trainer.devices=1, then give it as lr="
        raise UsageError(f"lr_find=true: {remedy}")
    if config.epochs < (interval := config.trainer.get("check_val_every_n_epoch") or 1):
        raise UsageError(f"trainer.check_val_every_n_epoch={interval}: {config.epochs} epochs end before it; use fewer")


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


def validate_monitor(config: Config) -> str:
    """Returns `max` or `min` for the monitored metric.

    Raises:
        UsageError: for a name that validation does not log, listing those it does.
    """
    known = validation_metrics(list(config.weights.evaluated_roles))
    if config.monitor not in known:
        raise UsageError(f"monitor={config.monitor}: no such metric; this run has {', '.join(known)}")
    return "max" if higher_is_better(config.monitor) else "min"


def validate_terms(config: Config, terms: Mapping[str, Term]) -> None:
    """Checks that every term has the batches it asks for.

    Raises:
        UsageError: where it has not.
    """
    for term in terms.values():
        if "source" in term.roles and config.data.source is None:
            reason = f"compares source and target, but data={config.data.name} has no source; take it out"
            raise UsageError(f"terms=[{term.name}]: {reason}")
        if term.views > 1 and config.objective.mixes:
            remedy = "needs images of one class; use objective.mixup=0 objective.cutmix=0"
            raise UsageError(f"terms=[{term.name}]: {remedy}")
    if config.data.unlabelled and all(term.needs_labels for term in terms.values()):
        remedy = "add one that needs no labels, such as terms=[coral], terms=[dann] or terms=[mcc]"
        raise UsageError(f"data.unlabelled=true: no term would use it; {remedy}")


def validate_shifted(domains: Mapping[str, Domain]) -> None:
    """Checks that a shifted test set has the target's classes.

    Raises:
        UsageError: where it has not.
    """
    if "shifted" not in domains:
        return
    shifted, target = (domains[role].samples for role in ("shifted", "target"))
    if shifted.classes != target.classes:
        others = difference(target.classes, shifted.classes, "shifted data set")
        remedy = f"must have the classes of the target: {others}"
        raise UsageError(f"data.shifted={shifted.name}: {remedy}")


def validate_sizes(
    config: Config,
    domains: Mapping[str, Domain],
    spec: InputSpec | TextSpec,
    batch_size: int,
    train_roles: Collection[str],
    ranks: int,
    min_batch_size: int,
) -> None:
    """Checks that every process gets a part of every batch and of every split.

    Args:
        config: the run's configuration.
        domains: by role.
        spec: the backbone's input.
        batch_size: target examples of a step over all processes.
        train_roles: the roles that a training step needs.
        ranks: number of processes.
        min_batch_size: examples of a batch that each process needs.

    Raises:
        UsageError: where one would have nothing to do, or inputs that are no images would be mixed.
    """
    if config.objective.mixes and spec.kind != "images":
        options = f"objective.mixup={config.objective.mixup:g} objective.cutmix={config.objective.cutmix:g}"
        raise UsageError(f"{options}: mix images, but the data are {spec.kind}; use 0")
    for role, domain in domains.items():
        sizes = domain.sizes()
        smallest = smallest_batch(domain, role, batch_size)
        if role in train_roles and smallest < ranks * min_batch_size:
            reason = f"the smallest batch of the {role} has {smallest} examples for {ranks} processes"
            reason += f" that need {min_batch_size} each" if min_batch_size > 1 else ""
            raise UsageError(f"batch_size={batch_size}: {reason}; use a larger one or fewer trainer.devices")
        for split in ("test",) if role == "shifted" else ("val", "test"):
            if sizes[split] < ranks:
                reason = f"the {role} has only {sizes[split]} {split} examples, one for each process at least"
                raise UsageError(f"trainer.devices={ranks}: {reason}")


def smallest_batch(domain: Domain, role: str, batch_size: int) -> int:
    """Returns the number of examples in the smallest training batch: an epoch divides the target evenly."""
    size = domain.sizes()["train"]
    return size // steps_per_epoch(size, batch_size) if role == "target" else batch_size


def validate_batch_norm(
    model: TransferModel, domains: Mapping[str, Domain], batch_size: int, train_roles: Collection[str], ranks: int
) -> None:
    """Checks that BatchNorm layers which normalise by a batch get two examples of it on every process.

    A variance of one example is 0, and torch refuses it where a layer has one value per channel.

    Raises:
        UsageError: where one process gets a single example.
    """
    if not any(has_statistics(module) and module.training for module in model.modules()):
        return
    for role in set(train_roles) & set(domains):
        if (smallest := smallest_batch(domains[role], role, batch_size)) < 2 * ranks:
            reason = f"the smallest batch of the {role} has {smallest} examples for {ranks} processes"
            remedy = "and BatchNorm needs two on each; use another batch_size=, fewer trainer.devices=, or norm=frozen"
            raise UsageError(f"batch_size={batch_size}: {reason}, {remedy}")


def validate_alpha(config: Config, model: TransferModel, trained: set[str]) -> list[str]:
    """Checks that something trains and that alpha can act on it; returns notices where it acts in unexpected ways.

    Raises:
        UsageError: where nothing trains, or the source's loss cannot reach the target.
    """
    name, weights = config.strategy["name"], config.weights
    if not trained & {stage.name for stage in model.stages}:
        raise UsageError(f"strategy={name}: freezes every stage, so nothing trains; free at least the head")
    notices = []
    if config.optimizer["_target_"] == "torch.optim.SGD" and weights.scales_learning_rate:
        notices.append("with SGD and the form sum, alpha also scales the learning rate; see objective.form=convex")
    heads = {stage.name for stage in model.head_stages}
    if not weights.trains_source or weights.acts_on_target(bool(trained - heads), len(heads) > 1):
        return notices
    all_heads_train = heads <= trained
    if all_heads_train and config.objective.allow_inert_alpha:
        return [*notices, "alpha reaches the source's head only: the target's result is that of alpha=0"]
    remedy = "with a frozen backbone and two heads it cannot reach the target; use alpha=0, head=one, "
    remedy += "a strategy that trains the backbone"
    if all_heads_train:
        remedy += ", or objective.allow_inert_alpha=true to train the source's head beside the target's"
    raise UsageError(f"alpha={config.alpha:g}: strategy={name}: {remedy}")
