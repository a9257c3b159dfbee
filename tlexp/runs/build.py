"""Building a run, from its configuration to everything it trains with. Read `build` from top to bottom.

What one phase hands to the next is a value that no later phase changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from tlexp.backbones import hub
from tlexp.backbones.base import Backbone, InputSpec
from tlexp.backbones.batchnorm import make_stochastic, source_statistics
from tlexp.config.instantiate import REFUSALS, reason
from tlexp.config.instantiate import build as instantiate
from tlexp.config.schema import SOURCE_RUN, Config
from tlexp.data.augment import is_reproducible
from tlexp.data.cache import Cache
from tlexp.data.class_names import difference, nearly_the_same
from tlexp.data.datamodule import LoaderOptions, TransferDataModule
from tlexp.data.domains import Domain, Part, check_domains
from tlexp.data.features import FrozenFeatures
from tlexp.errors import UsageError
from tlexp.models.starting_point import StartingPoint
from tlexp.models.transfer_model import TransferModel
from tlexp.objective.joint import BatchMixing, CrossEntropy, Objective, balanced_weights
from tlexp.processes import count_ranks
from tlexp.rng import fork_rng
from tlexp.runs.domains import open_cache, read_domain
from tlexp.runs.init import load_weights, read_init
from tlexp.runs.trainer_options import validate_schedule, validate_trainer
from tlexp.runs.validation import (
    smallest_batch,
    validate_alpha,
    validate_batch_norm,
    validate_monitor,
    validate_shifted,
    validate_sizes,
    validate_terms,
)
from tlexp.strategies.base import Strategy
from tlexp.terms.base import Term
from tlexp.training.average import WeightAverage
from tlexp.training.optim import Optimization, trained_stages
from tlexp.training.setup import RunComponents
from tlexp.training.task import TransferTask
from tlexp.version import __version__


def build(config: Config, first_epoch: int = 0, part: Part | None = None) -> RunComponents:
    """Builds the components of a run and checks that they fit together.

    Args:
        config: a checked configuration with absolute paths.
        first_epoch: the epoch that comes next in a run that is resumed.
        part: which of the target's labels are held out; None for the validation split, or else the first fold.

    Raises:
        UsageError: for a mistake of the user, in one line.
    """
    # 1. The configuration: what cannot work is refused before anything is read.
    plan = make_plan(config)

    # 2. The domains, read and split.
    cache = open_cache(config)
    domains = read_domains(config, plan, cache)
    folds = len(domains["target"].split.folds)
    domains["target"] = domains["target"].take(part if part is not None else 0 if folds else "held_out")

    # 3. The backbone and the weights it starts from.
    state, metadata = read_init(config)
    backbone = build_backbone(config, metadata)
    augment = instantiate("augment", config.augment)
    # Few labels are common, and the target is the same for every alpha; the source has to have enough of its own.
    counted = config.counted_role
    batch_size = min(config.batch_size, max(1, domains[counted].sizes()["train"]))
    check_domains(domains, backbone.input, batch_size, plan.train_roles, augment)
    ranks = count_ranks(config.trainer)
    smallest = {role: smallest_batch(domains[role], role == counted, batch_size) for role in plan.batch_roles}
    validate_sizes(config, domains, backbone.input, batch_size, smallest, ranks, plan.min_batch_size)
    reference = read_reference(config, plan, domains, metadata, cache)
    start = load_start(config, backbone, state, metadata, bool(augment), reference is not None)

    # 4. The model: the backbone under its heads.
    model = build_model(config, backbone, domains, plan)

    load_heads(config, model, domains, start)

    # 5. The strategy: which stages train.
    strategy: Strategy = instantiate("strategy", config.strategy)
    with fork_rng(config.seed, "strategy"):
        strategy.prepare(model)
    epochs = range(config.trainer["max_epochs"])
    notices = strategy.plan(len(epochs))
    trained = trained_stages(strategy, epochs)
    notices += validate_alpha(config, model, trained)
    if augment and isinstance(backbone.input, InputSpec) and not is_reproducible(augment, backbone.input):
        own = "has random numbers of its own, which seed= does not reach: no two runs are the same"
        notices.append(f"augment={augment.name}: {own}; draw from torch, numpy.random or random")
    model.set_trainable(trained)
    validate_batch_norm(model, batch_size, smallest, ranks)

    # 6. The terms and the objective.
    frozen_backbone = not trained - {stage.name for stage in model.head_stages}
    prepare_terms(config, plan.terms, model, start, frozen_backbone)
    objective = build_objective(config, domains)
    strategy.check(objective, plan.terms.keys(), config.data.sampling == "balanced")

    # 7. The loaders.
    frozen_features = None
    if frozen_backbone and not augment and not config.objective.mixes:
        frozen_features = FrozenFeatures(model, cache)
        notices.append("the backbone is frozen: its features are computed once, before the first epoch")
    data = TransferDataModule(
        domains if reference is None else {**domains, "reference": reference},
        backbone.input,
        batch_size,
        config.seed,
        plan.train_roles,
        config.weights.evaluated_roles,
        LoaderOptions(cache, augment, config.data.sampling == "balanced", config.workers, plan.views),
        frozen_features,
        first_epoch,
        counted,
    )

    validate_schedule(config, data.steps)

    # 8. The task: one training step, its optimizer and its checkpoint.
    task = build_task(config, model, strategy, objective, plan, domains, epochs)
    task.trains_on_features = frozen_features is not None
    optimizer = build_optimizer(config, task)
    notices += [notice for term in plan.terms.values() for notice in term.check(optimizer)]
    if config.head == "auto" and len(model.classes) > 1:
        classes = (domains[role].samples.classes for role in ("target", "source"))
        if hint := nearly_the_same(*classes):
            notices.append(f"source and target have a head each, since their classes differ: {hint}")
    if batch_size < config.batch_size:
        notices.append(
            f"batch_size={config.batch_size}: the {counted} has {batch_size} training examples, so batches have too"
        )
    if data.shifted and not np.array_equal(data.shifted.split.test, domains["target"].split.test):
        notices.append("shifted: tests other examples than the target's own")
    return RunComponents(data, task, start, plan.monitor_mode, tuple(notices), max(1, folds))


def validate(config: Config) -> None:
    """Checks what can be checked before anything trains: for a process that only starts others.

    Published weights are fetched here, so that the others find them in the local cache instead of each fetching them.

    Raises:
        UsageError: for a mistake of the user.
    """
    read_domains(config, make_plan(config), open_cache(config))
    state, metadata = read_init(config)
    if config.init == "pretrained":
        load_weights(config, build_backbone(config, metadata), state, metadata)


# 1. Configuration ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunPlan:
    """What follows from the configuration alone.

    Attributes:
        terms: by name; a term without weight is not built at all.
        monitor_mode: `max` or `min`.
        train_roles: the roles of which a training step needs a batch: for their losses, or for a term.
        domain_roles: the roles whose data are read.
    """

    terms: dict[str, Term]
    monitor_mode: str
    train_roles: tuple[str, ...]
    domain_roles: tuple[str, ...]

    @property
    def batch_roles(self) -> tuple[str, ...]:
        """The domains of which a training step needs a batch of labelled examples."""
        return tuple(role for role in self.train_roles if role != "unlabelled")

    @property
    def min_batch_size(self) -> int:
        """Smallest batch per process that all terms work with."""
        return max([1, *(term.min_batch_size for term in self.terms.values())])

    @property
    def views(self) -> int:
        """Views of each training image that some term asks for."""
        return max([1, *(term.views for term in self.terms.values())])

    @property
    def needs_reference(self) -> bool:
        """Whether some term uses the source's validation split before training."""
        return any(term.needs_reference for term in self.terms.values())


def make_plan(config: Config) -> RunPlan:
    """Checks the configuration and derives what follows from it alone.

    Raises:
        UsageError: for a mistake of the user.
    """
    validate_trainer(config)
    count_ranks(config.trainer)
    terms = build_terms(config)
    monitor_mode = validate_monitor(config)
    validate_terms(config, terms)
    weights = config.weights
    in_step = {"target": weights.trains_target, "source": weights.trains_source, "unlabelled": False}
    for term in terms.values():
        for role in term.roles:
            label_free = role == "target" and not term.needs_labels and config.data.unlabelled
            in_step["unlabelled" if label_free else role] = True
    read = {"target": True, "source": in_step["source"], "shifted": config.data.shifted is not None}
    return RunPlan(terms, monitor_mode, *(tuple(role for role in uses if uses[role]) for uses in (in_step, read)))


def build_terms(config: Config) -> dict[str, Term]:
    """Returns the terms by name; one without weight is not built at all."""
    terms: dict[str, Term] = {name: instantiate("terms", node) for name, node in config.terms.items()}
    return {name: term for name, term in terms.items() if term.weight > 0}


# 2. Domains ---------------------------------------------------------------------------------------------------


def read_domains(config: Config, plan: RunPlan, cache: Cache) -> dict[str, Domain]:
    """Reads and splits the data of each role.

    Raises:
        UsageError: for data that cannot be read or do not fit together.
    """
    domains = {role: read_domain(config, role, cache) for role in plan.domain_roles}
    validate_shifted(domains)
    return domains


def read_reference(
    config: Config, plan: RunPlan, domains: Mapping[str, Domain], metadata: Mapping[str, Any], cache: Cache
) -> Domain | None:
    """Returns the source where a term uses it and its classes are those of the checkpoint's head; else None."""
    if not (plan.needs_reference and config.data.source and "classes" in metadata):
        return None
    source = domains["source"] if "source" in domains else read_domain(config, "source", cache)
    return source if source.samples.classes == tuple(metadata["classes"]["target"]) else None


# 3. Backbone --------------------------------------------------------------------------------------------------


def build_backbone(config: Config, metadata: Mapping[str, Any]) -> Backbone:
    """Builds the network without weights; only `init=pretrained` may ask the hub for anything.

    Args:
        config: the run's configuration.
        metadata: of the checkpoint it starts from, which carries what the same backbone needs beside its weights.
    """
    node = config.backbone
    before = metadata.get("config", {}).get("backbone", {})
    # Its folder may have moved: the last part of the name identifies a network.
    same = before and before["_target_"] == node["_target_"] and Path(before["name"]).name == Path(node["name"]).name
    files = {"files": metadata["carried"]} if same and "carried" in metadata else {}
    with hub.offline(unless=config.init == "pretrained"), fork_rng(config.seed, "backbone"):
        backbone: Backbone = instantiate("backbone", node, **files)
    return backbone


def load_start(
    config: Config,
    backbone: Any,
    state: dict[str, Tensor],
    metadata: dict[str, Any],
    augmented: bool,
    has_reference: bool,
) -> StartingPoint:
    """Loads the backbone's weights and returns what came with them."""
    weights, head = load_weights(config, backbone, state, metadata)
    missing = backbone.state_dict() if config.init == "random" else weights.missing
    new_parameters = frozenset(f"backbone.{name}" for name in missing)
    return StartingPoint(weights, head, new_parameters, metadata, augmented, has_reference)


# 4. Model -----------------------------------------------------------------------------------------------------


def build_model(config: Config, backbone: Backbone, domains: Mapping[str, Domain], plan: RunPlan) -> TransferModel:
    """Puts heads on the backbone: one where both domains have the same classes and `head` does not ask for two.

    Raises:
        UsageError: where one head cannot serve both domains, or alpha = inf leaves the target's untrained.
    """
    classes = {role: domains[role].samples.classes for role in config.weights.evaluated_roles}
    counts = {role: len(names) for role, names in classes.items()}
    same = len(set(classes.values())) == 1
    if config.head == "one" and not same:
        reason = f"source and target have different classes: {difference(classes['target'], classes['source'])}"
        raise UsageError(f"head=one: {reason}; use head=two or head=auto")
    if same and config.head != "two":
        counts = {"target": counts["target"]}
    elif not config.weights.trains_target:
        raise UsageError("alpha=inf: trains the source's head only; use head=one, which needs equal classes")
    network: Any = backbone
    if config.norm == "stochastic":
        make_stochastic(network, config.norm_p)
    # Each domain has statistics of its own where both pass through the model in training.
    both = "source" in plan.train_roles and len(plan.train_roles) > 1
    statistics = source_statistics(network, config.norm) if both else None
    return TransferModel(
        backbone,
        counts,
        config.seed,
        statistics,
        config.head_hidden,
        config.head_dropout,
        frozen_statistics=config.norm == "frozen",
        stream="head of the source's run" if config.strategy["name"] == SOURCE_RUN else "head",
    )


def load_heads(config: Config, model: TransferModel, domains: Mapping[str, Domain], start: StartingPoint) -> None:
    """Starts heads from the output layer that came with the weights, where it is of their classes.

    A head of the source's own always does, since a random one would pull at the features in the first steps. The
    target's, or that of both domains, does with `head_init=source`.

    Raises:
        UsageError: where the target's should and cannot.
    """
    known = start.metadata.get("classes", {}).get("target")
    for role, head in model.heads.items():
        if role == "target" and config.head_init == "new":
            continue
        old = [] if start.pretrained_head is None else list(start.pretrained_head.parameters())
        fits = [p.shape for p in old] == [p.shape for p in head.parameters()]
        if fits and known == list(domains[role].samples.classes):
            with torch.no_grad():
                for parameter, value in zip(head.parameters(), old, strict=True):
                    parameter.copy_(value)
            model.pretrained_heads.add(role)
        elif role == "target":
            reason = f"init={config.init} brings no head of the target's classes and form"
            raise UsageError(f"head_init=source: {reason}; use head_init=new")


# 6. Terms and objective ---------------------------------------------------------------------------------------


def prepare_terms(
    config: Config, terms: Mapping[str, Term], model: TransferModel, start: StartingPoint, frozen_backbone: bool
) -> None:
    """Lets terms build what they keep, each with a random stream of its own.

    Raises:
        UsageError: for one that has nothing to act on, or does not fit the model.
    """
    for term in terms.values():
        if frozen_backbone and term.needs_backbone:
            reason = f"acts on the backbone, which strategy={config.strategy['name']} leaves frozen; take it out"
            raise UsageError(f"terms=[{term.name}]: {reason}")
        with fork_rng(config.seed, "terms", term.name):
            term.prepare(model, start)


def build_objective(config: Config, domains: Mapping[str, Domain]) -> Objective:
    """Returns the joint objective with a criterion for each role in it."""
    options, roles = config.objective, config.weights.roles
    num_classes = {role: len(domains[role].samples.classes) for role in roles}
    criteria = {}
    for role in roles:
        balanced = options.class_weights == "balanced"
        class_weights = balanced_weights(domains[role].labels("train"), num_classes[role]) if balanced else None
        criteria[role] = CrossEntropy(options.label_smoothing, class_weights)
    mixing = BatchMixing(options.mixup, options.cutmix) if options.mixes else None
    return Objective(config.weights, criteria, num_classes, mixing)


# 8. Task ------------------------------------------------------------------------------------------------------


def build_task(
    config: Config,
    model: TransferModel,
    strategy: Strategy,
    objective: Objective,
    plan: RunPlan,
    domains: Mapping[str, Domain],
    epochs: range,
) -> TransferTask:
    """Returns the LightningModule.

    Raises:
        UsageError: for an option that optimizer or schedule refuse.
    """
    tested = {role: domains[role] for role in (*config.weights.evaluated_roles, "shifted") if role in domains}
    backbone = model.backbone
    metadata = {
        "version": __version__,
        "backbone": backbone.name,
        "input": backbone.input.described(),
        "classes": {role: list(domain.samples.classes) for role, domain in tested.items()},
        "config": config.redacted(),
        "config_hash": config.hash,
        **(backbone.checkpoint_metadata() if hasattr(backbone, "checkpoint_metadata") else {}),
        **strategy.checkpoint_metadata(),
    }
    make_optimizer = instantiate("optimizer", {**config.optimizer, "_partial_": True})
    schedule = instantiate("schedule", {**config.schedule, "_partial_": True})
    schedule(0, 100)  # raises for options out of range
    return TransferTask(
        model,
        strategy,
        objective,
        plan.terms,
        Optimization(make_optimizer, schedule, config.lr, epochs),
        {role: len(domain.samples.classes) for role, domain in tested.items()},
        config.seed,
        metadata,
        joint_forward=config.norm == "concat",
        average=None if config.ema is None else WeightAverage(config.ema),
    )


def build_optimizer(config: Config, task: TransferTask) -> Optimizer:
    """Builds the optimizer once, so that what it refuses is reported before training.

    Raises:
        UsageError: for an option that it refuses.
    """
    try:
        return task.build_optimizer()
    except REFUSALS as error:
        raise UsageError(f"optimizer: {config.optimizer['_target_']} refuses its options: {reason(error)}") from error
