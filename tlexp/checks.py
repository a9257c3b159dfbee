"""What cannot work together, said in one line before anything is trained."""

import inspect
import math

import pytorch_lightning as pl

from tlexp import launch
from tlexp.config import METRICS, Config
from tlexp.data.domain import Domain
from tlexp.data.pair import TransferData
from tlexp.errors import UsageError
from tlexp.model import TransferModel
from tlexp.terms.base import Term

# What the Trainer is given by tlexp, or what would take the batches out of its hands.
RESERVED = ("logger", "callbacks", "default_root_dir", "num_sanity_val_steps", "use_distributed_sampler")
# Options beside Lightning's own, which act on the model.
OWN = ("compile", "channels_last")
UNSUPPORTED = ("overfit_batches", "fast_dev_run", "enable_checkpointing", "barebones")


def check_alpha(config: Config, model: TransferModel, moving: set[str]) -> list[str]:
    """Makes sure that something trains and that alpha can act on it; returns notices where it acts oddly.

    Raises:
        UsageError: where nothing moves, or the source's loss cannot reach the target.
    """
    name = config.strategy["name"]
    if not moving & {stage.name for stage in model.stages}:
        raise UsageError(f"strategy={name}: freezes every stage, so nothing trains; free at least the head")
    plain_sgd = config.optimizer["_target_"] == "torch.optim.SGD" and config.objective.form == "sum"
    notices = []
    if plain_sgd and 0 < config.alpha < math.inf:
        notices.append("with SGD and the form sum, alpha also scales the learning rate; see objective.form=convex")
    heads = {stage.name for stage in model.head_stages}
    if not config.has_source_loss or len(heads) == 1 or moving - heads:
        return notices
    reaches_source = heads <= moving
    if reaches_source and config.objective.allow_inert_alpha:
        return [*notices, "alpha reaches the source's head only: the target's result is that of alpha=0"]
    rule = "with a frozen backbone and two heads it cannot reach the target; use alpha=0, head=one, "
    rule += "a strategy that moves the backbone"
    if reaches_source:
        rule += ", or objective.allow_inert_alpha=true to train the source's head beside the target's"
    raise UsageError(f"alpha={config.alpha:g}: strategy={name}: {rule}")


def check_terms(config: Config, terms: dict[str, Term]) -> None:
    """Makes sure that every term has the batches it asks for.

    Raises:
        UsageError: where it has not.
    """
    for term in terms.values():
        if "source" in term.roles and config.data.source is None:
            rule = f"compares source and target, but data={config.data.name} has no source; take it out"
            raise UsageError(f"terms=[{term.name}]: {rule}")
        if term.views > 1 and config.objective.mixes:
            raise UsageError(
                f"terms=[{term.name}]: needs pictures of one class; use objective.mixup=0 objective.cutmix=0"
            )
    if config.data.unlabelled and all(term.needs_labels for term in terms.values()):
        rule = "no term would use it; add one that needs no labels, such as terms=[coral], terms=[dann] or terms=[mcc]"
        raise UsageError(f"data.unlabelled=true: {rule}")


def check_shifted(domains: dict[str, Domain]) -> None:
    """Makes sure that what is tested under other conditions has the target's classes.

    Raises:
        UsageError: where it has not.
    """
    if "shifted" not in domains:
        return
    shifted, target = (domains[role].samples for role in ("shifted", "target"))
    if shifted.classes != target.classes:
        other = ", ".join(sorted(set(shifted.classes) ^ set(target.classes))[:5])
        raise UsageError(
            f"data.shifted={shifted.name}: must have the classes of the target; only one of them has {other}"
        )


def check_monitor(config: Config, roles: list[str]) -> str:
    """Returns `max` or `min` for the monitored metric.

    Raises:
        UsageError: for a name that validation does not log, listing those it does.
    """
    known = {f"val/{role}/{name}": "max" if more else "min" for role in roles for name, more in METRICS.items()}
    if config.monitor not in known:
        raise UsageError(f"monitor={config.monitor}: no such metric; this run has {', '.join(known)}")
    return known[config.monitor]


def check_trainer(config: Config) -> None:
    """Makes sure that the Trainer knows its options and that they leave something to train and to choose by.

    Raises:
        UsageError: for an argument that Lightning does not have, that is set here or that leaves nothing.
    """
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self", *RESERVED, *UNSUPPORTED}
    known |= set(OWN)
    if unknown := sorted(set(config.trainer) - known):
        raise UsageError(f"trainer.{unknown[0]}: Lightning's Trainer has no such argument, or tlexp sets it itself")
    if (epochs := config.trainer.get("max_epochs")) is None or epochs < 1:
        raise UsageError(f"trainer.max_epochs={epochs}: schedule and strategy need a number above 0; use epochs=")
    for limit in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if config.trainer.get(limit) in (0, 0.0):
            raise UsageError(f"trainer.{limit}=0: leaves nothing to train on, choose by or test; use a number above 0")
    if config.lr_find and launch.processes(config.trainer) > 1:
        raise UsageError(
            "lr_find=true: tries rates in one process; find one with trainer.devices=1, then give it as lr="
        )
    if config.epochs < (every := config.trainer.get("check_val_every_n_epoch") or 1):
        raise UsageError(f"trainer.check_val_every_n_epoch={every}: {config.epochs} epochs end before it; use fewer")


def check_parts(config: Config, data: TransferData, processes: int, least: int) -> None:
    """Makes sure that every process has a part of every batch and of every split.

    Args:
        config: the run's configuration.
        data: its loaders.
        processes: how many there are.
        least: examples of a batch that each needs, one or as many as a term does.

    Raises:
        UsageError: where one would have nothing to do, or pictures should be mixed that are none.
    """
    if config.objective.mixes and data.spec.kind != "images":
        both = f"objective.mixup={config.objective.mixup:g} objective.cutmix={config.objective.cutmix:g}"
        raise UsageError(f"{both}: mix pictures, but the data are {data.spec.kind}; use 0")
    for role, domain in {**data.domains, **({"shifted": data.shifted} if data.shifted else {})}.items():
        sizes = domain.sizes()
        smallest = sizes["train"] // data.steps if role == "target" else config.batch_size
        if role in data.train_on and smallest < processes * least:
            rule = f"the smallest batch of the {role} has {smallest} examples for {processes} processes"
            rule += f" that need {least} each" if least > 1 else ""
            raise UsageError(f"batch_size={config.batch_size}: {rule}; use a larger one or fewer trainer.devices")
        for part in ("test",) if role == "shifted" else ("val", "test"):
            if sizes[part] < processes:
                rule = f"the {role} has only {sizes[part]} {part} examples, one for each process at least"
                raise UsageError(f"trainer.devices={processes}: {rule}")
