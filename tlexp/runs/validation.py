"""What cannot work together, reported in one line before anything is trained."""

from collections.abc import Mapping

from tlexp.backbones.base import InputSpec, TextSpec
from tlexp.backbones.batchnorm import has_statistics
from tlexp.config.schema import Config
from tlexp.data.batches import steps_per_epoch
from tlexp.data.class_names import difference
from tlexp.data.domains import Domain
from tlexp.errors import UsageError
from tlexp.metric_names import higher_is_better, validation_metrics
from tlexp.models.transfer_model import TransferModel
from tlexp.terms.base import Term


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
    smallest: Mapping[str, int],
    ranks: int,
    min_batch_size: int,
) -> None:
    """Checks that every process gets a part of every batch and of every split.

    Args:
        config: the run's configuration.
        domains: by role.
        spec: the backbone's input.
        batch_size: examples of a step over all processes.
        smallest: examples in the smallest training batch of each role that trains.
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
        if role in smallest and smallest[role] < ranks * min_batch_size:
            reason = f"the smallest batch of the {role} has {smallest[role]} examples for {ranks} processes"
            reason += f" that need {min_batch_size} each" if min_batch_size > 1 else ""
            raise UsageError(f"batch_size={batch_size}: {reason}; use a larger one or fewer trainer.devices")
        for split in ("test",) if role == "shifted" else ("val", "test"):
            if 0 < sizes[split] < ranks:
                reason = f"the {role} has only {sizes[split]} {split} examples, one for each process at least"
                raise UsageError(f"trainer.devices={ranks}: {reason}")


def smallest_batch(domain: Domain, divided: bool, batch_size: int) -> int:
    """Returns the number of examples in a domain's smallest training batch.

    Args:
        domain: what trains.
        divided: whether an epoch divides its examples evenly; else batches are cut from an endless stream of them.
        batch_size: examples of a step over all processes.
    """
    size = domain.sizes()["train"]
    return size // steps_per_epoch(size, batch_size) if divided else batch_size


def validate_batch_norm(model: TransferModel, batch_size: int, smallest: Mapping[str, int], ranks: int) -> None:
    """Checks that BatchNorm layers which normalise by a batch get two examples of it on every process.

    A variance of one example is 0, and torch refuses it where a layer has one value per channel.

    Raises:
        UsageError: where one process gets a single example.
    """
    if not any(has_statistics(module) and module.training for module in model.modules()):
        return
    for role, size in smallest.items():
        if size < 2 * ranks:
            reason = f"the smallest batch of the {role} has {size} examples for {ranks} processes"
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
