"""From configuration to parts: every leaf is instantiated here, and what cannot work is said before training."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from tlexp import __version__, launch
from tlexp.backbones import hub
from tlexp.backbones.base import Backbone
from tlexp.backbones.weights import Loaded
from tlexp.cache import Cache
from tlexp.checks import check_alpha, check_monitor, check_parts, check_shifted, check_terms, check_trainer
from tlexp.config import Config
from tlexp.data.domain import Domain
from tlexp.data.pair import Reading, TransferData
from tlexp.data.samples import Samples, Skipped
from tlexp.data.scan import facts
from tlexp.data.splits import split
from tlexp.errors import UsageError
from tlexp.model import TransferModel
from tlexp.norm import make_stochastic, source_statistics
from tlexp.objective import CrossEntropy, Mix, balanced_weights
from tlexp.start import load_init, read_start
from tlexp.strategies.base import Strategy
from tlexp.streams import forked
from tlexp.task import TransferTask
from tlexp.terms.base import Term

# Extras by the package whose absence tells that they are not installed.
EXTRAS = {"transformers": "text", "peft": "peft", "datasets": "hf"}


@dataclass(frozen=True)
class Parts:
    """What a run trains with, built and checked.

    Attributes:
        data: loaders by role.
        task: model, strategy, objective and optimizer.
        loaded: where the backbone's weights come from.
        monitor_mode: `max` or `min`.
        notices: what a reader of the result should know.
    """

    data: TransferData
    task: TransferTask
    loaded: Loaded
    monitor_mode: str
    notices: list[str]


def assemble(config: Config) -> Parts:
    """Builds the parts of a run and checks that they fit together.

    Raises:
        UsageError: for what the user can mend.
    """
    check_trainer(config)
    processes = launch.processes(config.trainer)
    terms = build_terms(config)
    asked = {role for term in terms.values() for role in term.roles}
    weighted = ["target"] * config.has_target_loss + ["source"] * config.has_source_loss
    evaluated = ["target", "source"] if config.has_source_loss else ["target"]
    monitor_mode = check_monitor(config, evaluated)
    cache = cache_of(config)
    roles = ["target", "source"] if "source" in {*weighted, *asked} else ["target"]
    check_terms(config, terms)
    roles += ["shifted"] if config.data.shifted else []
    domains = {role: read_domain(config, role, cache) for role in roles}
    check_shifted(domains)
    state, card = read_start(config)
    backbone = build_backbone(config, card)
    data = build_data(config, backbone, domains, train_on(config, terms), tuple(evaluated), cache)
    check_parts(config, data, processes, max([1, *(term.least for term in terms.values())]))
    loaded, old_head = load_init(config, backbone, state, card)
    apart = "source" in data.train_on and len(data.train_on) > 1
    model = build_model(config, backbone, {role: domains[role] for role in evaluated}, apart)
    model.old_head = old_head
    missing = model.backbone.state_dict() if config.init == "random" else loaded.missing
    model.new = {f"backbone.{name}" for name in missing}
    strategy: Strategy = build("strategy", config.strategy)
    with forked(config.seed, "strategy"):
        strategy.prepare(model, data)
    epochs = range(config.trainer["max_epochs"])
    moving: set[str] = set().union(*(strategy.trainable(epoch) for epoch in epochs))
    notices = check_alpha(config, model, moving)
    frozen = not moving - {stage.name for stage in model.head_stages}
    if frozen and not data.reading.augment and not config.objective.mixes:
        data.encoder = model
        notices.append("the backbone is frozen: each example passes through it once, before the first epoch")
    model.set_trainable(moving)
    if any(term.looks_at_source for term in terms.values()) and config.data.source and "classes" in card:
        reference = domains["source"] if "source" in domains else read_domain(config, "source", cache)
        same = reference.samples.classes == tuple(card["classes"]["target"])
        data.reference = reference if same else None
    prepare_terms(config, terms, model, data, frozen)
    tested = [*evaluated, *(["shifted"] if "shifted" in domains else [])]
    task = build_task(config, model, strategy, {role: domains[role] for role in tested}, epochs, terms)
    optimizer = task.build_optimizer()
    notices += [notice for term in terms.values() for notice in term.check(optimizer)]
    if data.shifted and not np.array_equal(data.shifted.split.test, domains["target"].split.test):
        notices.append("shifted: tests other examples than the target's own")
    return Parts(data, task, loaded, monitor_mode, notices)


def build_terms(config: Config) -> dict[str, Term]:
    """Returns the terms by name; one without weight is not there at all."""
    terms: dict[str, Term] = {name: build("terms", node) for name, node in config.terms.items()}
    return {name: term for name, term in terms.items() if term.weight > 0}


def prepare_terms(
    config: Config, terms: dict[str, Term], model: TransferModel, data: TransferData, frozen: bool
) -> None:
    """Lets terms build what they keep, each with a stream of its own.

    Raises:
        UsageError: for one that has nothing to act on, or does not fit the model.
    """
    for term in terms.values():
        if frozen and term.needs_backbone:
            rule = f"pulls at the backbone, which strategy={config.strategy['name']} leaves frozen; take it out"
            raise UsageError(f"terms=[{term.name}]: {rule}")
        with forked(config.seed, "terms", term.name):
            term.prepare(model, data)
    data.views = max([1, *(term.views for term in terms.values())])
    model.old_head = None  # those who wanted it have a copy


def train_on(config: Config, terms: dict[str, Term]) -> tuple[str, ...]:
    """Returns the roles of which a step needs a batch: for their losses, or for a term."""
    wanted = {"target": config.has_target_loss, "source": config.has_source_loss, "unlabelled": False}
    for term in terms.values():
        for role in term.roles:
            free = role == "target" and not term.needs_labels and config.data.unlabelled
            wanted["unlabelled" if free else role] = True
    return tuple(role for role, needed in wanted.items() if needed)


def build_data(
    config: Config,
    backbone: Backbone,
    domains: dict[str, Domain],
    roles: tuple[str, ...],
    evaluated: tuple[str, ...],
    cache: Cache,
) -> TransferData:
    """Returns the loaders of the domains for a backbone; `roles` are those a training step needs."""
    reading = Reading(cache, build("augment", config.augment), config.data.sampling == "balanced", config.workers)
    sizes = (config.batch_size, config.seed)
    target, source, shifted = (domains.get(role) for role in ("target", "source", "shifted"))
    assert target is not None
    return TransferData(target, source, backbone.input, *sizes, roles, reading, evaluated, shifted)


def build(group: str, node: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Instantiates a leaf of the configuration; what goes wrong there is one line that names the group.

    Raises:
        UsageError: for options the part does not take, or a package of an extra that is not installed.
    """
    try:
        part = instantiate(node, *args, _convert_="all", **kwargs)
        if isinstance(part, partial):  # its last arguments come later, but wrong ones should be said now
            inspect.signature(part.func).bind_partial(*part.args, **part.keywords)
        return part
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, UsageError):
                raise cause from None
            if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
                extra = f"pip install 'tlexp[{EXTRAS[cause.name]}]'"
                raise UsageError(f"{group}={node.get('name')}: needs the package {cause.name}; {extra}") from None
        innermost = list(_causes(error))[-1]
        if isinstance(innermost, TypeError | ImportError | AttributeError):
            raise UsageError(f"{group}: {node.get('_target_')} cannot be built: {innermost}") from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def cache_of(config: Config) -> Cache:
    """Returns the cache that all jobs of a configuration share."""
    return Cache(Path(config.cache), int(config.cache_gb * 1e9))


def read_domain(config: Config, role: str, cache: Cache | None = None) -> Domain:
    """Reads and splits one role's data; the label budget is the target's.

    Args:
        config: the run's configuration.
        role: `target`, `source` or `shifted`.
        cache: remembers which files can be read.
    """
    samples: Samples = build("data", getattr(config.data, role))
    if samples.on_bad == "skip" and samples.inputs.kind == "images":
        samples = readable(samples, cache)
    data = config.data
    options: dict[str, Any] = {"given": samples.given, "groups": samples.groups}
    fixed = partial(split, samples.labels, config.split_seed, data.test_fraction, **options)
    if role != "target":
        return Domain(samples, fixed())
    return Domain(samples, fixed(shots=data.shots, fraction=data.fraction, draw=data.draw, val=data.val))


def readable(samples: Samples, cache: Cache | None) -> Samples:
    """Leaves out the pictures that cannot be read: before the split, so that all runs agree on what they share.

    Raises:
        UsageError: where a class has no picture left.
    """
    bad = {index: found.error for index, found in enumerate(facts(samples.inputs, cache)) if found.error}
    keep = np.ones(len(samples.labels), bool)
    keep[list(bad)] = False
    left = samples.kept(keep)
    if gone := [name for label, name in enumerate(samples.classes) if label not in left.labels]:
        raise UsageError(f"data set {samples.name}: none of the images of class {gone[0]} can be read")
    pictures: Any = samples.inputs
    return replace(left, skipped=(*samples.skipped, *(Skipped(pictures.where(i), why) for i, why in bad.items())))


def build_backbone(config: Config, card: dict[str, Any]) -> Backbone:
    """Builds the network without weights; only `init=pretrained` may ask the hub for anything.

    Args:
        config: the run's configuration.
        card: of the checkpoint it starts from, which carries what the same backbone needs beside its weights.
    """
    node = config.backbone
    before = card.get("config", {}).get("backbone", {})
    # Its folder may have moved: the last part of the name is what a network is called.
    same = before and before["_target_"] == node["_target_"] and Path(before["name"]).name == Path(node["name"]).name
    carried = {"carried": card["carried"]} if same and "carried" in card else {}
    with hub.offline(unless=config.init == "pretrained"), forked(config.seed, "backbone"):
        backbone: Backbone = build("backbone", node, **carried)
    return backbone


def build_model(config: Config, backbone: Backbone, domains: dict[str, Domain], apart: bool = False) -> TransferModel:
    """Puts heads on the backbone: one where both domains have the same classes and `head` does not ask for two.

    Args:
        config: the run's configuration.
        backbone: without heads.
        domains: those that are evaluated.
        apart: whether both domains pass through the model in training, so that each may have statistics of its own.

    Raises:
        UsageError: where one head cannot serve both domains, or alpha = inf leaves the target's untrained.
    """
    classes = {role: domain.samples.classes for role, domain in domains.items()}
    counts = {role: len(names) for role, names in classes.items()}
    same = len(set(classes.values())) == 1
    if config.head == "one" and not same:
        raise UsageError("head=one: source and target have different classes; use head=two or head=auto")
    if same and config.head != "two":
        counts = {"target": counts["target"]}
    elif not config.has_target_loss:
        raise UsageError("alpha=inf: trains the source's head only; use head=one, which needs equal classes")
    network: Any = backbone
    if config.norm == "stochastic":
        make_stochastic(network, config.norm_p)
    own = source_statistics(network, config.norm) if apart else None
    frozen = config.norm == "frozen"
    return TransferModel(backbone, counts, config.seed, own, config.head_hidden, config.head_dropout, frozen)


def build_task(
    config: Config,
    model: TransferModel,
    strategy: Strategy,
    domains: dict[str, Domain],
    epochs: range,
    terms: dict[str, Term],
) -> TransferTask:
    """Assembles the LightningModule from the parts, and tries optimizer and schedule once.

    Raises:
        UsageError: for a value that one of them refuses.
    """
    classes = {role: len(domain.samples.classes) for role, domain in domains.items()}
    balanced = config.objective.class_weights == "balanced"
    criteria: dict[str, torch.nn.Module] = {
        role: CrossEntropy(
            config.objective.label_smoothing,
            balanced_weights(domain.labels("train"), classes[role]) if balanced else None,
        )
        for role, domain in domains.items()
    }
    carried = {"carried": model.backbone.carried()} if hasattr(model.backbone, "carried") else {}
    card = {
        "version": __version__,
        "backbone": model.backbone.name,
        "input": model.backbone.input.described(),
        "classes": {role: list(domain.samples.classes) for role, domain in domains.items()},
        "config": config.shown(),
        "config_hash": config.hash,
        **carried,
        **strategy.carried(),
    }
    schedule = build("schedule", {**config.schedule, "_partial_": True})
    task = TransferTask(
        model,
        strategy,
        criteria,
        classes,
        build("optimizer", {**config.optimizer, "_partial_": True}),
        schedule,
        config.lr,
        epochs,
        config.alpha,
        config.objective.form,
        config.seed,
        card,
        Mix(config.objective.mixup, config.objective.cutmix) if config.objective.mixes else None,
        terms,
        config.norm == "concat",
    )
    schedule(0, 100)
    try:
        task.build_optimizer()
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer: {config.optimizer['_target_']} refuses its options: {error}") from error
    return task
