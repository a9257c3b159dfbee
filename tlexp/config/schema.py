"""The root of the configuration: every option with its type and range, one line for each wrong value."""

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from shlex import quote
from typing import Any

from omegaconf import MISSING

from tlexp.errors import UsageError
from tlexp.fingerprint import content_key
from tlexp.metric_names import TEST_METRICS
from tlexp.objective.weights import FORMS, DomainWeights

# Whose statistics BatchNorm layers use; tlexp/backbones/batchnorm.py says what each means.
POLICIES = ("per_domain", "per_domain_affine", "batch", "concat", "frozen", "stochastic")


SOURCE_RUN = "source_training"  # what the source's own run calls its strategy
INITS = ("source", "random", "pretrained")
LOCATED = ("images", "image_table", "text_table")  # options of data whose source is there once it has a location
# What does not change a result: locations, speed, and the recipe that other keys are made of.
TRAINER_NOT_HASHED = ("enable_progress_bar", "logger")
NOT_HASHED = (
    "predictions",
    "tracking",
    "store",
    "recipe",
    "cache",
    "cache_gb",
    "workers",
    "checkpoint_minutes",
    "resume",
    "sweep",
)


def _require(holds: bool, key: str, value: object, remedy: str) -> None:
    if not holds:
        raise UsageError(f"{key}={value}: {remedy}")


def _one_of(key: str, value: object, choices: Collection[str]) -> None:
    _require(value in choices, key, value, f"choose one of {', '.join(choices)}")


def _positive(**values: float | None) -> None:
    for key, value in values.items():
        ok = value is None or (math.isfinite(value) and value > 0)
        _require(ok, key.replace("__", "."), value, "must be a finite number above 0")


@dataclass
class RecipeConfig:
    """What a strategy brings along unless the command line says otherwise."""

    init: str = MISSING
    epochs: int = MISSING
    lr: float = MISSING
    norm: str = "per_domain"
    head_init: str = "new"


@dataclass
class DataConfig:
    """A pair of data sets and the label budget of its target."""

    name: str = MISSING  # of the pair, in names of runs
    target: dict[str, Any] = MISSING  # options of dataset@data.target
    source: dict[str, Any] | None = None  # options of dataset@data.source; null: no source
    shifted: dict[str, Any] | None = None  # the target's classes under other conditions: tested, nothing else
    shots: int | None = None  # labels per class
    fraction: float | None = None  # of the labels outside the test split
    draw: int = 0  # index of the label draw
    val: str = "in_budget"  # in_budget: a fifth of the budget; cv: folds of it; large: a fifth outside it, optimistic
    refit: bool | None = None  # train on all labels once validation has chosen; null: with val=cv
    test_fraction: float = 0.4  # of each class, where the data have no test split
    sampling: str = "shuffled"  # shuffled: each example once an epoch; balanced: each class equally often
    unlabelled: bool = False  # label-free terms use all target examples outside validation and test

    def __post_init__(self) -> None:
        _one_of("data.val", self.val, ("in_budget", "cv", "large"))
        remedy = "folds leave no model to test; use data.val=in_budget, or leave data.refit at null"
        _require(not (self.val == "cv" and self.refit is False), "data.refit", self.refit, remedy)
        remedy = "would train on labels that the budget does not have; use data.val=in_budget or cv"
        _require(not (self.val == "large" and self.refit), "data.refit", self.refit, remedy)
        _one_of("data.sampling", self.sampling, ("shuffled", "balanced"))
        ok = 0 < self.test_fraction < 1
        _require(ok, "data.test_fraction", self.test_fraction, "must lie between 0 and 1")
        ok = self.shots is None or self.shots >= (1 if self.val == "large" else 2)
        remedy = "at least 2 labels a class, one to train and one to validate (1 with data.val=large)"
        _require(ok, "data.shots", self.shots, remedy)
        ok = self.fraction is None or 0 < self.fraction <= 1
        _require(ok, "data.fraction", self.fraction, "must lie in (0, 1]")
        _require(self.draw >= 0, "data.draw", self.draw, "number of a draw, 0 or above")
        both = self.shots is not None and self.fraction is not None
        remedy = f"the budget is set already by data.shots={self.shots}; add data.shots=null"
        _require(not both, "data.fraction", self.fraction, remedy)


@dataclass
class ObjectiveConfig:
    """How the two losses combine and what each of them is."""

    form: str = "sum"
    label_smoothing: float = 0.0
    class_weights: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    allow_inert_alpha: bool = False

    def __post_init__(self) -> None:
        _one_of("objective.form", self.form, FORMS)
        _one_of("objective.class_weights", self.class_weights, ("none", "balanced"))
        ok = 0 <= self.label_smoothing < 1
        _require(ok, "objective.label_smoothing", self.label_smoothing, "must lie in [0, 1)")
        for key, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            ok = math.isfinite(value) and value >= 0
            _require(ok, f"objective.{key}", value, "must be finite and >= 0: both parameters of a beta distribution")

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass
class PretrainConfig:
    """The recipe of the source's own run, which `init=source` starts from."""

    init: str = "random"
    epochs: int = MISSING
    lr: float = MISSING  # its learning rate
    batch_size: int = MISSING  # its images per optimizer step
    seed: int = 0
    optimizer: dict[str, Any] = MISSING  # options of optimizer@pretrain.optimizer
    schedule: dict[str, Any] = MISSING  # options of schedule@pretrain.schedule
    augment: dict[str, Any] = MISSING  # options of augment@pretrain.augment

    def __post_init__(self) -> None:
        remedy = "the source's own run starts from random, pretrained or a path"
        _require(self.init != "source", "pretrain.init", self.init, remedy)
        _positive(pretrain__epochs=self.epochs, pretrain__lr=self.lr, pretrain__batch_size=self.batch_size)


@dataclass
class TrackingConfig:
    """Where results go beside the run's own folder."""

    backend: str = MISSING  # mlflow, or none for local files only
    uri: str | None = None  # null: mlflow.db in the folder the command was started from
    experiment: str = "tlexp"  # name of MLflow's experiment
    log_checkpoint: bool = False  # upload the best checkpoint as an artifact
    parent: str | None = None  # the run id of the sweep that a job belongs to, which gives its jobs their names
    run_name: str | None = None  # name of the run in MLflow; null: made of what it is

    def __post_init__(self) -> None:
        _one_of("tracking.backend", self.backend, ("mlflow", "none"))
        plain = self.uri is not None and ("://" not in self.uri or self.uri.startswith("file:"))
        remedy = "MLflow keeps no runs in plain folders any more; use sqlite:////absolute/path.db or a server's address"
        _require(not plain or self.uri == "databricks", "tracking.uri", self.uri, remedy)
        _require(bool(self.experiment.strip()), "tracking.experiment", repr(self.experiment), "needs a name")


@dataclass
class SweepConfig:
    """How a multirun runs, and what its comparison compares; see `conf/config.yaml`."""

    name: str | None = None
    out: str = MISSING
    fail_fast: bool = False
    keep: str = "all"
    methods: list[str] | None = None
    baseline: str | None = None
    metric: str = "test/target/accuracy"
    rope: float = 0.01
    choose: str = "best"
    confirm: int | None = None
    trials: int | None = None
    sampler: dict[str, Any] = MISSING
    pruner: Any = None

    def __post_init__(self) -> None:
        _positive(sweep__trials=self.trials, sweep__confirm=self.confirm)
        remedy = "trials are not pruned; leave it null, and use patience= or fewer epochs="
        _require(self.pruner is None, "sweep.pruner", self.pruner, remedy)
        _one_of("sweep.keep", self.keep, ("all", "best", "none"))
        _one_of("sweep.metric", self.metric, TEST_METRICS)
        ok = math.isfinite(self.rope) and self.rope > 0
        _require(ok, "sweep.rope", self.rope, "must be above 0: what is practically no difference, 0.01 for a point")
        _one_of("sweep.choose", self.choose, ("best", "one_se"))
        ok = self.baseline is None or "=" in self.baseline
        _require(
            ok,
            "sweep.baseline",
            self.baseline,
            "needs an axis and its value, in quotes: 'sweep.baseline=\"strategy=scratch\"'",
        )


@dataclass
class Config:
    """One point on the axes start, strategy, objective, backbone and data, and how to train it."""

    data: DataConfig = MISSING
    backbone: dict[str, Any] = MISSING
    strategy: dict[str, Any] = MISSING
    recipe: RecipeConfig = MISSING
    objective: ObjectiveConfig = MISSING
    optimizer: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING
    augment: dict[str, Any] = MISSING
    pretrain: PretrainConfig = MISSING
    trainer: dict[str, Any] = MISSING
    tracking: TrackingConfig = MISSING
    sweep: SweepConfig = MISSING
    terms: dict[str, Any] = field(default_factory=dict)
    alpha: float = 0.0
    init: str = MISSING
    head: str = "auto"
    head_init: str = MISSING
    head_hidden: int = 0
    head_dropout: float = 0.0
    norm: str = MISSING
    norm_p: float = 0.5
    seed: int = 0
    split_seed: int = 0
    epochs: int = MISSING
    epochs_of: str | None = None
    lr: float = MISSING
    lr_find: bool = False
    batch_size: int = MISSING
    monitor: str = MISSING
    choose_from: str = "last_phase"
    patience: int | None = None
    ema: float | None = None
    allow_partial: bool = False
    predictions: bool = True
    store: str = MISSING
    cache: str = MISSING
    cache_gb: float = 20.0
    workers: int | None = None
    checkpoint_minutes: float = 5.0
    resume: str | None = None

    def __post_init__(self) -> None:
        DomainWeights(self.alpha)  # checks its range
        _one_of("head", self.head, ("auto", "one", "two"))
        _one_of("choose_from", self.choose_from, ("last_phase", "all"))
        if self.epochs_of is not None:
            _one_of("epochs_of", self.epochs_of, ("target", "source"))
            remedy = f"alpha={self.alpha:g} does not train on the source; use epochs_of=target"
            _require(self.epochs_of == "target" or self.weights.trains_source, "epochs_of", self.epochs_of, remedy)
        _one_of("head_init", self.head_init, ("new", "source"))
        _require(self.head_hidden >= 0, "head_hidden", self.head_hidden, "units of a hidden layer, or 0 for none")
        _require(0 <= self.head_dropout < 1, "head_dropout", self.head_dropout, "must lie in [0, 1)")
        _one_of("norm", self.norm, POLICIES)
        _require(0 <= self.norm_p <= 1, "norm_p", self.norm_p, "must lie in [0, 1]")
        _positive(epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, patience=self.patience)
        _require(
            self.ema is None or 0 < self.ema < 1, "ema", self.ema, "decay of the average, in (0, 1), such as 0.999"
        )
        ok = math.isfinite(self.cache_gb) and self.cache_gb >= 0
        _require(ok, "cache_gb", self.cache_gb, "must be finite and >= 0; 0 stores nothing")
        ok = math.isfinite(self.checkpoint_minutes) and self.checkpoint_minutes >= 0
        _require(ok, "checkpoint_minutes", self.checkpoint_minutes, "must be finite and >= 0; 0 is after every epoch")
        ok = self.workers is None or self.workers >= 0
        _require(ok, "workers", self.workers, "must be >= 0, or null for what the machine can spare")
        remedy = "would stop folds after different epochs; leave it out, or use data.val=in_budget"
        _require(self.patience is None or self.data.val != "cv", "patience", self.patience, remedy)
        if self.data.source is None:
            located = "data.source.root= or " * (self.data.name in LOCATED)
            remedy = f"data={self.data.name} has no source; give {located}dataset@data.source=, or use"
            _require(not self.weights.trains_source, "alpha", self.alpha, f"{remedy} alpha=0")
            remedy = f"{remedy} init=random, init=pretrained or a path"
            _require(self.init != "source", "init", self.init, remedy)

    @property
    def weights(self) -> DomainWeights:
        """What alpha means for this run: which domains train, and with what weight."""
        return DomainWeights(self.alpha, self.objective.form)

    def without(self, *sections: str) -> dict[str, Any]:
        """Returns the configuration as plain values, less the named sections."""
        return {key: value for key, value in asdict(self).items() if key not in sections}

    def redacted(self) -> dict[str, Any]:
        """Returns the configuration as plain values that may be kept beside results: without a store's password."""
        return {**asdict(self), "tracking": {**asdict(self.tracking), "uri": redact_uri(self.tracking.uri)}}

    def with_tracking_uri(self, uri: str | None) -> "Config":
        """Returns the configuration with another address of the store."""
        return replace(self, tracking=replace(self.tracking, uri=uri))

    @property
    def refits(self) -> bool:
        """Whether the result is of a training on all labels, for as long as held-out labels have chosen."""
        return self.data.val == "cv" if self.data.refit is None else self.data.refit

    @property
    def counted_role(self) -> str:
        """Whose passes are counted as epochs: with alpha = inf the source's, since the target has no say."""
        return self.epochs_of or ("target" if self.weights.trains_target else "source")

    @property
    def label(self) -> str:
        """Returns a name to read: strategy, data, alpha and seed."""
        return f"{self.strategy['name']}-{self.data.name}-a{self.alpha:g}-s{self.seed}"

    @property
    def hash(self) -> str:
        """A key of everything that may change the result: 12 hexadecimal digits."""
        trainer = {key: value for key, value in self.trainer.items() if key not in TRAINER_NOT_HASHED}
        return content_key({**self.without(*NOT_HASHED), "trainer": trainer})

    def source_task(self) -> "Config":
        """Returns the run that `init=source` starts from: the source as target, everything trained from scratch."""
        source = dict(self.data.source or {})
        data = DataConfig(name=f"{source['name']}_alone", target=source, test_fraction=self.data.test_fraction)
        pretrain = self.pretrain
        return replace(
            self,
            data=data,
            strategy={"_target_": "tlexp.strategies.finetune.Finetune", "name": SOURCE_RUN},
            recipe=RecipeConfig(pretrain.init, pretrain.epochs, pretrain.lr),
            objective=ObjectiveConfig(),
            terms={},
            optimizer=pretrain.optimizer,
            schedule=pretrain.schedule,
            augment=pretrain.augment,
            trainer={**self.trainer, "max_epochs": pretrain.epochs},
            alpha=0.0,
            init=pretrain.init,
            head="auto",
            head_init="new",
            norm="per_domain",
            norm_p=0.5,
            lr_find=False,
            allow_partial=False,
            seed=pretrain.seed,
            epochs=pretrain.epochs,
            epochs_of=None,
            lr=pretrain.lr,
            batch_size=pretrain.batch_size,
            monitor="val/target/nll",
            choose_from="last_phase",
            patience=None,
            ema=None,
        )


def ui_command(uri: str) -> str:
    """Returns what opens MLflow's pages: a command to copy, or the address of a server."""
    shown = redact_uri(uri) or ""
    return f"mlflow ui --backend-store-uri {quote(shown)}" if shown.startswith("sqlite:") else shown


def redact_uri(uri: str | None) -> str | None:
    """Returns an address as it may be shown and kept."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", uri) if uri else uri
